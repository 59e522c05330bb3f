"""Near-duplicate texts: an exact similarity join on the Jaccard similarity of shingles.

Two texts are near-duplicates when the sets of their word 3-shingles have a Jaccard similarity of at
least the threshold; texts of fewer than `SHORT` words are compared by character 5-grams too, and either
suffices. Letter case, punctuation between words and the width of blanks do not count; in scripts that
write no blanks between words, each character is a word.

The relation is exact and depends on the two texts alone, so that no pair is missed and more texts change
nothing between the old ones: the prefix filter below only leaves out pairs that cannot be similar. (LSH
over MinHash would miss a share of them, and a missed pair is a leak between members and non-members.)
Chaudhuri, Ganti and Kaushik 2006, "A Primitive Operator for Similarity Joins in Data Cleaning";
Bayardo, Ma and Srikant 2007, "Scaling Up All Pairs Similarity Search", §4.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

__all__ = ["SHORT", "NearDuplicates", "index_texts", "jaccard"]

SHORT = 16  # words: below this a single changed word takes away most word shingles
WORDS, CHARACTERS = 3, 5
# Thai, Lao, Burmese, Khmer, kana and Chinese characters
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
MANY = 256  # candidates: from here it pays to try one of each label first

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]
_NONE: Ints = np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class NearDuplicates:
    """An index of texts that knows which of them are near-duplicates; `index_texts` makes one."""

    joins: tuple["_Join", ...]

    def adjacent(self, text: int, labels: Ints) -> Ints:
        """The distinct labels of the texts before `text` that are its near-duplicates, ascending.

        `labels` has one integer a text; a text with a negative one is passed over. With the texts'
        own numbers as labels the answer is the near-duplicates themselves.
        """
        found = [join.adjacent(text, labels) for join in self.joins if join.has_candidates[text]]
        together = np.concatenate([_NONE, *found])
        return np.unique(together) if len(together) else _NONE


def index_texts(texts: Sequence[str], threshold: float) -> NearDuplicates:
    """The near-duplicates among `texts` at a Jaccard similarity of at least `threshold`, in (0, 1]."""
    words = [_words(text) for text in texts]
    short = [_characters(text) if len(word) < SHORT else [] for text, word in zip(texts, words, strict=True)]
    joins = (_join(words, WORDS, threshold), _join(short, CHARACTERS, threshold))
    return NearDuplicates(tuple(join for join in joins if join is not None))


def jaccard(a: str, b: str) -> float:
    """The similarity of two texts by which they are near-duplicates; 0 when they have nothing to compare."""
    words = (_words(a), _words(b))
    values = [_overlap(*(_shingles(word, WORDS) for word in words))]
    if max(len(word) for word in words) < SHORT:
        values.append(_overlap(*(_shingles(_characters(text), CHARACTERS) for text in (a, b))))
    return max(values)


def _overlap(a: set[tuple[str, ...]], b: set[tuple[str, ...]]) -> float:
    return len(a & b) / len(a | b) if a and b else 0.0


def _shingles(tokens: Sequence[str], width: int) -> set[tuple[str, ...]]:
    return {tuple(tokens[at : at + width]) for at in range(len(tokens) - width + 1)}


def _words(text: str) -> list[str]:
    return _WORD.findall(text.lower())


def _characters(text: str) -> list[str]:
    """The characters of a short text, padded so that all but an empty text have a 5-gram."""
    characters = " ".join(text.lower().split())
    return list(characters.ljust(CHARACTERS)) if characters else []


@dataclass(frozen=True, kw_only=True)
class _Join:
    """The shingle sets of one kind, as ragged rows of ranks (0 = rarest), and their prefix index.

    `ranks[start[i]:start[i + 1]]` are the shingles of text i, rarest first. Two sets of similarity t
    share a shingle among the first n - ⌈t·n⌉ + 1 of each: `posted` lists the texts of every such
    prefix entry by (shingle, text); an entry of text i lies at `at`, its shingle's entries begin at `first`.
    """

    threshold: float
    start: Ints
    ranks: Ints
    posted: Ints
    entry_start: Ints
    at: Ints
    first: Ints
    has_candidates: Bools
    marks: Bools
    seen: Bools

    def adjacent(self, text: int, labels: Ints) -> Ints:
        """The labels of the earlier near-duplicates of `text`, one or more times each."""
        candidates = self._candidates(text)
        candidates = candidates[labels[candidates] >= 0]
        if len(candidates) < MANY:
            return labels[candidates[self._similar(text, candidates)]]
        # One near-duplicate settles its label: in templated data nearly all candidates share one.
        distinct, one_each = np.unique(labels[candidates], return_index=True)
        near = distinct[self._similar(text, candidates[one_each])]
        rest = candidates[~np.isin(labels[candidates], near)]
        return np.concatenate([near, labels[rest[self._similar(text, rest)]]])

    def _candidates(self, text: int) -> Ints:
        """The earlier texts that share a prefix shingle with `text` and are of a similar size."""
        entries = slice(self.entry_start[text], self.entry_start[text + 1])
        spans = zip(self.first[entries].tolist(), self.at[entries].tolist(), strict=True)
        for low, high in spans:  # marking beats sorting: templated data share their prefixes by the thousand
            self.seen[self.posted[low:high]] = True
        candidates = np.flatnonzero(self.seen[:text])
        self.seen[candidates] = False
        size = self.start[text + 1] - self.start[text]
        sizes = self.start[candidates + 1] - self.start[candidates]
        possible = np.minimum(size, sizes) >= self.threshold * np.maximum(size, sizes) - 1e-9
        kept: Ints = candidates[possible]
        return kept

    def _similar(self, text: int, others: Ints) -> Bools:
        if not len(others):
            return np.zeros(0, dtype=np.bool_)
        own = self.ranks[self.start[text] : self.start[text + 1]]
        sizes = self.start[others + 1] - self.start[others]
        ends = np.cumsum(sizes)
        places = np.arange(ends[-1]) + np.repeat(self.start[others] - (ends - sizes), sizes)
        self.marks[own] = True
        shared = np.add.reduceat(self.marks[self.ranks[places]], ends - sizes, dtype=np.int64)
        self.marks[own] = False
        similar: Bools = shared / (len(own) + sizes - shared) >= self.threshold
        return similar


def _join(rows: Sequence[Sequence[str]], width: int, threshold: float) -> _Join | None:
    """The join of `rows` of tokens by shingles of `width` tokens; None when no row has a shingle."""
    texts, shingles = _shingle_ids(rows, width)
    if not len(texts):
        return None
    rarity = np.argsort(np.argsort(np.bincount(shingles), kind="stable"), kind="stable")
    order = np.lexsort((rarity[shingles], texts))
    texts, ranks = texts[order], rarity[shingles][order]
    sizes = np.bincount(texts, minlength=len(rows))
    start = np.concatenate([[0], np.cumsum(sizes)])
    lengths = np.where(sizes > 0, sizes - np.ceil(threshold * sizes - 1e-9).astype(np.int64) + 1, 0)
    prefix = np.flatnonzero(np.arange(len(texts)) - start[texts] < lengths[texts])
    by_shingle = np.lexsort((texts[prefix], ranks[prefix]))
    sorted_ranks = ranks[prefix][by_shingle]
    at = np.empty(len(prefix), dtype=np.int64)
    at[by_shingle] = np.arange(len(prefix))
    first = np.searchsorted(sorted_ranks, ranks[prefix])
    has_candidates = np.zeros(len(rows), dtype=np.bool_)
    has_candidates[texts[prefix][at > first]] = True
    return _Join(
        threshold=threshold,
        start=start,
        ranks=ranks,
        posted=texts[prefix][by_shingle],
        entry_start=np.concatenate([[0], np.cumsum(lengths)]),
        at=at,
        first=first,
        has_candidates=has_candidates,
        marks=np.zeros(len(rarity), dtype=np.bool_),
        seen=np.zeros(len(rows), dtype=np.bool_),
    )


def _shingle_ids(rows: Sequence[Sequence[str]], width: int) -> tuple[Ints, Ints]:
    """The distinct (text, shingle) pairs of `rows`, shingles numbered from 0: two arrays of one length."""
    vocabulary: dict[str, int] = {}
    numbers = [vocabulary.setdefault(token, len(vocabulary)) for row in rows for token in row]
    tokens = np.array(numbers, dtype=np.int64)
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    texts = np.repeat(np.arange(len(rows)), lengths)
    whole = len(tokens) - width + 1
    if whole <= 0:
        return _NONE, _NONE
    inside = texts[:whole] == texts[width - 1 :]
    ids, size = tokens[:whole][inside], len(vocabulary)
    for shift in range(1, width):
        if size * len(vocabulary) >= 2**62:  # number the shingles so far anew before the product overflows
            distinct, ids = np.unique(ids, return_inverse=True)
            size = len(distinct)
        ids = ids * len(vocabulary) + tokens[shift : whole + shift][inside]
        size *= len(vocabulary)
    distinct, ids = np.unique(ids, return_inverse=True)
    pairs = np.unique(texts[:whole][inside] * len(distinct) + ids)
    return pairs // len(distinct), pairs % len(distinct)
