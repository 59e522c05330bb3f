"""Near-duplicate texts: pairs that MinHash proposes and an exact Jaccard similarity of shingles confirms.

Two texts are near-duplicates when the sets of their word 3-shingles have a Jaccard similarity of at
least the threshold; texts of fewer than `SHORT` words are compared by character 5-grams too, and either
suffices. Letter case, punctuation between words and the width of blanks do not count; in scripts that
write no blanks between words, each character is a word.

A text's signature is b bands of r minima of its hashed shingles. Two texts of similarity t agree in a
minimum with probability t, in all of one band with tʳ, and in no band with (1 - tʳ)ᵇ; `bands` chooses
b and r so that this, the chance of missing a pair at the threshold, is below `MISS`. Whatever agrees in
a band is compared; nothing is near on the word of a signature. The hashes are fixed, so the relation
depends on the two texts alone, and more texts change nothing between the old ones.

Broder 1997, "On the Resemblance and Containment of Documents"; Indyk and Motwani 1998 (banding);
Leskovec, Rajaraman and Ullman 2020, "Mining of Massive Datasets", §3.4 (the formula).
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from sordino import minhash

__all__ = ["SHORT", "NearDuplicates", "bands", "index_texts", "jaccard"]

SHORT = 16  # words: below this a single changed word takes away most word shingles
WORDS, CHARACTERS = 3, 5
# Thai, Lao, Burmese, Khmer, kana and Chinese characters
_UNSPACED = r"\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\U00020000-\U0003ffff"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_ASCII_WORD = re.compile(r"\w+", re.ASCII)  # the same words of most texts, several times as fast
MISS, PERMUTATIONS = 1e-6, 128
_BATCH = 4096
PATIENCE = 1000  # entries of buckets: from here, going through all groups is faster

Ints: TypeAlias = npt.NDArray[np.int64]
Small: TypeAlias = npt.NDArray[np.int32]
Hashes: TypeAlias = npt.NDArray[np.uint64]


def bands(threshold: float, permutations: int = PERMUTATIONS, miss: float = MISS) -> tuple[int, int]:
    """The number of bands b and of rows r a band, with b · r ≤ `permutations` and (1 - tʳ)ᵇ < `miss`.

    The largest such r: it proposes the fewest pairs that are not near. Where even one row a band misses
    more, at low thresholds, b is as large as it must be.
    """
    for rows in range(permutations, 0, -1):
        if (1 - threshold**rows) ** (permutations // rows) < miss:
            return permutations // rows, rows
    return int(np.ceil(np.log(miss) / np.log1p(-threshold))) + 1, 1


@dataclass
class NearDuplicates:
    """An index of texts that are added by age, each with its group; `index_texts` makes one.

    `parent[i]` is text i itself where it founded a group, an older text of its group otherwise, and -1
    while it has none; the caller writes it.
    """

    parent: Ints
    joins: tuple["_Join", ...] = ()
    _out: Ints = field(init=False)

    def __post_init__(self) -> None:
        """Make room for the answers."""
        self._out = np.empty(len(self.parent), dtype=np.int64)

    def adjacent(self, text: int) -> set[int]:
        """The groups of the near-duplicates of `text` among those added before, each by its root."""
        groups: set[int] = set()
        for join in self.joins:
            if join.entry_start[text] < join.entry_start[text + 1]:
                groups.update(self._out[: join.search(text, self.parent, self._out)].tolist())
        return groups

    def add(self, text: int) -> None:
        """Let later texts find `text`, whose group `parent` tells."""
        for join in self.joins:
            if join.entry_start[text] < join.entry_start[text + 1]:
                minhash.add(text, join.entry_start, join.bucket, join.buckets, join.links)


def index_texts(texts: Sequence[str], threshold: float, parent: Ints | None = None) -> NearDuplicates:
    """An index of the near-duplicates among `texts` at a similarity of at least `threshold`, in (0, 1].

    `texts` is gone through twice; only shingles of texts that share a bucket are held. Without a `parent`
    each text is a group of its own.
    """
    parent = np.arange(len(texts), dtype=np.int64) if parent is None else parent
    both, count = bands(threshold), len(texts)
    keys = [_Keys(*both), _Keys(*both)]
    for at, words, short in _tokenized(texts):
        keys[0].add(at, words, WORDS)
        keys[1].add(at, short, CHARACTERS)
    made = [(key.join(count, threshold), width) for key, width in zip(keys, (WORDS, CHARACTERS), strict=True)]
    joins = [(join, width) for join, width in made if join is not None]
    if joins:
        _fill(joins, texts)
    return NearDuplicates(parent, joins=tuple(join for join, _ in joins))


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
    return (_ASCII_WORD if text.isascii() else _WORD).findall(text.lower())


def _characters(text: str) -> str:
    """The characters of a short text, padded so that all but an empty text have a 5-gram."""
    characters = " ".join(text.lower().split())
    return characters.ljust(CHARACTERS) if characters else ""


@dataclass(frozen=True)
class _Tokens:
    """Hashed tokens of some texts in a row: text i has `values[edges[i]:edges[i + 1]]`."""

    values: Hashes
    edges: Ints


def _tokenized(texts: Sequence[str]) -> Iterator[tuple[int, _Tokens, _Tokens]]:
    """Number of the first, words, and characters of the short ones, of a batch of texts after another."""
    left, at = iter(texts), 0
    while batch := list(islice(left, _BATCH)):
        words = [_words(text) for text in batch]
        short = [_characters(text) if len(word) < SHORT else "" for text, word in zip(batch, words, strict=True)]
        yield at, _word_tokens(words), _char_tokens(short)
        at += len(batch)


def _codes(rows: Sequence[str]) -> tuple[npt.NDArray[np.uint32], Ints]:
    edges = np.zeros(len(rows) + 1, dtype=np.int64)
    np.cumsum([len(row) for row in rows], out=edges[1:])
    # Lone surrogates are no Unicode, but a caller's own records may have them.
    return np.frombuffer("".join(rows).encode("utf-32-le", "surrogatepass"), dtype=np.uint32), edges


def _word_tokens(words: Sequence[Sequence[str]]) -> _Tokens:
    codes, edges = _codes(["\0".join([*row, ""]) for row in words])
    values = np.empty(sum(map(len, words)), dtype=np.uint64)
    starts = np.empty(len(edges), dtype=np.int64)
    minhash.word_tokens(codes.copy(), edges, values, starts)
    return _Tokens(values, starts)


def _char_tokens(rows: Sequence[str]) -> _Tokens:
    codes, edges = _codes(rows)
    values = np.empty(len(codes), dtype=np.uint64)
    minhash.char_tokens(codes.copy(), values)
    return _Tokens(values, edges)


def _sets(tokens: _Tokens, width: int) -> tuple[Hashes, Ints]:
    """The shingles of each text, as hashes ascending, and where each text's begin."""
    values = np.empty(len(tokens.values), dtype=np.uint64)
    starts = np.empty(len(tokens.edges), dtype=np.int64)
    minhash.shingle_sets(tokens.values, tokens.edges, width, values, starts)
    return values[: starts[-1]], starts


