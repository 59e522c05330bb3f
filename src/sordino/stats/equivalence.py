"""Are two things alike? Two one-sided tests, and what they could have shown: power, and how much evidence it takes.

A large p-value of a test for a difference says that none was seen, which too few observations always achieve. Here
the burden is the other way: differences of `margin` and more are the null hypothesis, below and above (Schuirmann,
Journal of Pharmacokinetics and Biopharmaceutics 15, 1987), and what a sample cannot show stays open.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from sordino.errors import ConfigError
from sordino.stats.common import UNBOUNDED, Floats, Interval, check_numbers, group_codes, group_sums
from sordino.stats.equivalence_power import (
    POWER,
    Side,
    auc_null,
    auc_observations,
    observations_for,
    smallest_margin,
    t_below,
    t_quantile,
    tost_power,
)
from sordino.stats.ranking import auc_error, delong

__all__ = ["Equivalence", "auc_tost", "paired_tost", "welch_tost"]


@dataclass(frozen=True, kw_only=True)
class Equivalence:
    """Whether a `difference` is within ± `margin`, and what the sample could have shown.

    `difference` has its 1 − 2α interval: within the margin exactly where `p_value`, the larger of the two one-sided
    ones, is at most α. `power` is the probability of that where there is no difference at all, at the spread that was
    seen; `detectable` the smallest margin for which it is 80 %, None where no spread can be seen; `needs` the
    observations of each kind for which it is 80 % at this margin, where there are fewer.
    """

    difference: Interval
    margin: float
    p_value: float
    power: float
    detectable: float | None
    needs: int | None = None


@dataclass(frozen=True, kw_only=True)
class _Side:
    """The mean of one kind of observations, its squared error, its groups, and the deviation of one of them."""

    mean: float
    square: float
    groups: int

    @classmethod
    def of(cls, name: str, values: ArrayLike, group: ArrayLike | None) -> "_Side":
        array = check_numbers(name, values, finite=True)
        codes, groups = group_codes(group, array.size)
        if not groups:
            return cls(mean=math.nan, square=math.nan, groups=0)
        mean = float(array.mean())
        if groups < 2:
            return cls(mean=mean, square=math.nan, groups=groups)
        residual: Floats = group_sums(array - mean, codes, groups) / array.size
        square = groups / (groups - 1) * float(residual @ residual)
        # Rounding of a mean of equal numbers is no spread.
        return cls(mean=mean, square=0.0 if square < 1e-28 * max(1.0, mean**2) else square, groups=groups)

    @property
    def spread(self) -> float:
        return math.sqrt(self.square * self.groups)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is asked of a difference."""

    margin: float
    alpha: float
    side: Side

    def __post_init__(self) -> None:
        if not 0 < self.margin < math.inf:
            raise ConfigError(
                f"margin is {self.margin}.", "Give the largest difference that is of no account, above 0."
            )
        if not 0 < self.alpha < 0.5:
            raise ConfigError(f"alpha is {self.alpha}, which is not in (0, 0.5).", "0.05 is usual.")

    @property
    def confidence(self) -> float:
        return 1 - 2 * self.alpha

    def p_value(self, value: float, error: float, df: float) -> float:
        above = t_below((value - self.margin) / error, df)
        below = 0.0 if self.side == "above" else 1 - t_below((value + self.margin) / error, df)
        return max(above, below)

    def within(self, low: float, high: float) -> bool:
        return high <= self.margin and (self.side == "above" or low >= -self.margin)


def _judged(asked: _Asked, value: float, sides: tuple[_Side, ...], df: float, method: str) -> Equivalence:
    error = math.sqrt(sum(side.square for side in sides))
    reach = t_quantile(1 - asked.alpha, df) * error
    power = tost_power(asked.margin, error, df, asked.alpha, asked.side)
    spreads = tuple(side.spread for side in sides)
    needs = None if power >= POWER else observations_for(asked.margin, spreads, POWER, asked.alpha, asked.side)
    interval = Interval(
        value=value,
        low=value - reach,
        high=value + reach,
        n=sum(side.groups for side in sides),
        method=method,
        confidence=asked.confidence,
        needs=needs,
    )
    return Equivalence(
        difference=interval,
        margin=asked.margin,
        p_value=asked.p_value(value, error, df),
        power=power,
        detectable=smallest_margin(error, df, POWER, asked.alpha, asked.side),
        needs=needs,
    )


