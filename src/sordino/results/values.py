"""A figure with its interval, what is counted, and how plain values are written and read."""

import sys
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from sordino.errors import RunError

__all__ = ["SCHEMA", "UNBOUNDED", "Estimate", "Notice", "decode", "encode"]

SCHEMA = 1
"""The version of what is written."""

# What `stats.UNBOUNDED` is: JSON has no infinity. Not imported, so that schemas do not load SciPy.
UNBOUNDED = sys.float_info.max

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A figure with its interval; no bare float leaves the library.

    `value` is None when the sample cannot resolve the figure: `needs` then says how many
    non-members (or whatever `method` counts) it would take. `n` is the number of independent
    observations behind the figure, `confidence` the level of the two-sided interval.
    """

    value: float | None
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95
    needs: int | None = None

    def __str__(self) -> str:
        """The figure as a person reads it: `0.874 [0.83, 0.91]`."""
        if self.value is None:
            need = f": needs {self.needs:,}" if self.needs else ""
            return f"not resolvable{need} (n={self.n:,})"
        low, high = (f"{bound:.3g}" if abs(bound) < UNBOUNDED else "∞" for bound in (self.low, self.high))
        return f"{self.value:.3g} [{low.replace('∞', '-∞')}, {high}]"


@dataclass(frozen=True, kw_only=True)
class Notice:
    """Something that happened to the data and is counted, never silent."""

    kind: str
    count: int
    message: str


def encode(value: object) -> bytes:
    """`value` as indented JSON, ending in a newline."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"


def decode(data: bytes, kind: type[T], source: str) -> T:
    """The JSON `data` as `kind`; raises `RunError`, naming `source`, when it is not one."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        message = f"{source} is not a valid {kind.__name__}: {error}."
        raise RunError(message, "Was it written by another version, or edited?") from error
