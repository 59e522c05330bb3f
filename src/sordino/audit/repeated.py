"""What generated texts repeat of a run's records: every record is looked up, trained on or not."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import msgspec
import numpy as np

from sordino.attacks.rankings import run_length
from sordino.audit.inputs import Context
from sordino.matching import SuffixIndex
from sordino.records import Example
from sordino.records.placed import where
from sordino.records.store import load as load_split

__all__ = ["Corpus", "Decode", "Repeated", "corpus_of", "repeats"]


Decode = Callable[[np.ndarray], str]
"""Tokens to their text."""


class Repeated(msgspec.Struct, frozen=True, kw_only=True):
    """A run of a text's tokens `start:stop` that stands in `records`, and whether in any that was trained on.

    It cannot be made longer without leaving the records. `alone` says that all of them share one coin.
    """

    start: int
    stop: int
    text: str
    records: tuple[str, ...]
    trained: bool
    alone: bool


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """A run's records as tokens, those `trained` on and those `held` out, without planted canaries.

    `names` and `groups` (coins) are those of the records of either index; `possible` marks which of the judged records
    have `least` tokens, the run that counts.
    """

    trained: SuffixIndex
    held: SuffixIndex
    names: tuple[list[str], list[str]]
    groups: tuple[list[str], list[str]]
    possible: np.ndarray
    least: int


def corpus_of(context: Context, most: int) -> Corpus:
    """All candidates, all other records that were trained on, and those for validation; no run need exceed `most`."""
    collector = context.collector
    placed = load_split(collector.run.records).examples
    tokens: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    names: tuple[list[str], list[str]] = ([], [])
    groups: tuple[list[str], list[str]] = ([], [])
    judged = [_own(context, collector.encode(e).ids) for e in context.examples]

    def add(example: Example, ids: np.ndarray) -> None:
        side = 0 if example.included else 1
        tokens[side].append(ids)
        names[side].append(example.record.id)
        groups[side].append(example.group)

    for example, ids in zip(context.examples, judged, strict=True):
        add(example, ids)
    for role in ("train", "validation"):
        for example in where(placed, role):
            # Not kept by the collector: there may be many, and nothing else is asked of them.
            add(example, _own(context, collector.serializer.encode(example.record).ids))
    least = run_length([len(ids) for side in tokens for ids in side], most)
    return Corpus(
        trained=SuffixIndex(tokens[0]), held=SuffixIndex(tokens[1]), names=names, groups=groups,
        possible=np.array([len(ids) >= least for ids in judged], dtype=bool), least=least,
    )  # fmt: skip


def _own(context: Context, ids: np.ndarray) -> np.ndarray:
    """The tokens of a record without the one before and the one after it, which no generated text holds."""
    tokenizer = context.collector.serializer.tokenizer
    first = int(tokenizer.bos_token_id is not None and ids[:1].tolist() == [tokenizer.bos_token_id])
    last = int(tokenizer.eos_token_id is not None and ids[first:][-1:].tolist() == [tokenizer.eos_token_id])
    return ids[first : len(ids) - last]


def repeats(corpus: Corpus, ids: np.ndarray, decode: Decode) -> Iterator[Repeated]:
    """The longest runs of `ids` (T), of `corpus.least` tokens or more, that stand in a record.

    A run within another that begins before it is left out: it stands wherever that one does.
    """
    lengths = [index.lengths(ids) for index in (corpus.trained, corpus.held)]
    longest = np.maximum(*lengths)
    ends = np.arange(len(ids)) + longest
    for start in np.flatnonzero(longest >= corpus.least).tolist():
        if start and ends[start] == ends[start - 1]:
            continue
        stop, found, coins = int(ends[start]), [], set()
        for side, index in enumerate((corpus.trained, corpus.held)):
            for number in index.occurrences(ids[start:stop]).tolist():
                found.append(corpus.names[side][number])
                coins.add(corpus.groups[side][number])
        yield Repeated(
            start=start, stop=stop, text=decode(ids[start:stop]), records=tuple(sorted(found)),
            trained=bool(lengths[0][start] == longest[start]), alone=len(coins) == 1,
        )  # fmt: skip