def _seeds(count: int) -> Hashes:
    """The first numbers of SplitMix64 from 0: the same on every machine and under every version of NumPy."""
    with np.errstate(over="ignore"):
        x = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))


class _Keys:
    """The bands' keys of all texts that have shingles of one kind."""

    def __init__(self, count: int, rows: int) -> None:
        self.count, self.rows = count, rows
        self.seeds = _seeds(2 * count * rows)
        self.texts: list[Ints] = []
        self.keys: list[npt.NDArray[np.uint32]] = []

    def add(self, first: int, tokens: _Tokens, width: int) -> None:
        values, starts = _sets(tokens, width)
        filled = np.flatnonzero(np.diff(starts))
        if len(filled):
            keys = np.empty((len(filled), self.count), dtype=np.uint32)
            minhash.band_keys(values, np.append(starts[filled], starts[-1]), self.seeds, self.rows, keys)
            self.texts.append(first + filled)
            self.keys.append(keys)

    def join(self, texts: int, threshold: float) -> "_Join | None":
        """The buckets with more than one text; None when there is none. The keys are given up."""
        if not self.keys:
            return None
        numbers, keys = np.concatenate(self.texts), np.concatenate(self.keys)
        self.texts, self.keys = [], []
        total = 0
        for band in range(self.count):  # each key becomes 1 + the number of its bucket, or 0 where it is alone
            _, inverse, sizes = np.unique(keys[:, band], return_inverse=True, return_counts=True)
            several = sizes > 1
            names = np.where(several, total + np.cumsum(several), 0).astype(np.uint32)
            keys[:, band] = names[inverse]
            total += int(several.sum())
        if not total:
            return None
        shared = keys > 0
        counts = shared.sum(axis=1)
        entry_start = np.zeros(texts + 1, dtype=np.int64)
        entry_start[numbers + 1] = counts + (counts > 0)
        np.cumsum(entry_start, out=entry_start)
        # The last entry of every text that has one is in a bucket of all of them.
        bucket = np.full(entry_start[-1], total, dtype=np.int32)
        own = np.ones(len(bucket), dtype=np.bool_)
        own[entry_start[numbers + 1][counts > 0] - 1] = False
        bucket[own] = keys[shared].astype(np.int32) - np.int32(1)
        return _Join(threshold, entry_start, bucket, total + 1)


