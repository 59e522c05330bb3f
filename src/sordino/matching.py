"""Which runs of a text stand word for word in one of many records, by a suffix array over all of them.

The suffixes are sorted by libdivsufsort (Y. Mori; bindings: pydivsufsort); searches are compiled by Numba.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from jaxtyping import Int, Int64

from sordino.compiled import compiled
from sordino.errors import DataError

__all__ = ["Common", "Match", "SuffixIndex", "Symbols", "longest_common_substring"]

Symbols = str | Int[np.ndarray, " n"] | Sequence[int]
"""A text, whose symbols are its code points, or a sequence of token ids."""

# Stands between records and in no query, so that no match spans two of them. All symbols are shifted up by one.
_BETWEEN = 0
# Fewer symbols are sorted faster by one thread.
_ALONE = 100_000


@dataclass(frozen=True, kw_only=True)
class Match:
    """A run of `length` symbols that begins at `at` in the query, and at `start` in the record number `record`."""

    length: int
    record: int
    start: int
    at: int


@dataclass(frozen=True, kw_only=True)
class Common:
    """The longest run that two sequences share: `length` symbols, from `first` in the one and `second` in the other."""

    length: int
    first: int
    second: int


def _codes(symbols: Symbols) -> np.ndarray:
    """The symbols (n) as positive int32; raises `DataError` for what is not a sequence of token ids."""
    if isinstance(symbols, str):
        # Lone surrogates are symbols like all others: a text may hold what no encoding does.
        points = np.frombuffer(symbols.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        return points.astype(np.int32) + np.int32(1)
    ids = np.asarray(symbols)
    whole = ids.ndim == 1 and (ids.dtype.kind in "iu" or not len(ids))
    if not whole or (len(ids) and (ids.min() < 0 or ids.max() >= np.iinfo(np.int32).max)):
        message = f"A sequence to be matched has {ids.dtype} of shape {ids.shape}."
        raise DataError(message, "Give a text, or one row of token ids from 0 to 2³¹ − 2.")
    return ids.astype(np.int32) + np.int32(1)


@cache
def _threads() -> Any:
    """The threads of the sorter, which has a pool of its own."""
    import pydivsufsort  # noqa: F401 - only pools of libraries that are loaded are found
    from threadpoolctl import ThreadpoolController

    every = ThreadpoolController()
    return every.select(filepath=[p.filepath for p in every.lib_controllers if "pydivsufsort" in p.filepath])


def _sorted(codes: np.ndarray) -> np.ndarray:
    """Where the suffixes of `codes` (N ≥ 1) begin, in their order."""
    from pydivsufsort import divsufsort

    # Threads that wait for each other take milliseconds, more than it takes to sort a text of one record.
    with _threads().limit(limits=1) if len(codes) < _ALONE else nullcontext():
        order: np.ndarray = divsufsort(codes)
    return np.ascontiguousarray(order, dtype=np.int64 if len(codes) > np.iinfo(np.int32).max else np.int32)


_TEXT = "i4[::1], {}[::1], i4[::1]"


@compiled([f"void({_TEXT.format(kind)}, i8[::1], i8[::1])" for kind in ("i4", "i8")])
def _statistics(text: Any, order: Any, query: Any, lengths: Any, places: Any) -> None:
    """Fill `lengths` and `places` (L) for each suffix of `query`: its longest prefix in `text`, and where that is.

    A search by bisection among the sorted suffixes. What the two bounds share with the query all between them
    share (Manber and Myers 1993), so that comparing goes on where it left off.
    """
    size, end = len(order), len(query)
    for at in range(end):
        low, high, below, above = -1, size, 0, 0
        lengths[at], places[at] = 0, -1
        while high - low > 1:
            middle = (low + high) // 2
            start, shared = order[middle], min(below, above)
            while at + shared < end and start + shared < size and text[start + shared] == query[at + shared]:
                shared += 1
            if shared > lengths[at]:
                lengths[at], places[at] = shared, start
            if at + shared == end:
                break
            if start + shared < size and text[start + shared] > query[at + shared]:
                high, above = middle, shared
            else:
                low, below = middle, shared


@compiled([f"i8({_TEXT.format(kind)}, b1)" for kind in ("i4", "i8")])
def _edge(text: Any, order: Any, query: Any, after: bool) -> int:
    """How many suffixes are before all that begin with `query`; `after`: with those that do."""
    low, high = 0, len(order)
    while low < high:
        middle = (low + high) // 2
        start, shared = order[middle], 0
        while shared < len(query) and start + shared < len(text) and text[start + shared] == query[shared]:
            shared += 1
        less = shared < len(query) and (start + shared == len(text) or text[start + shared] < query[shared])
        if less or (after and shared == len(query)):
            low = middle + 1
        else:
            high = middle
    return low


@compiled([f"void(i4[::1], {kind}[::1], i8, i8[::1])" for kind in ("i4", "i8")])
def _common(text: Any, order: Any, border: int, found: Any) -> None:
    """Fill `found` with the length and the two places of the longest run on both sides of `border` in `text`.

    What neighbours in the order share is counted in O(n) (Kasai et al. 2001); the longest such of two sides it is.
    """
    size = len(text)
    place = np.empty(size, dtype=np.int64)
    for rank in range(size):
        place[order[rank]] = rank
    shared = 0
    for start in range(size):
        if place[start] == 0:
            shared = 0
            continue
        other = order[place[start] - 1]
        while max(start, other) + shared < size and text[start + shared] == text[other + shared]:
            shared += 1
        if (start < border) != (other < border) and shared > found[0]:
            found[0], found[1], found[2] = shared, min(start, other), max(start, other) - border - 1
        shared = max(0, shared - 1)


def longest_common_substring(first: Symbols, second: Symbols) -> Common:
    """The longest run of symbols in both, exactly, in about O(n); of several as long, one of them.

    Where nothing is shared the length is 0. Raises `DataError` where only one of them is a text.
    """
    _require_same_kind(isinstance(first, str), second)
    one, other = _codes(first), _codes(second)
    text = np.concatenate([one, np.array([_BETWEEN], dtype=np.int32), other])
    found = np.zeros(3, dtype=np.int64)
    _common(text, _sorted(text), len(one), found)
    length, start, stop = found.tolist()
    return Common(length=length, first=start, second=stop)


def _require_same_kind(text: bool, symbols: Symbols) -> None:
    if text != isinstance(symbols, str):
        kinds = ("token ids", "text")
        message = f"{kinds[text].capitalize()} cannot be matched with {kinds[not text]}."
        raise DataError(message, "Give both as texts, or both as token ids of one tokenizer.")


class SuffixIndex:
    """All substrings of `records` (texts, or token ids), sorted once; no match spans two records.

    A query of L symbols takes O(L (log N + m)) where runs of m symbols match, with N the number of symbols of
    all records; 8 bytes are kept for each of them.
    """

    def __init__(self, records: Sequence[Symbols]) -> None:
        """Sort; raises `DataError` for records that are neither texts nor token ids, or some of each."""
        self._text = bool(records) and isinstance(records[0], str)
        for record in records:
            _require_same_kind(self._text, record)
        codes = [_codes(record) for record in records]
        between = np.array([_BETWEEN], dtype=np.int32)
        # A mark before the first record too: there is something to sort where there are no records.
        self._codes = np.concatenate([between, *(part for code in codes for part in (code, between))])
        self._starts = np.cumsum([1, *(len(code) + 1 for code in codes)])[: len(codes)].astype(np.int64)
        self._order = _sorted(self._codes)

    def __len__(self) -> int:
        """The number of records."""
        return len(self._starts)

    def lengths(self, query: Symbols) -> Int64[np.ndarray, " L"]:
        """For every position of `query` (L), how long a run that begins there stands in some record."""
        return self._matched(query)[0]

    def longest(self, query: Symbols) -> Match | None:
        """The longest run of `query` that stands in a record, the first of several; None where there is none."""
        lengths, places = self._matched(query)
        if not len(lengths) or not lengths.max():
            return None
        at = int(lengths.argmax())
        [record] = self._record(places[at : at + 1])
        return Match(
            length=int(lengths[at]), record=int(record), start=int(places[at] - self._starts[record]), at=at
        )  # fmt: skip

    def contains(self, query: Symbols) -> bool:
        """Whether the whole of `query` stands in some record; the empty query stands in every one."""
        return len(self.occurrences(query)) > 0

    def occurrences(self, query: Symbols) -> Int64[np.ndarray, " records"]:
        """The numbers of all records in which the whole of `query` stands, ascending."""
        codes = self._queried(query)
        if not len(codes):
            return np.arange(len(self))
        first, last = (_edge(self._codes, self._order, codes, after) for after in (False, True))
        return np.unique(self._record(self._order[first:last]))

    def _queried(self, query: Symbols) -> np.ndarray:
        if len(self):
            _require_same_kind(self._text, query)
        return _codes(query)

    def _matched(self, query: Symbols) -> tuple[np.ndarray, np.ndarray]:
        codes = self._queried(query)
        lengths, places = np.empty(len(codes), dtype=np.int64), np.empty(len(codes), dtype=np.int64)
        _statistics(self._codes, self._order, codes, lengths, places)
        return lengths, places

    def _record(self, places: np.ndarray) -> Int64[np.ndarray, " places"]:
        found: np.ndarray = np.searchsorted(self._starts, places, side="right") - 1
        return found
