"""Where two plain values differ by more than rounding."""

import math
from collections.abc import Iterator
from typing import Any

__all__ = ["differing"]

# Sums in another order, on another machine: not the figure.
_RELATIVE, _ABSOLUTE = 1e-9, 1e-12


def differing(first: Any, second: Any, where: str = "") -> Iterator[str]:
    """The places at which `first` and `second` (as JSON holds them) differ, such as `rows[1].metrics.auc.low`.

    Numbers are the same to 1e-9 of the larger, or 1e-12; a whole number is no text and no truth value.
    """
    if isinstance(first, dict) and isinstance(second, dict):
        for name in first.keys() | second.keys():
            below = f"{where}.{name}" if where else str(name)
            if name in first and name in second:
                yield from differing(first[name], second[name], below)
            else:
                yield below
    elif isinstance(first, list | tuple) and isinstance(second, list | tuple):
        if len(first) != len(second):
            yield where
        for number, (one, other) in enumerate(zip(first, second, strict=False)):
            yield from differing(one, other, f"{where}[{number}]")
    elif _is_number(first) and _is_number(second):
        if not math.isclose(first, second, rel_tol=_RELATIVE, abs_tol=_ABSOLUTE):
            yield where
    elif first != second or type(first) is not type(second):
        yield where


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