class _Join:
    """The texts of one kind of shingle by bucket, and the shingles of those that share one; see `minhash.search`."""

    def __init__(self, threshold: float, entry_start: Ints, bucket: Small, total: int) -> None:
        self.threshold, self.entry_start, self.bucket = threshold, entry_start, bucket
        self.buckets = np.zeros((2, total), dtype=np.int32)
        self.buckets[0] = -1
        self.links = np.full((4, len(bucket)), -1, dtype=np.int32)
        self.marks = np.full((4, len(entry_start) - 1), -1, dtype=np.int64)
        self.searches = 0
        self.values: Hashes = np.zeros(0, dtype=np.uint64)
        self.starts: Ints = np.zeros(1, dtype=np.int64)
        self.sketches = np.zeros((0, minhash.SKETCH), dtype=np.uint64)

    def hold(self, values: Hashes, sizes: Ints) -> None:
        """Keep the shingles of all texts, `sizes` of each."""
        self.values, self.starts = values, np.concatenate([[0], np.cumsum(sizes)])
        self.sketches = np.zeros((len(sizes), minhash.SKETCH), dtype=np.uint64)
        minhash.sketch(self.values, self.starts, self.sketches)

    def search(self, text: int, parent: Ints, out: Ints) -> int:
        sets = (self.values, self.starts, self.sketches, self.threshold)
        index = (self.entry_start, self.bucket, self.buckets, self.links, self.marks, out)
        self.searches += 1
        return int(minhash.search(text, parent, *sets, *index, PATIENCE, self.searches))


def _fill(joins: "Sequence[tuple[_Join, int]]", texts: Sequence[str]) -> None:
    """Give each join the shingles of the texts that have a bucket in it."""
    found: list[list[Hashes]] = [[] for _ in joins]
    sizes: list[list[Ints]] = [[] for _ in joins]
    for at, *kinds in _tokenized(texts):
        for number, (join, width) in enumerate(joins):
            values, starts = _sets(kinds[0 if width == WORDS else 1], width)
            counts = np.diff(starts)
            wanted = np.diff(join.entry_start[at : at + len(counts) + 1]) > 0
            found[number].append(values[np.repeat(wanted, counts)])
            sizes[number].append(np.where(wanted, counts, 0))
    for (join, _), values_of, sizes_of in zip(joins, found, sizes, strict=True):
        join.hold(np.concatenate(values_of), np.concatenate(sizes_of))