def _unresolved(asked: _Asked, sides: tuple[_Side, ...], method: str) -> Equivalence:
    """Some side has fewer than two groups, so that its spread cannot be seen; the other's stands for it in `needs`."""
    seen = [side.spread for side in sides if side.groups >= 2]
    needs = 2 if not seen else observations_for(asked.margin, (max(seen),) * len(sides), POWER, asked.alpha, asked.side)
    interval = Interval(
        value=None, low=-UNBOUNDED, high=UNBOUNDED, n=sum(side.groups for side in sides), method=method,
        confidence=asked.confidence, needs=needs,
    )  # fmt: skip
    return Equivalence(
        difference=interval, margin=asked.margin, p_value=1.0, power=0.0, detectable=None, needs=needs
    )  # fmt: skip


def _by_intervals(asked: _Asked, value: float, interval: Callable[[float], tuple[float, float]]) -> tuple[float, float]:
    """The smallest α whose interval lies within the margin, and half the width of the one asked for.

    For intervals that no standard error is behind; `interval` takes a one-sided level.
    """
    low, high = interval(asked.alpha)
    if not asked.within(*interval(0.5 - 1e-12)):
        return 1.0, max(value - low, high - value)
    bad, good = 0.0, 0.5
    for _ in range(60):
        middle = (bad + good) / 2
        bad, good = (bad, middle) if asked.within(*interval(middle)) else (middle, good)
    return good, max(value - low, high - value)


