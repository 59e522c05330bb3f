"""What a test of equivalence can show before anything is measured: its power, by how much, and with how many."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
from scipy.special import gammaincinv, gammaln, ndtr, ndtri, stdtr, stdtrit

from sordino.errors import ConfigError
from sordino.stats.common import Floats, check_count, check_fraction

__all__ = [
    "POWER",
    "Side",
    "auc_half_width",
    "auc_null",
    "auc_observations",
    "observations_for",
    "smallest_margin",
    "t_below",
    "t_quantile",
    "tost_power",
]

Side = Literal["both", "above"]
"""Which differences count: both ways, or only those above the margin (then it is a test of non-inferiority)."""

POWER = 0.8
"""What "would be shown" means."""

MOST = 1_000_000
"""More observations than this count as out of reach."""

# From here on t is normal to ten digits.
_MANY = 1e7


@lru_cache(maxsize=1)
def _rule() -> tuple[Floats, Floats]:
    nodes, weights = np.polynomial.legendre.leggauss(200)
    return (nodes + 1) / 2, weights / 2


def t_quantile(level: float, df: float) -> float:
    """The quantile of t, or of the normal distribution for infinitely many `df`."""
    return float(ndtri(level) if df > _MANY else stdtrit(df, level))


def t_below(t: float, df: float) -> float:
    """P(T ≤ t) for `df` degrees of freedom, which may be infinite."""
    return float(ndtr(t) if df > _MANY else stdtr(df, t))


def tost_power(margin: float, error: float, df: float, alpha: float = 0.05, side: Side = "both") -> float:
    """The probability that no difference at all is shown to be within `margin`, exactly.

    `error` is the standard error of the difference, estimated with `df` degrees of freedom. An integral over the
    estimate of the error: a bivariate noncentral t probability (Phillips, Journal of Pharmacokinetics and
    Biopharmaceutics 18, 1990), without the approximation that both limits are independent.
    """
    check_fraction("alpha", alpha)
    if not (margin > 0 and error >= 0 and df > 0):
        raise ConfigError(
            f"margin is {margin}, error {error}, df {df}.", "Margin and df are above 0, the error is not below."
        )
    if error == 0 or margin / error > 1e12:
        return 1.0
    t, reach = t_quantile(1 - alpha, df), margin / error
    if df > _MANY:
        return float(max(0.0, 2 * ndtr(reach - t) - 1) if side == "both" else ndtr(reach - t))
    # s is the estimated error over the true one; s² · df is χ² with df degrees of freedom.
    low, high = (math.sqrt(2 * float(gammaincinv(df / 2, level)) / df) for level in (1e-14, 1 - 1e-14))
    if side == "both":
        high = min(high, reach / t)
    if high <= low:
        return 0.0
    nodes, weights = _rule()
    s = low + (high - low) * nodes
    density = np.exp(
        math.log(2) + df / 2 * math.log(df / 2) - float(gammaln(df / 2)) + (df - 1) * np.log(s) - df * s**2 / 2
    )
    inside = ndtr(reach - t * s)
    if side == "both":
        inside = 2 * inside - 1
    return float(np.clip((weights * inside * density).sum() * (high - low), 0.0, 1.0))


def smallest_margin(error: float, df: float, power: float = POWER, alpha: float = 0.05, side: Side = "both") -> float:
    """The smallest margin within which no difference at all is shown to be with probability `power`.

    In standard deviations of one observation where `error` is √(1/n + 1/m): 5 against 5 give 2.03, and 1 against 3
    5.32; the usual approximation (t₁₋α + t₁₋β/₂)·error gives 2.06 and 5.55.
    """
    check_fraction("power", power)
    if error == 0:
        return 0.0
    from scipy.optimize import brentq

    high = error
    while tost_power(high, error, df, alpha, side) < power:
        high *= 2
    return float(brentq(lambda margin: tost_power(margin, error, df, alpha, side) - power, 1e-9 * error, high))


def observations_for(
    margin: float, spreads: tuple[float, ...], power: float = POWER, alpha: float = 0.05, side: Side = "both"
) -> int | None:
    """How many observations of each kind show that no difference is within `margin`, with probability `power`.

    `spreads` are the standard deviations of an observation: of one kind, as paired differences are, or of two. None
    where a million are not enough.
    """
    squares = [spread**2 for spread in spreads]
    total = sum(squares)

    def enough(n: int) -> bool:
        df = (n - 1) * total**2 / sum(square**2 for square in squares) if total else float(n - 1)
        return tost_power(margin, math.sqrt(total / n), df, alpha, side) >= power

    return _fewest(enough)


def _fewest(enough: Callable[[int], bool]) -> int | None:
    """The least n from 2 that is `enough`, as all above it are; None where a million are not."""
    low, high = 1, 2
    while not enough(high):
        if high > MOST:
            return None
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def auc_null(members: int, others: int) -> tuple[float, float]:
    """The standard error of an AUC where scores tell nothing, and its degrees of freedom, for `tost_power`."""
    return auc_half_width(members, others) / float(ndtri(0.975)), max(1.0, members + others - 2.0)


def auc_observations(margin: float, power: float = POWER, alpha: float = 0.05) -> int | None:
    """How many of each kind show that an AUC of ½ is within ½ ± `margin`, with probability `power`."""
    return _fewest(lambda n: tost_power(margin, *auc_null(n, n), alpha) >= power)


def auc_half_width(members: int, others: int, confidence: float = 0.95) -> float:
    """Half the width of an AUC's interval where scores tell nothing: z·√((m + n + 1)/12mn), Mann–Whitney's variance.

    ± 0.18 at 20 against 20, ± 0.04 at 400 against 400 (95 %).
    """
    m, n = check_count("members", members, 1), check_count("others", others, 1)
    check_fraction("confidence", confidence)
    return float(ndtri((1 + confidence) / 2)) * math.sqrt((m + n + 1) / (12 * m * n))
