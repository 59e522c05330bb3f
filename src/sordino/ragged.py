"""Loops over the values of one record after the other, compiled for this processor when first used.

NumPy has no partial sort of rows of different lengths, and would sort all values of all records instead.
"""

from typing import Any

import numpy as np

from sordino.compiled import compiled

__all__ = ["lowest_sums", "window_wins"]


def _read(kind: str) -> str:
    """The type of a vector that is read only: stored values are mapped from files that must not be written."""
    return f"Array({kind}, 1, 'C', True)"


@compiled("void(f8[::1], i8, i8)")
def _sink(heap: Any, at: int, size: int) -> None:
    """Put `heap[at]` where it belongs among the `size` values below it: none is above its parent."""
    value = heap[at]
    while 2 * at + 1 < size:
        child = 2 * at + 1
        if child + 1 < size and heap[child + 1] > heap[child]:
            child += 1
        if heap[child] <= value:
            break
        heap[at] = heap[child]
        at = child
    heap[at] = value


@compiled([f"void({_read(kind)}, {_read('i8')}, {_read('i8')}, f8[::1], f8[::1])" for kind in ("f4", "f8")])
def lowest_sums(values: Any, offsets: Any, keep: Any, sums: Any, limits: Any) -> None:
    """Fill `sums` (records) with the sum in float64 of the lowest `keep[i]` values of record i; NaN is the highest.

    `limits` (records) are filled with the highest of those values, −∞ where there are none.

    The lowest so far are a heap whose root is their highest, so that a value costs one comparison unless it
    is among them: O(n ln keep) at worst, whatever the order.
    """
    longest = 0
    for i in range(len(keep)):
        longest = max(longest, keep[i])
    heap = np.empty(longest, dtype=np.float64)
    for i in range(len(keep)):
        size = 0
        for at in range(offsets[i], offsets[i + 1]):
            value = np.float64(values[at])
            if np.isnan(value):
                continue
            if size < keep[i]:
                heap[size] = value
                size += 1
                if size == keep[i]:
                    for root in range(size // 2 - 1, -1, -1):
                        _sink(heap, root, size)
            elif value < heap[0]:
                heap[0] = value
                _sink(heap, 0, size)
        # Fewer numbers than are to be kept: NaN is among the lowest.
        sums[i] = np.nan if size < min(keep[i], offsets[i + 1] - offsets[i]) else heap[:size].sum()
        limits[i] = heap[:size].max() if size > 0 else -np.inf


@compiled(f"void({_read('f8')}, {_read('i8')}, {_read('i8')}, f8, f8[::1])")
def window_wins(values: Any, offsets: Any, sizes: Any, least: float, shares: Any) -> None:
    """Fill `shares` (records) with the share of windows that sum to more than `least`, averaged over `sizes`.

    A window longer than the record is cut to it; a record without values has none.
    """
    longest = 0
    for i in range(len(shares)):
        longest = max(longest, offsets[i + 1] - offsets[i])
    running = np.zeros(longest + 1, dtype=np.float64)
    for i in range(len(shares)):
        first, count = offsets[i], offsets[i + 1] - offsets[i]
        for at in range(count):
            running[at + 1] = running[at] + values[first + at]
        total = 0.0
        for size in sizes:
            width = min(size, count)
            places, wins = count - width + 1, 0
            for at in range(places):
                wins += running[at + width] - running[at] > least
            total += wins / places
        shares[i] = total / len(sizes) if count > 0 else np.nan