def _without_spread(asked: _Asked, value: float, sides: tuple[_Side, ...], bound: float | None) -> Equivalence:
    """All observations of a kind are equal: of values that are `bound` apart at most, few of those unseen differ.

    A share above 1 − α^(1/n) of others would have shown itself among n (Clopper–Pearson), and each moves the mean by
    `bound` at most. Values without a bound are taken to be equal, as where a model is compared with itself.
    """

    def interval(alpha: float) -> tuple[float, float]:
        width = 0.0 if bound is None else bound
        reach = sum(width * -math.expm1(math.log(alpha / len(sides)) / side.groups) for side in sides)
        return value - reach, value + reach

    def enough(n: int) -> bool:
        return bound is None or bound * len(sides) * -math.expm1(math.log(asked.alpha / len(sides)) / n) <= asked.margin

    p_value, reach = _by_intervals(asked, value, interval)
    power, needs = float(reach <= asked.margin), None
    if not power:
        needs = next((2**k for k in range(1, 21) if enough(2**k)), None)
        if needs is not None:
            needs = next(n for n in range(needs // 2, needs + 1) if enough(n))
    method = "no spread between groups" + ("" if bound is None else ": Clopper–Pearson on what was not seen")
    low, high = interval(asked.alpha)
    return Equivalence(
        difference=Interval(
            value=value, low=low, high=high, n=sum(side.groups for side in sides), method=method,
            confidence=asked.confidence, needs=needs,
        ),
        margin=asked.margin,
        p_value=0.0 if bound is None and abs(value) < asked.margin else p_value,
        power=power,
        detectable=reach,
        needs=needs,
    )  # fmt: skip


def _described(name: str, records: int, groups: int) -> str:
    return name if records == groups else f"{name}, clustered: {records} records"


def welch_tost(  # noqa: PLR0913 - two samples with their groups, and what is asked of them
    first: ArrayLike,
    second: ArrayLike,
    margin: float,
    *,
    groups: tuple[ArrayLike, ArrayLike] | None = None,
    alpha: float = 0.05,
    side: Side = "both",
    bound: float | None = None,
) -> Equivalence:
    """Is the mean of `first` (n,) that of `second` (m,), to within `margin`? Unequal variances (Welch 1947).

    With `groups` (labels (n,) and (m,)) the errors are clustered, and groups give the degrees of freedom. `bound` is
    how far apart two values can be at most: it is needed only where there is no spread at all. Fewer than two groups
    on a side leave it open. Raises `AuditError` for numbers that are not finite.
    """
    asked = _Asked(margin=margin, alpha=alpha, side=side)
    labels = (None, None) if groups is None else groups
    sides = (_Side.of("first", first, labels[0]), _Side.of("second", second, labels[1]))
    count = np.size(first) + np.size(second)
    method = _described("difference of means, Welch", count, sides[0].groups + sides[1].groups)
    if min(s.groups for s in sides) < 2:
        return _unresolved(asked, sides, method)
    value = sides[0].mean - sides[1].mean
    total = sides[0].square + sides[1].square
    if total == 0:
        return _without_spread(asked, value, sides, bound)
    df = total**2 / sum(s.square**2 / (s.groups - 1) for s in sides)
    return _judged(asked, value, sides, df, method)


def paired_tost(
    differences: ArrayLike,
    margin: float,
    *,
    group: ArrayLike | None = None,
    alpha: float = 0.05,
    side: Side = "both",
    bound: float | None = None,
) -> Equivalence:
    """Is the mean of paired `differences` (n,) 0, to within `margin`? Clustered by `group` (n,); see `welch_tost`."""
    asked = _Asked(margin=margin, alpha=alpha, side=side)
    one = _Side.of("differences", differences, group)
    method = _described("mean of paired differences, t", np.size(differences), one.groups)
    if one.groups < 2:
        return _unresolved(asked, (one,), method)
    if one.square == 0:
        return _without_spread(asked, one.mean, (one,), None if bound is None else 2 * bound)
    return _judged(asked, one.mean, (one,), float(one.groups - 1), method)


def auc_tost(
    scores: ArrayLike, member: ArrayLike, margin: float, *, group: ArrayLike | None = None, alpha: float = 0.05
) -> Equivalence:
    """Is the AUC of `scores` (n,) for telling `member` (n,) from others ½, to within `margin`?

    The difference is AUC − ½, its error DeLong's, clustered by `group`, and its degrees of freedom Satterthwaite's, as
    in the test of Brunner and Munzel (Biometrical Journal 42, 2000). Power is that of scores that tell nothing, with a
    record from each group. Raises `AuditError` for NaN or where one kind is missing.
    """
    asked = _Asked(margin=margin, alpha=alpha, side="both")
    found = auc_error(scores, member, group)
    inside, outside = found.groups
    null, free = auc_null(inside, outside)
    power = tost_power(margin, null, free, alpha)
    needs = auc_observations(margin, POWER, alpha) if power < POWER else None
    value, method = found.value - 0.5, _described("AUC − ½, DeLong", np.size(scores), inside + outside)
    low, high, p_value = -UNBOUNDED, UNBOUNDED, 1.0
    if min(inside, outside) >= 2 and found.error > 0:
        reach = t_quantile(1 - alpha, found.df) * found.error
        low, high, p_value = value - reach, value + reach, asked.p_value(value, found.error, found.df)
    elif min(inside, outside) >= 2:

        def interval(level: float) -> tuple[float, float]:
            limits = delong(scores, member, group, confidence=max(1e-12, 1 - 2 * level))
            return limits.low - 0.5, limits.high - 0.5

        (low, high), (p_value, _) = interval(alpha), _by_intervals(asked, value, interval)
        method += ", no variance to estimate"
    resolved = min(inside, outside) >= 2
    return Equivalence(
        difference=Interval(
            value=value if resolved else None, low=low, high=high, n=inside + outside, method=method,
            confidence=asked.confidence, needs=needs,
        ),
        margin=margin,
        p_value=p_value,
        power=power if resolved else 0.0,
        detectable=smallest_margin(null, free, POWER, alpha),
        needs=needs,
    )  # fmt: skip
