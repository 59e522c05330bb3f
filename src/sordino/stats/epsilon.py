"""Lower bounds on ε from guesses of membership: one-run, two-sided thresholds and Gaussian DP."""

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import betainc, erfcx, gammaln, ndtr, ndtri

from sordino.stats.common import (
    Floats,
    check_booleans,
    check_count,
    check_fraction,
    check_numbers,
    largest,
)
from sordino.stats.proportions import limits

__all__ = [
    "epsilon_from_gdp",
    "epsilon_one_run",
    "epsilon_two_sided",
    "gdp_mu",
    "one_run_guesses",
    "one_run_p_value",
]


def _log_choose(r: int, v: int) -> Floats:
    """Compute log C(r, k) for k = v − 1, …, 0."""
    k = np.arange(v - 1, -1, -1, dtype=np.float64)
    return np.asarray(gammaln(r + 1) - gammaln(k + 1) - gammaln(r - k + 1))


def _p_value(eps: float, r: int, v: int, weight: float, choose: Floats) -> float:
    """Compute the one-run p-value; `weight` is 2mδ and `choose` comes from `_log_choose`."""
    if v == 0:
        return 1.0
    log_q = -math.log1p(math.exp(-eps))
    p = float(betainc(v, r - v + 1, math.exp(log_q)))
    if weight > 0:
        k = np.arange(v - 1, -1, -1)
        mass = np.exp(choose + k * log_q + (r - k) * (log_q - eps))
        # β(v−i) − β(v) is the mass on v−i … v−1: a running sum, without cancellation.
        p += weight * float(np.max(mass.cumsum() / np.arange(1, v + 1)))
    return min(1.0, p)


def _check_one_run(m: int, r: int, v: int, delta: float) -> None:
    """Raise `ConfigError` unless 0 ≤ v ≤ r ≤ m and 0 ≤ δ < 1."""
    check_count("m", m, 0)
    check_count("r", r, 0, m)
    check_count("v", v, 0, r)
    check_fraction("delta", delta, zero=True)


def one_run_p_value(eps: float, m: int, r: int, v: int, delta: float) -> float:
    """Test "the training is (ε, δ)-DP" by v right of r guesses about m fair coins: the p-value.

    β + 2mδ max_{1≤i≤v} [β(v−i) − β(v)]/i with β(v) = P[Bin(r, e^ε/(1+e^ε)) ≥ v], at most 1.
    Steinke, Nasr and Jagielski, "Privacy auditing with one (1) training run", 2023, Theorem 5.2.
    """
    _check_one_run(m, r, v, delta)
    return _p_value(eps, r, v, 2 * m * delta, _log_choose(r, v))


def epsilon_one_run(m: int, r: int, v: int, delta: float, confidence: float = 0.95) -> float:
    """Bound ε from below: the largest that v right of r guesses about m coins reject, else 0.

    Valid if r was fixed before the scores were seen. O(v) memory, about a hundred p-values. Steinke
    et al. 2023.
    """
    _check_one_run(m, r, v, delta)
    alpha = 1 - check_fraction("confidence", confidence)
    choose, weight = _log_choose(r, v), 2 * m * delta

    def rejected(eps: float) -> bool:
        return _p_value(eps, r, v, weight, choose) < alpha

    if not rejected(0.0):
        return 0.0
    # β alone is Clopper–Pearson's bound on e^ε/(1+e^ε); the δ term only lowers it. Rounding may not.
    q = limits(v, r, confidence, "lower")[0]
    return largest(rejected, 0.0, math.log(q) - math.log1p(-q) + 1e-9)


def _scrambled(n: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    """Draw a fixed key per position (splitmix64), the same on every machine and version."""
    z = np.arange(1, n + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(z ^ (z >> np.uint64(31)))


def one_run_guesses(scores: ArrayLike, member: ArrayLike, share: float) -> tuple[int, int]:
    """Guess the highest scores "in" and the lowest "out": how many guesses r, how many right v.

    `scores` and `member` (m,), one per coin. r = 2⌊share·m/2⌋ depends on nothing but m and `share`;
    ties break by a fixed hash of the position, so no label can move a guess.
    """
    values = check_numbers("scores", scores)
    labels = check_booleans("member", member, values.size)
    half = math.floor(check_fraction("share", share, one=True) * values.size / 2 + 1e-9)
    order = np.lexsort((_scrambled(values.size), values))
    right = np.count_nonzero(~labels[order[:half]]) + np.count_nonzero(labels[order[values.size - half :]])
    return 2 * half, int(right)


def _rates(tp: int, n_pos: int, fp: int, n_neg: int, confidence: float) -> tuple[float, float]:
    """Lower limit of the TPR and upper limit of the FPR, each at half the error."""
    check_count("tp", tp, 0, check_count("n_pos", n_pos, 1))
    check_count("fp", fp, 0, check_count("n_neg", n_neg, 1))
    check_fraction("confidence", confidence)
    return limits(tp, n_pos, confidence)[0], limits(fp, n_neg, confidence)[1]


def epsilon_two_sided(tp: int, n_pos: int, fp: int, n_neg: int, delta: float, confidence: float = 0.95) -> float:
    """max{ln((TPR_lo − δ)/FPR_hi), ln((TNR_lo − δ)/FNR_hi), 0} at one threshold fixed in advance.

    A bound over independently trained models; on the records of one model an estimate, not a bound.
    Kairouz, Oh and Viswanath 2015, Theorem 2.1, with Clopper–Pearson limits at α/2 each.
    """
    check_fraction("delta", delta, zero=True)
    tpr, fpr = _rates(tp, n_pos, fp, n_neg, confidence)
    ratios = ((tpr - delta) / fpr, (1 - fpr - delta) / (1 - tpr))
    return max(0.0, math.log(max(*ratios, 1.0)))


def gdp_mu(tp: int, n_pos: int, fp: int, n_neg: int, confidence: float = 0.95) -> float:
    """Bound the Gaussian-DP parameter: the μ that one threshold's errors reject, 0 where none is.

    Φ⁻¹(1 − FPR_hi) − Φ⁻¹(FNR_hi); a bound over independent models only. Dong, Roth and Su 2022.
    """
    tpr, fpr = _rates(tp, n_pos, fp, n_neg, confidence)
    if tpr == 0 or fpr == 1:
        return 0.0
    return max(0.0, float(ndtri(tpr) - ndtri(fpr)))


def epsilon_from_gdp(mu: float, delta: float) -> float:
    """Convert μ-Gaussian DP to ε at δ, infinite for δ = 0 < μ. Dong, Roth and Su 2022, Corollary 2.13."""
    check_fraction("delta", delta, zero=True)
    if mu <= 0:
        return 0.0
    if delta == 0:
        return math.inf

    def exceeds(eps: float) -> bool:
        near, far = eps / mu - mu / 2, eps / mu + mu / 2
        scale = math.exp(-(near**2) / 2) / 2
        # e^ε Φ(−far) = scale·erfcx(far/√2): no overflow, and no cancellation in the tail.
        tail = scale * float(erfcx(near / math.sqrt(2))) if near > 0 else float(ndtr(-near))
        return tail - scale * float(erfcx(far / math.sqrt(2))) >= delta

    return largest(exceeds, 0.0, mu**2 / 2 - mu * float(ndtri(delta))) if exceeds(0.0) else 0.0
