"""Audits of mechanisms whose ε is known, by the thousand: does a bound exceed the truth too often?

An audit sees `scores` (m,) and `coins` (m,) and returns ε̂. Under the null the coins are independent of the
scores, so any ε̂ > 0 is an error. With ε > 0 the scores are either randomised response, a coin told rightly with
probability e^ε/(1+e^ε) and ties broken at random, or coin·μ + N(0, 1). Coins are independent of each other, so
that bounds made for independent models (Clopper–Pearson, GDP at one threshold) must hold here as well.
"""

import math
from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from scipy.special import betaincinv, ndtri

from sordino.audit.evaluate import Evidence, _strongest
from sordino.results import AuditPlan
from sordino.stats import (
    epsilon_f_dp,
    epsilon_from_gdp,
    epsilon_one_run,
    epsilon_two_sided,
    gdp_mu,
    max_t,
    one_run_guesses,
    three_way_split,
)

__all__ = [
    "BOUNDS", "DELTA", "GAUSSIANS", "RESPONSES", "TRUTHS", "above", "best_of_budgets", "gaussian", "headline", "limit",
    "null", "only_in", "response",
]  # fmt: skip

DELTA, SHARE, CONFIDENCE = 1e-5, 0.2, 0.95
RESPONSES, GAUSSIANS = (0.5, 1.0, 2.0, 4.0), (0.5, 1.0, 2.0)
BUDGETS = tuple(np.linspace(0.1, 1.0, 10))

Audit = Callable[[np.ndarray, np.ndarray], float]
Draw = Callable[[np.random.Generator, int], tuple[np.ndarray, np.ndarray]]


def limit(audits: int) -> float:
    """5 % and two standard errors."""
    return 0.05 + 2 * math.sqrt(0.05 * 0.95 / audits)


one_run_bound = lru_cache(maxsize=None)(lambda m, r, v: epsilon_one_run(m, r, v, DELTA, CONFIDENCE))
f_dp_bound = lru_cache(maxsize=None)(lambda m, r, v: epsilon_f_dp(m, r, v, DELTA, CONFIDENCE))


def one_run(scores: np.ndarray, coins: np.ndarray) -> float:
    """Steinke et al. 2023: a fifth of the coins guessed, half of them in and half out."""
    return one_run_bound(scores.size, *one_run_guesses(scores, coins, SHARE))


def f_dp(scores: np.ndarray, coins: np.ndarray) -> float:
    """Mahloujifar et al. 2024, with the same guesses."""
    return f_dp_bound(scores.size, *one_run_guesses(scores, coins, SHARE))


def _counts(scores: np.ndarray, coins: np.ndarray, threshold: float) -> tuple[int, int, int, int]:
    above = scores > threshold
    return int((above & coins).sum()), int(coins.sum()), int((above & ~coins).sum()), int((~coins).sum())


def _threshold(scores: np.ndarray, coins: np.ndarray) -> float:
    """The threshold at which the two-sided bound of these coins is greatest, of 39 quantiles."""
    grid = np.quantile(scores, np.linspace(0.025, 0.975, 39))
    inside, outside = np.sort(scores[coins]), np.sort(scores[~coins])
    tp = inside.size - np.searchsorted(inside, grid, "right")
    fp = outside.size - np.searchsorted(outside, grid, "right")
    tail = (1 - CONFIDENCE) / 2
    low = np.where(tp == 0, 0, betaincinv(np.maximum(tp, 1), inside.size - tp + 1, tail))
    whole = fp == outside.size
    high = np.where(whole, 1, betaincinv(fp + 1, np.where(whole, 1, outside.size - fp), 1 - tail))
    return float(grid[np.argmax(np.maximum(low / high, (1 - high) / (1 - low)))])


def _halves(scores: np.ndarray, coins: np.ndarray) -> tuple[int, int, int, int]:
    """Counts on every second coin at the threshold that the others chose."""
    return _counts(scores[1::2], coins[1::2], _threshold(scores[::2], coins[::2]))


def two_sided(scores: np.ndarray, coins: np.ndarray) -> float:
    """Clopper–Pearson limits at one threshold, chosen on a disjoint half."""
    return epsilon_two_sided(*_halves(scores, coins), DELTA, CONFIDENCE)


def gdp(scores: np.ndarray, coins: np.ndarray) -> float:
    """The Gaussian-DP parameter at such a threshold, as ε."""
    return epsilon_from_gdp(gdp_mu(*_halves(scores, coins), CONFIDENCE), DELTA)


BOUNDS: Mapping[str, Audit] = {"one-run": one_run, "f-DP one-run": f_dp, "two-sided": two_sided, "GDP": gdp}
GAUSSIAN_ONLY = ("f-DP one-run", "GDP")


