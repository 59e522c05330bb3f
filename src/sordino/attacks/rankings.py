"""Generated texts ranked by how likely they are memorised, without duplicates, and judged against the training set."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Bool, Int, Int64
from numpy.typing import ArrayLike

from sordino.attacks.membership.loss import loss
from sordino.attacks.membership.lowercase import lowercase
from sordino.attacks.membership.reference_ratio import reference_ratio
from sordino.attacks.membership.zlib import zlib
from sordino.attacks.passages import SHORTEST
from sordino.attacks.words import words
from sordino.errors import AuditError
from sordino.signals import Scores, Signals
from sordino.stats import Interval, clopper_pearson

if TYPE_CHECKING:  # Numba is loaded where texts are matched, not where attacks are listed
    from sordino.matching import SuffixIndex, Symbols

__all__ = ["RANKINGS", "Runs", "distinct", "precision_at", "precisions", "ranked", "run_length", "runs", "window"]


def window(signals: Signals, *, size: int = 50) -> Scores:
    """Score a text by −ℓ of the `size` tokens in a row whose mean loss is the lowest, a shorter text by all it has."""
    found = np.full(len(signals), np.nan)
    values, offsets = np.asarray(signals.logprob.values, dtype=np.float64), signals.logprob.offsets
    for record in np.flatnonzero(signals.logprob.counts > 0).tolist():
        own = values[offsets[record] : offsets[record + 1]]
        width = min(size, len(own))
        sums = np.concatenate([[0.0], np.cumsum(own)])
        found[record] = (sums[width:] - sums[:-width]).max() / width
    return found


RANKINGS: Mapping[str, Callable[[Signals], Scores]] = {
    "perplexity": loss,
    "base": reference_ratio,
    "zlib": zlib,
    "lowercase": lowercase,
    "window": window,
}
"""Scores of texts, higher = more likely memorised; all but `window` are the membership attacks of those definitions.

Source: Carlini et al. 2021, arXiv:2012.07805 (perplexity; its ratio to another model's, here the untuned base's; to
zlib; to that of the lower-cased text; of the best window of 50 tokens). Ratios are of log-perplexities.
"""


def distinct(texts: Sequence[str], order: Sequence[int] | Int[np.ndarray, " texts"]) -> Int64[np.ndarray, " kept"]:
    """`order` (numbers of texts, best first) without those that nearly repeat one before them.

    A text repeats another one if at least half of its trigrams of words, each as often as it stands in both, are in
    the other (Carlini et al. 2021); texts without trigrams only if their words are the same.
    """
    kept: list[int] = []
    grams: list[Counter[tuple[str, ...]]] = []
    holders: dict[tuple[str, ...], list[int]] = {}
    for number in (int(i) for i in order):
        count = _trigrams(texts[number])
        shared: Counter[int] = Counter()
        for gram, times in count.items():
            for place in holders.get(gram, ()):
                shared[place] += min(times, grams[place][gram])
        if any(2 * times >= count.total() for times in shared.values()):
            continue
        for gram in count:
            holders.setdefault(gram, []).append(len(grams))
        grams.append(count)
        kept.append(number)
    return np.array(kept, dtype=np.int64)


def _trigrams(text: str) -> Counter[tuple[str, ...]]:
    own = words(text)
    # What is too short for a trigram is one gram as a whole, which no trigram equals.
    return Counter(tuple(own[i : i + 3]) for i in range(max(1, len(own) - 2)))


def ranked(signals: Signals, texts: Sequence[str]) -> dict[str, Int64[np.ndarray, " kept"]]:
    """For every ranking, the numbers of the distinct `texts`, best first; those that cannot be scored come last.

    `signals` are of the texts under the tuned model, with the view `lowercase`, `compressed` sizes, and a base; where
    there is none, that ranking is left out.
    """
    found = {}
    for name, ranking in RANKINGS.items():
        if name == "base" and signals.base is None:
            continue
        scores = np.asarray(ranking(signals), dtype=np.float64)
        order = np.argsort(-np.where(np.isfinite(scores), scores, -np.inf), kind="stable")
        found[name] = distinct(texts, order)
    return found


def run_length(lengths: ArrayLike, most: int = 50) -> int:
    """How long a run counts as memorised: `most` tokens, or half of the median record where that is less, at least 8.

    `lengths` are those of the training records, in tokens. Of records of 100 tokens and more, 50 is the run of
    Nasr et al. 2023 (arXiv:2311.17035).
    """
    counts = np.asarray(lengths, dtype=np.float64)
    median = float(np.median(counts)) if counts.size else 0.0
    return min(most, max(SHORTEST, int(median / 2)))


@dataclass(frozen=True, kw_only=True)
class Runs:
    """What generated texts repeat of records, in runs of `least` tokens or more.

    `members` marks texts with a run that stands in a training record and in no held-out one: they are memorised.
    `others` are those with a run of a held-out record that stands in no training record, which shows what comes out
    by chance. `longest` is the longest run of a training record, of any length.
    """

    members: Bool[np.ndarray, " texts"]
    others: Bool[np.ndarray, " texts"]
    longest: Int64[np.ndarray, " texts"]
    least: int


def runs(texts: "Sequence[Symbols]", members: "SuffixIndex", others: "SuffixIndex", least: int) -> Runs:
    """Find what `texts` (tokens) repeat of training records and of held-out ones, in runs of `least` ≥ 1 tokens."""
    if least < 1:
        raise AuditError(f"A run of {least} tokens is in every text.", "Ask for runs of at least 1 token.")
    inside, outside, longest = [], [], []
    for text in texts:
        here, there = members.lengths(text), others.lengths(text)
        inside.append(bool(((here >= least) & (there < least)).any()))
        outside.append(bool(((there >= least) & (here < least)).any()))
        longest.append(int(here.max(initial=0)))
    return Runs(
        members=np.array(inside, dtype=bool), others=np.array(outside, dtype=bool),
        longest=np.array(longest, dtype=np.int64), least=least,
    )  # fmt: skip


def precision_at(k: int, hits: ArrayLike, confidence: float = 0.95) -> Interval:
    """The share of hits among the first `k` of `hits` (bool, best first), or among all where there are fewer.

    The interval is exact for texts drawn independently of each other.
    """
    if k < 1:
        raise AuditError(f"There is no precision at {k}.", "Ask for it at 1 or more.")
    first = np.asarray(hits, dtype=bool)[:k]
    return clopper_pearson(int(first.sum()), len(first), confidence)


def precisions(
    orders: Mapping[str, Int[np.ndarray, " kept"]], hits: Bool[np.ndarray, " texts"], k: int = 100
) -> dict[str, Interval]:
    """`precision_at(k)` of every ranking, of texts of which `hits` says whether each is memorised."""
    return {name: precision_at(k, hits[order]) for name, order in orders.items()}
