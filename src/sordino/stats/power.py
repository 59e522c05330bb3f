"""How much evidence an audit needs: coins for a bound on ε, records for a TPR at an FPR or for an AUC."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from scipy.special import betainc, ndtr

from sordino.errors import ConfigError
from sordino.stats.common import check_count, check_fraction, largest
from sordino.stats.epsilon import epsilon_from_gdp, one_run_p_value
from sordino.stats.fdp import rejected
from sordino.stats.proportions import limits
from sordino.stats.ranking import smallest_detectable_auc
from sordino.stats.thresholds import RESOLUTION

__all__ = [
    "MOST_COINS",
    "Coins",
    "Goal",
    "bound_power",
    "coins_for_bound",
    "gaussian_accuracy",
    "gdp_from_epsilon",
    "members_for_tpr",
    "nonmembers_for_fpr",
    "records_for_auc",
    "response_accuracy",
]

MOST_COINS = 200_000
"""Beyond this many coins a goal counts as out of reach."""

# Not all of them: half of the guesses are "in", and that many coins need not have said so.
_SHARES = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)


@dataclass(frozen=True, kw_only=True)
class Goal:
    """A lower bound that an audit is to reach: ε̂ ≥ `epsilon` at `delta`, by the `bound` of `AuditPlan`.

    Raises `ConfigError` for values that cannot be meant.
    """

    epsilon: float
    delta: float = 1e-5
    bound: Literal["one-run", "f-dp"] = "one-run"
    confidence: float = 0.95

    def __post_init__(self) -> None:
        """Check the values."""
        check_fraction("delta", self.delta, zero=self.bound == "one-run")
        check_fraction("confidence", self.confidence)
        if not 0 < self.epsilon < 100:
            raise ConfigError(f"epsilon is {self.epsilon}.", "Give the ε̂ to reach, above 0 and below 100.")


@dataclass(frozen=True, kw_only=True)
class Coins:
    """How many coins a goal takes, the share of them to guess, and the power that gives."""

    m: int
    share: float
    power: float


def gdp_from_epsilon(epsilon: float, delta: float) -> float:
    """Find the μ whose Gaussian mechanism is (ε, δ)-DP and no better: the inverse of `epsilon_from_gdp`."""
    check_fraction("delta", delta)
    return largest(lambda mu: epsilon_from_gdp(mu, delta) <= epsilon, 0.0, 10 + 2 * math.sqrt(epsilon))


def gaussian_accuracy(mu: float, share: float) -> float:
    """The share of right guesses where scores are coin·μ + N(0, 1) and the `share` at both ends is guessed.

    Half of the guesses are "in" and half "out", as in `one_run_guesses`; by symmetry both are as often right.
    """
    tail = check_fraction("share", share, one=True) / 2

    def above(threshold: float) -> bool:
        return float(ndtr(-threshold) + ndtr(mu - threshold)) / 2 >= tail

    threshold = largest(above, -40.0, 40.0 + mu)
    return float(ndtr(mu - threshold) / (ndtr(-threshold) + ndtr(mu - threshold)))


def response_accuracy(epsilon: float) -> float:
    """The share of right guesses under randomised response, e^ε/(1 + e^ε), whatever share below 0.9 is guessed."""
    return 1 / (1 + math.exp(-epsilon))


def _fewest(goal: Goal, m: int, r: int) -> int | None:
    """The fewest right of r guesses about m coins that reach the goal; None where not even all do."""
    alpha = 1 - goal.confidence
    mu = gdp_from_epsilon(goal.epsilon, goal.delta) if goal.bound == "f-dp" else 0.0

    def reached(v: int) -> bool:
        if goal.bound == "f-dp":
            return rejected(mu, m, r, v, alpha)
        return one_run_p_value(goal.epsilon, m, r, v, goal.delta) < alpha

    if not reached(r):
        return None
    low, high = 0, r
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if reached(middle) else (middle, high)
    return high


def bound_power(goal: Goal, m: int, share: float, accuracy: float) -> float:
    """The chance that m coins, of which `share` are guessed and each guess is right with `accuracy`, reach the goal.

    The number of right guesses is binomial: exactly for randomised response, and with very slightly too large
    a variance for other scores, whose guesses differ in how likely they are right.
    """
    check_count("m", m, 1)
    r = 2 * math.floor(check_fraction("share", share, one=True) * m / 2 + 1e-9)
    v = _fewest(goal, m, r) if r else None
    return 0.0 if v is None else float(betainc(v, r - v + 1, accuracy))


def coins_for_bound(goal: Goal, accuracy: Callable[[float], float], power: float = 0.8) -> Coins | None:
    """Find the fewest coins, and the share of them to guess, that reach the goal with probability `power`.

    `accuracy` gives the share of right guesses for a share guessed. To within 2 %; the power of whole numbers goes
    up and down a little. None where `MOST_COINS` do not suffice: more guesses cannot make up for their accuracy.
    """
    check_fraction("power", power)
    best: Coins | None = None
    for share in _SHARES:
        right = accuracy(share)

        def enough(m: int, share: float = share, right: float = right) -> bool:
            return bound_power(goal, m, share, right) >= power

        most = MOST_COINS if best is None else best.m - 1
        if not enough(most):
            continue
        few, many = 1, most
        while many - few > max(1, many // 50):
            middle = (few + many) // 2
            few, many = (few, middle) if enough(middle) else (middle, many)
        best = Coins(m=many, share=share, power=bound_power(goal, many, share, right))
    return best


def nonmembers_for_fpr(fpr: float, parts: int = 2) -> int:
    """How many non-members resolve a TPR at `fpr`: ten expected false positives in each of `parts`.

    Two parts for one attack (threshold, judged), three where the attack is chosen as well.
    """
    return parts * math.ceil(RESOLUTION / check_fraction("fpr", fpr) - 1e-9)


def members_for_tpr(tpr: float, half_width: float, confidence: float = 0.95) -> int:
    """How many members give a TPR of about `tpr` a Clopper–Pearson interval of ± `half_width`."""
    check_fraction("tpr", tpr)
    check_fraction("half_width", half_width)
    check_fraction("confidence", confidence)

    def wide(n: float) -> bool:
        low, high = limits(tpr * n, n, confidence)
        return (high - low) / 2 > half_width

    return math.floor(largest(wide, 1.0, 1e8)) + 1


def records_for_auc(auc: float, power: float = 0.8, alpha: float = 0.05) -> int:
    """How many members, and as many non-members, a test at `alpha` needs to find `auc` with probability `power`."""
    if not 0.5 < auc < 1:
        raise ConfigError(f"auc is {auc}.", "Give an AUC above 0.5 and below 1.")

    def short(n: float) -> bool:
        return smallest_detectable_auc(int(n), int(n), power, alpha) > auc

    return math.floor(largest(short, 1.0, 1e8)) + 1
