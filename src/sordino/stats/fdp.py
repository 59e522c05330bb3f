"""The f-DP lower bound from one run: guesses of coins against a Gaussian trade-off curve."""

import math
from statistics import NormalDist

from sordino.stats.common import check_count, check_fraction, largest
from sordino.stats.epsilon import epsilon_from_gdp

__all__ = ["epsilon_f_dp", "f_dp_mu", "f_dp_p_value"]

_ROOT2 = math.sqrt(2)
_QUANTILE = NormalDist().inv_cdf


def rejected(mu: float, m: int, r: int, v: int, alpha: float) -> bool:
    """Whether v of r guesses about m coins are too many for μ-Gaussian DP at level `alpha`; O(v).

    R and H bound what i or more right guesses can come to, were v of them likelier than α. Both only grow,
    so the walk ends as soon as their sum exceeds r/m.
    """
    right, wrong, most = alpha * v / m, alpha * (r - v) / m, r / m
    for i in range(v - 1, -1, -1):
        if right + wrong > most:
            return True
        if not 0 < right < 1:  # nothing is likelier than α, or all is
            return right > 0
        more = max(wrong, math.erfc((mu - _QUANTILE(right)) / _ROOT2) / 2)
        right, wrong = right + i / (r - i) * (more - wrong), more
    return right + wrong > most


def _check(m: int, r: int, v: int) -> None:
    check_count("m", m, 0)
    check_count("r", r, 0, m)
    check_count("v", v, 0, r)


def f_dp_p_value(mu: float, m: int, r: int, v: int) -> float:
    """Test "the training is μ-Gaussian DP" by v right of r guesses about m fair coins: the p-value.

    The smallest level at which algorithm 3 of Mahloujifar, Melis and Chaudhuri, "Auditing f-differential
    privacy in one run", 2024, rejects. Needs r fixed before the scores were seen.
    """
    _check(m, r, v)
    return 1.0 if r == 0 else largest(lambda alpha: not rejected(mu, m, r, v, alpha), 0.0, 1.0)


def f_dp_mu(m: int, r: int, v: int, confidence: float = 0.95) -> float:
    """Bound the Gaussian-DP parameter from below: the largest μ that v right of r guesses reject, else 0.

    m fair coins, r guesses fixed in advance. About sixty evaluations of O(v) each. Mahloujifar et al. 2024.
    """
    _check(m, r, v)
    alpha = 1 - check_fraction("confidence", confidence)
    if r == 0 or not rejected(0.0, m, r, v, alpha):
        return 0.0
    high = 1.0
    while rejected(high, m, r, v, alpha):
        high *= 2
    return largest(lambda mu: rejected(mu, m, r, v, alpha), 0.0, high)


def epsilon_f_dp(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    """Bound ε at δ from below for mechanisms whose trade-off curve is Gaussian.

    ε(μ, δ) of the Gaussian mechanism at `f_dp_mu`. Tighter than `epsilon_one_run`, and about less: it rejects
    "μ-Gaussian DP", which an (ε, δ)-DP mechanism of another curve need not be. Infinite at δ = 0
    where any μ > 0 is rejected, since no Gaussian mechanism is (ε, 0)-DP.
    """
    return epsilon_from_gdp(f_dp_mu(m, r, v, confidence), delta)
