"""Means, ratios and other statistics of grouped values, with intervals that respect the groups."""

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import stdtrit

from sordino.errors import AuditError
from sordino.stats.common import (
    UNBOUNDED,
    Interval,
    check_count,
    check_fraction,
    check_numbers,
    group_codes,
    group_sums,
)

__all__ = ["bootstrap", "mean_interval", "perplexity_interval", "ratio_interval"]


def _unresolved(groups: int, confidence: float) -> Interval:
    """No spread can be seen in fewer than two groups."""
    return Interval(
        value=None,
        low=-UNBOUNDED,
        high=UNBOUNDED,
        n=groups,
        method="groups of records",
        confidence=confidence,
        needs=2,
    )


def ratio_interval(
    numerators: ArrayLike, denominators: ArrayLike, group: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """Σ numerators / Σ denominators with its linearised, clustered standard error and a t quantile.

    All (n,), e.g. summed losses and token counts of records. G groups give G − 1 degrees of freedom;
    fewer than two, or denominators that sum to 0, give the value None. Cochran, "Sampling
    techniques", 1977, eq. 6.13; a zero width means that all groups agree, and `method` says so.
    """
    check_fraction("confidence", confidence)
    above = check_numbers("numerators", numerators, finite=True)
    below = check_numbers("denominators", denominators, above.size, finite=True)
    if np.any(below < 0):
        raise AuditError(f"A denominator is {below.min():g}.", "Denominators count things: give none below 0.")
    codes, groups = group_codes(group, above.size)
    total = float(below.sum())
    if groups < 2 or total == 0:
        return _unresolved(groups, confidence)
    value = float(above.sum()) / total
    residual = group_sums(above - value * below, codes, groups) / total
    error = math.sqrt(groups / (groups - 1) * float(residual @ residual))
    reach = error * float(stdtrit(groups - 1, (1 + confidence) / 2))
    method = "t interval" if groups == above.size else f"t interval, clustered: {above.size} records"
    if error == 0:
        method += ", no spread between groups"
    return Interval(value=value, low=value - reach, high=value + reach, n=groups, method=method, confidence=confidence)


def mean_interval(values: ArrayLike, group: ArrayLike | None = None, confidence: float = 0.95) -> Interval:
    """Average `values` (n,) with clustered standard error and a t quantile; see `ratio_interval`."""
    array = check_numbers("values", values, finite=True)
    return ratio_interval(array, np.ones(array.size), group, confidence)


def _exp(x: float) -> float:
    """Raise e to `x`, up to the largest finite number."""
    return math.exp(x) if x < math.log(UNBOUNDED) else UNBOUNDED


def perplexity_interval(
    losses: ArrayLike, tokens: ArrayLike, group: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """exp(Σ losses / Σ tokens): `losses` (n,) are summed negative log-likelihoods in nats per record.

    The interval is that of the mean loss per token, a ratio estimator, taken through exp.
    """
    mean = ratio_interval(losses, tokens, group, confidence)
    return Interval(
        value=None if mean.value is None else _exp(mean.value),
        low=_exp(mean.low),
        high=_exp(mean.high),
        n=mean.n,
        method=mean.method,
        confidence=confidence,
        needs=mean.needs,
    )


def bootstrap(
    values: ArrayLike,
    statistic: Callable[[NDArray[np.float64]], float],
    group: ArrayLike | None = None,
    confidence: float = 0.95,
    resamples: int = 1999,
    seed: int = 0,
) -> Interval:
    """`statistic` of `values` (n, …) with a percentile interval from resampled groups.

    `statistic` takes rows of `values`. Raises `AuditError` where it is not finite on a resample.
    Fewer than two groups give the value None. Efron, Annals of Statistics 7 (1979).
    """
    check_fraction("confidence", confidence)
    check_count("resamples", resamples, 1)
    array = np.asarray(values, dtype=np.float64)
    codes, groups = group_codes(group, array.shape[0])
    if groups < 2:
        return _unresolved(groups, confidence)
    order = np.argsort(codes, kind="stable")
    sizes = np.bincount(codes, minlength=groups)
    starts = sizes.cumsum() - sizes
    rng = np.random.default_rng(seed)
    found = np.empty(resamples)
    for i in range(resamples):
        drawn = rng.integers(groups, size=groups)
        length = sizes[drawn]
        shift = np.repeat(starts[drawn] - (length.cumsum() - length), length)
        found[i] = statistic(array[order[np.arange(shift.size) + shift]])
    value = float(statistic(array))
    bad = int(np.count_nonzero(~np.isfinite(found))) + (not math.isfinite(value))
    if bad:
        raise AuditError(
            f"The statistic is not finite on {bad} of {resamples + 1} samples.",
            "Choose one that is defined on every resample, or give it more groups.",
        )
    low, high = np.quantile(found, [(1 - confidence) / 2, (1 + confidence) / 2])
    method = f"percentile bootstrap, {resamples} resamples of groups"
    return Interval(value=value, low=float(low), high=float(high), n=groups, method=method, confidence=confidence)
