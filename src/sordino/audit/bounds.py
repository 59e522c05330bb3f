"""The lower bound on ε from guesses of coins: one method and one number of guesses, both fixed before training."""

import numpy as np

from sordino import stats
from sordino.results import AuditPlan, Estimate

__all__ = ["from_coins", "value_of"]


def value_of(scores: np.ndarray, member: np.ndarray, plan: AuditPlan) -> float:
    """ε̂ from one score and one label a coin (m), by the plan's bound; 0 where there is nothing to guess."""
    return from_coins(scores, member, plan)[0].value or 0.0


def from_coins(
    scores: np.ndarray, member: np.ndarray, plan: AuditPlan, what: str = "coins"
) -> tuple[Estimate, int, int]:
    """ε̂ from one score and one label a coin (m), with the guesses made and those that were right.

    Source: Steinke, Nasr and Jagielski 2023, theorem 5.2, or Mahloujifar, Melis and Chaudhuri 2024.
    """
    guesses, right = stats.one_run_guesses(scores, member, plan.guess_share) if len(scores) else (0, 0)
    bound, count = stats.epsilon_f_dp if plan.bound == "f-dp" else stats.epsilon_one_run, len(member)
    value = bound(count, guesses, right, plan.delta, plan.confidence) if guesses else 0.0
    kind = "f-DP one-run lower bound for Gaussian mechanisms" if plan.bound == "f-dp" else "one-run lower bound"
    method = f"{kind}, {right} of {guesses} guesses right over {count} {what}, δ = {plan.delta:g}"
    high = stats.UNBOUNDED
    found = Estimate(value=value, low=value, high=high, n=count, method=method, confidence=plan.confidence)
    return found, guesses, right
