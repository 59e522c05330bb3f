"""Exact intervals for proportions: Clopper–Pearson, and Korn–Graubard where records share a coin."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betaincinv, stdtrit

from sordino.stats.common import Interval, check_count, check_fraction, check_numbers, group_codes, group_sums

__all__ = ["clopper_pearson", "korn_graubard"]

Side = Literal["two", "lower", "upper"]


def limits(hits: float, n: float, confidence: float, side: Side = "two") -> tuple[float, float]:
    """Clopper–Pearson limits of hits/n by Beta quantiles; both may be fractional (effective sizes)."""
    tail = (1 - confidence) / (2 if side == "two" else 1)
    low = high = None
    if side == "upper" or hits <= 0:
        low = 0.0
    if side == "lower" or hits >= n:
        high = 1.0
    return (
        float(betaincinv(hits, n - hits + 1, tail)) if low is None else low,
        float(betaincinv(hits + 1, n - hits, 1 - tail)) if high is None else high,
    )


def clopper_pearson(k: int, n: int, confidence: float = 0.95, side: Side = "two") -> Interval:
    """Bound a proportion k/n exactly; `side` spends all the error on one limit.

    Without trials (n = 0) the value is None. Clopper and Pearson, Biometrika 26 (1934).
    """
    check_count("n", n, 0)
    check_count("k", k, 0, n)
    check_fraction("confidence", confidence)
    low, high = limits(k, n, confidence, side) if n else (0.0, 1.0)
    return Interval(
        value=k / n if n else None,
        low=low,
        high=high,
        n=n,
        method="Clopper–Pearson" if side == "two" else f"Clopper–Pearson, {side} limit",
        confidence=confidence,
        needs=None if n else 1,
    )


def korn_graubard(hits: ArrayLike, group: ArrayLike | None = None, confidence: float = 0.95) -> Interval:
    """Estimate the share of records hit, with Clopper–Pearson limits at the effective sample size.

    `hits` (n,) booleans, `group` (n,) labels. The effective size is n over the design effect, times
    (t_{n−1}/t_{G−1})², at most n; at 0 % or 100 % it is G, the number of groups, because there the
    design effect cannot be estimated. Groups of one record give Clopper–Pearson. Korn and Graubard,
    Survey Methodology 24 (1998).
    """
    check_fraction("confidence", confidence)
    values = check_numbers("hits", np.asarray(hits, dtype=np.bool_))
    codes, groups = group_codes(group, values.size)
    n = values.size
    if groups == n:
        return clopper_pearson(int(values.sum()), n, confidence)
    share = float(values.mean())
    if share in (0.0, 1.0):
        size = float(groups)
    elif groups == 1:
        size = 0.0
    else:
        residual = group_sums(values - share, codes, groups)
        spread = groups / (groups - 1) * float(residual @ residual) / n**2
        tail = (1 - confidence) / 2
        shrink = float(stdtrit(n - 1, tail) / stdtrit(groups - 1, tail)) ** 2
        size = min(float(n), share * (1 - share) / (n - 1) / spread * n * shrink) if spread > 0 else float(n)
    low, high = limits(share * size, size, confidence) if size else (0.0, 1.0)
    method = f"Korn–Graubard, effective size {size:.4g} of {n} records in {groups} groups"
    return Interval(value=share, low=low, high=high, n=groups, method=method, confidence=confidence)