def only_in(bound: Callable[[int, int, int], float], scores: np.ndarray, coins: np.ndarray) -> float:
    """One run again, all guesses "in": as valid with fair coins, and no cover for unfair ones."""
    r = int(SHARE * scores.size)
    return bound(scores.size, r, int(coins[np.argsort(scores)[-r:]].sum()))


def best_of_budgets(bound: Callable[[int, int, int], float], scores: np.ndarray, coins: np.ndarray) -> float:
    """The mutant: ten guess budgets are tried on the evaluated coins, and the greatest bound is told."""
    ranked = coins[np.argsort(scores)]
    right = np.cumsum(~ranked) + np.cumsum(ranked[::-1])  # of the first half out and the last half in
    halves = [int(share * scores.size / 2) for share in BUDGETS]
    return max(bound(scores.size, 2 * half, int(right[half - 1])) for half in halves)


def null(rng: np.random.Generator, m: int, fair: float = 0.5) -> tuple[np.ndarray, np.ndarray]:
    """Scores that know nothing of the coins."""
    return rng.normal(size=m), rng.random(m) < fair


def response(eps: float) -> Draw:
    """Randomised response: exactly (ε, 0)-DP."""

    def draw(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray]:
        coins = rng.random(m) < 0.5
        told = np.where(rng.random(m) < 1 / (1 + math.exp(-eps)), coins, ~coins)
        return told + 0.5 * rng.random(m), coins

    return draw


def gaussian(mu: float) -> Draw:
    """The Gaussian mechanism: exactly μ-Gaussian DP."""

    def draw(rng: np.random.Generator, m: int) -> tuple[np.ndarray, np.ndarray]:
        coins = rng.random(m) < 0.5
        return rng.normal(size=m) + mu * coins, coins

    return draw


def _response_truth(eps: float, bound: str) -> float:
    """What a bound on randomised response may not exceed.

    Its own ε at δ; for bounds that presume a Gaussian curve, that of the least μ for which it is
    μ-Gaussian DP: the curve that touches the corner of randomised response's.
    """
    if bound in GAUSSIAN_ONLY:
        return epsilon_from_gdp(2 * float(ndtri(1 / (1 + math.exp(-eps)))), DELTA)
    return math.log(math.exp(eps) - DELTA * (1 + math.exp(eps)))


# (mechanism, bound) → how scores are drawn, and the ε that the bound may not exceed.
TRUTHS: Mapping[tuple[str, str], tuple[Draw, float]] = {
    **{(f"response {e:g}", b): (response(e), _response_truth(e, b)) for e in RESPONSES for b in BOUNDS},
    **{(f"gaussian {mu:g}", b): (gaussian(mu), epsilon_from_gdp(mu, DELTA)) for mu in GAUSSIANS for b in BOUNDS},
}


def above(
    draw: Draw, audits: int, m: int, checks: Mapping[str, tuple[Audit, float]], seed: int = 0
) -> dict[str, float]:
    """The share of `audits` in which each audit's ε̂ exceeds its truth; all see the same draws of m coins."""
    rng = np.random.default_rng([seed, m])
    found = dict.fromkeys(checks, 0)
    for _ in range(audits):
        scores, coins = draw(rng, m)
        for name, (audit, truth) in checks.items():
            found[name] += audit(scores, coins) > truth
    return {name: count / audits for name, count in found.items()}


def headline(audits: int, m: int, seed: int = 0, attacks: int = 12) -> dict[str, float]:
    """How often a dozen correlated attacks that know nothing are told from chance, and their false positives.

    As the audit does it: max-T over all; and the strongest, chosen, calibrated and reported on three parts.
    """
    plan = AuditPlan(fpr=(0.1,), shuffles=99)
    rng = np.random.default_rng([seed, m, attacks])
    rows = []
    for number in range(audits):
        member = rng.random(m) < 0.5
        scores = rng.normal(size=m) + rng.normal(size=(attacks, m))
        p_value, _ = max_t(scores, member, None, plan.shuffles, number)
        choose, calibrate = three_way_split(member, None, number)
        parts = {"choose": choose, "calibrate": calibrate, "calibration": calibrate}
        evidence = Evidence(member=member, group=np.arange(m), **parts)
        name, found = _strongest([str(i) for i in range(attacks)], scores, evidence, plan)
        rest, auc = ~choose, found["auc"]
        rows.append((
            p_value < 0.05,
            auc.low > 0.5 or auc.high < 0.5,
            one_run(scores[int(name)][rest], member[rest]) > 0,
            found["realised fpr@0.1fpr"].value,
        ))  # fmt: skip
    names = ("max-T p < 0.05", "AUC interval without 1/2", "one-run bound above 0", "realised FPR, meant to be 0.1")
    return dict(zip(names, np.mean(rows, axis=0).tolist(), strict=True))
