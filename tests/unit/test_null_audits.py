"""No bound exceeds the truth more often than it says, and two ways of cheating are caught by the same checks.

The small form runs 300 audits of 1,000 coins; the slow one 2,000 of 1,000 and of 10,000.
"""

from functools import partial

import numpy as np
import pytest
from null_audits import (
    BOUNDS,
    GAUSSIAN_ONLY,
    TRUTHS,
    above,
    best_of_budgets,
    f_dp_bound,
    headline,
    limit,
    null,
    one_run_bound,
    only_in,
)

CASES = [(300, 1_000), pytest.param(2_000, 1_000, marks=pytest.mark.slow)]
CASES += [pytest.param(2_000, 10_000, marks=pytest.mark.slow)]
MECHANISMS = list(dict.fromkeys(mechanism for mechanism, _ in TRUTHS))

pytestmark = pytest.mark.parametrize(("audits", "m"), CASES)


def test_under_the_null_no_bound_rejects_too_often(audits, m):
    checks = {name: (bound, 0.0) for name, bound in BOUNDS.items()}
    checks |= {"all in": (partial(only_in, one_run_bound), 0.0), "all in, f-DP": (partial(only_in, f_dp_bound), 0.0)}
    found = above(null, audits, m, checks)
    assert all(rate <= limit(audits) for rate in found.values()), found
    assert min(found["one-run"], found["f-DP one-run"], found["all in"]) > 0.01  # not because nothing is rejected


@pytest.mark.parametrize("mechanism", MECHANISMS)
def test_a_bound_exceeds_the_true_epsilon_no_more_often_than_it_says(mechanism, audits, m):
    draw = TRUTHS[mechanism, "one-run"][0]
    found = above(draw, audits, m, {name: (bound, TRUTHS[mechanism, name][1]) for name, bound in BOUNDS.items()})
    assert all(rate <= limit(audits) for rate in found.values()), found


def test_the_headline_of_twelve_attacks_is_found_in_chance_no_more_often_than_it_says(audits, m):
    found = headline(audits, m)
    realised = found.pop("realised FPR, meant to be 0.1")
    assert all(rate <= limit(audits) for rate in found.values()), found
    # Each audit has m/6 non-members to count on; the conformal threshold is drawn anew with every one.
    error = np.sqrt(2 * 0.1 * 0.9 / (m / 6) / audits)
    assert realised <= 0.1 + 2 * error


@pytest.mark.parametrize("bound", [one_run_bound, f_dp_bound], ids=["one-run", "f-dp"])
def test_coins_that_are_not_fair_fail_the_check(bound, audits, m):
    # Guessing half in and half out, a bias that favours one side harms the other: it takes guesses of one kind.
    mutant = {"mutant": (partial(only_in, bound), 0.0)}
    assert above(partial(null, fair=0.8), audits, m, mutant)["mutant"] > 0.9
    assert above(null, audits, m, mutant)["mutant"] <= limit(audits)


@pytest.mark.parametrize("bound", [one_run_bound, f_dp_bound], ids=["one-run", "f-dp"])
def test_a_budget_chosen_on_the_evaluated_coins_fails_the_check(bound, audits, m):
    found = above(null, audits, m, {"mutant": (partial(best_of_budgets, bound), 0.0)})
    assert found["mutant"] > limit(audits)


def test_bounds_for_gaussian_mechanisms_are_not_bounds_for_others(audits, m):
    # Why they are held against no claim of another curve: against the ε of randomised response they fail.
    draw, truth = TRUTHS["response 2", "one-run"]
    found = above(draw, audits, m, {name: (BOUNDS[name], truth) for name in GAUSSIAN_ONLY})
    assert min(found.values()) > 0.5, found
