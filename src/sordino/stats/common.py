"""What every statistic here shares: the `Interval`, checks of arguments, group codes and a root finder."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sordino.errors import AuditError, ConfigError

__all__ = ["UNBOUNDED", "Interval"]

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNBOUNDED = sys.float_info.max
"""Stands for infinity as a limit: JSON has none, and a limit must survive a file."""


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A figure with its interval, field by field what `sordino.results.Estimate` stores.

    `value` is None where the sample cannot resolve the figure; `needs` then says how many of the
    observations that `method` names it would take. `n` counts independent observations (groups).
    """

    value: float | None
    low: float
    high: float
    n: int
    method: str
    confidence: float = 0.95
    needs: int | None = None


def check_fraction(name: str, value: float, *, zero: bool = False, one: bool = False) -> float:
    """`value` if it lies in (0, 1), ends allowed by `zero` and `one`; else raises `ConfigError`."""
    if 0 < value < 1 or (zero and value == 0) or (one and value == 1):
        return float(value)
    bounds = f"{'[' if zero else '('}0, 1{']' if one else ')'}"
    raise ConfigError(f"{name} is {value}, which is not in {bounds}.", f"Give {name} as a fraction.")


def check_count(name: str, value: int, least: int, most: int | None = None) -> int:
    """`value` if it is a whole number from `least` to `most`; else raises `ConfigError`."""
    if float(value).is_integer() and value >= least and (most is None or value <= most):
        return int(value)
    span = f"at least {least}" if most is None else f"from {least} to {most}"
    raise ConfigError(f"{name} is {value}.", f"It must be a whole number {span}.")


def check_numbers(name: str, values: ArrayLike, n: int | None = None, *, finite: bool = False) -> Floats:
    """`values` as a float vector without NaN (and of length `n`); else raises `AuditError`."""
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or (n is not None and array.size != n):
        want = "one number per record" if n is None else f"{n} numbers"
        raise AuditError(f"{name} has shape {array.shape}.", f"Give {want}.")
    bad = int(np.count_nonzero(~np.isfinite(array) if finite else np.isnan(array)))
    if bad:
        kind = "not finite" if finite else "NaN"
        raise AuditError(f"{bad} of {array.size} {name} are {kind}.", "Find out why before counting them as anything.")
    return array


def check_booleans(name: str, values: ArrayLike, n: int) -> Bools:
    """`values` as n booleans; else raises `AuditError`."""
    array = np.asarray(values, dtype=np.bool_)
    if array.shape != (n,):
        raise AuditError(f"{name} has shape {array.shape} for {n} scores.", "Give one boolean per score.")
    return array


def check_members(member: ArrayLike, n: int) -> Bools:
    """`member` as n booleans, some true and some false; else raises `AuditError`."""
    array = check_booleans("member", member, n)
    members = int(np.count_nonzero(array))
    if members in (0, n):
        raise AuditError(
            f"There are {members} members and {n - members} non-members.",
            "Telling them apart needs some of each: hold out more records, or include more.",
        )
    return array


def group_codes(group: ArrayLike | None, n: int) -> tuple[Ints, int]:
    """Renumber groups 0 … G−1 and count them; without `group` every record is one of its own."""
    if group is None:
        return np.arange(n, dtype=np.int64), n
    array = np.asarray(group)
    if array.shape != (n,):
        raise AuditError(f"group has shape {array.shape} for {n} records.", "Give one group per record.")
    values, codes = np.unique(array, return_inverse=True)
    return codes.astype(np.int64), values.size


def group_sums(values: Floats, codes: Ints, groups: int) -> Floats:
    """Sum of `values` (n,) in each group, as (groups,)."""
    return np.bincount(codes, weights=values, minlength=groups).astype(np.float64)


def largest(holds: Callable[[float], bool], low: float, high: float) -> float:
    """Find, to the last bit, the largest x in [low, high] where `holds`, true at `low`, is still true."""
    if holds(high):
        return high
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
