"""The passages of a record that discoverable extraction asks a model for, and how long they are."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Int, Int64

from sordino.signals import Signals

__all__ = ["SHORTEST", "Tried", "passages", "windows"]

SHORTEST = 8


@dataclass(frozen=True, kw_only=True)
class Tried:
    """The windows of the record number `record`: where in its statistics each passage of `length` tokens begins.

    `first` are offsets into the rows of the record's scored tokens, `rows`; `shortened` says that the lengths asked
    for did not fit into the record.
    """

    record: int
    rows: slice
    first: Int64[np.ndarray, " windows"]
    length: int
    shortened: bool


def passages(signals: Signals, prefix_tokens: int, suffix_tokens: int) -> Iterator[Tried]:
    """The windows of every record: `suffix_tokens` scored tokens in a row, with `prefix_tokens` or more before them.

    In records with fewer tokens both lengths shrink in proportion, down to a passage of 8; records with fewer
    scored tokens have none.
    """
    s = signals.statistics
    counts = np.diff(s.offsets)
    for record in np.flatnonzero(counts >= SHORTEST).tolist():
        rows = slice(int(s.offsets[record]), int(s.offsets[record + 1]))
        first, length, shortened = windows(np.asarray(s.position[rows]), prefix_tokens, suffix_tokens)
        yield Tried(record=record, rows=rows, first=first, length=length, shortened=shortened)


def windows(
    position: Int[np.ndarray, " scored"], prefix_tokens: int, suffix_tokens: int
) -> tuple[Int64[np.ndarray, " windows"], int, bool]:
    """Those of one record, whose scored tokens, 8 or more, stand at `position`, rising: see `Tried`."""
    length = int(position[-1]) + 1
    scale = min(1.0, length / (prefix_tokens + suffix_tokens))
    suffix = max(SHORTEST, int(suffix_tokens * scale))
    before = min(int(prefix_tokens * scale), length - suffix)
    # A window is a run of consecutive scored positions with enough context before it.
    first = np.arange(len(position) - suffix + 1)
    first = first[(position[first] >= before) & (position[first + suffix - 1] - position[first] == suffix - 1)]
    return first, suffix, scale < 1
