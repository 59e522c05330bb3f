"""Planned evidence is enough: leaks planted at the planned strength and size are found as often as promised."""

import math
from functools import partial

import numpy as np
import pytest
from null_audits import DELTA, gaussian, response
from scipy.stats import binom

from sordino.errors import ConfigError
from sordino.stats import (
    clopper_pearson,
    epsilon_f_dp,
    epsilon_from_gdp,
    epsilon_one_run,
    max_t,
    one_run_guesses,
    smallest_detectable_auc,
    tpr_at_fpr,
)
from sordino.stats.power import (
    MOST_COINS,
    Goal,
    bound_power,
    coins_for_bound,
    gaussian_accuracy,
    gdp_from_epsilon,
    members_for_tpr,
    nonmembers_for_fpr,
    records_for_auc,
    response_accuracy,
)

BOUNDS = {"one-run": epsilon_one_run, "f-dp": epsilon_f_dp}
MU = gdp_from_epsilon(8, DELTA)
PLANTED = [
    ("one-run", 2.0, response(4), lambda share: response_accuracy(4)),
    ("one-run", 1.0, response(2), lambda share: response_accuracy(2)),
    ("one-run", 2.0, gaussian(MU), partial(gaussian_accuracy, MU)),
    ("f-dp", 4.0, gaussian(MU), partial(gaussian_accuracy, MU)),
]


@pytest.mark.parametrize(("bound", "epsilon", "draw", "accuracy"), PLANTED, ids=lambda v: str(v)[:8])
def test_a_planted_leak_is_found_with_the_power_that_was_promised(bound, epsilon, draw, accuracy):
    plan = coins_for_bound(Goal(epsilon=epsilon, delta=DELTA, bound=bound), accuracy, 0.8)
    rng, audits, made = np.random.default_rng(4), 400, {}
    reached = 0
    for _ in range(audits):
        r, v = one_run_guesses(*draw(rng, plan.m), plan.share)
        if v not in made:
            made[v] = BOUNDS[bound](plan.m, r, v, DELTA)
        reached += made[v] >= epsilon
    assert plan.power >= 0.8
    assert reached / audits == pytest.approx(plan.power, abs=3 * math.sqrt(0.8 * 0.2 / audits))


@pytest.mark.parametrize("bound", BOUNDS)
@pytest.mark.parametrize(("m", "share", "epsilon"), [(60, 1.0, 1.0), (200, 0.2, 0.5), (31, 0.4, 0.1)])
def test_power_is_the_sum_over_all_outcomes(bound, m, share, epsilon):
    r = 2 * math.floor(share * m / 2)
    for accuracy in (0.6, 0.9):
        expected = sum(binom.pmf(v, r, accuracy) for v in range(r + 1) if BOUNDS[bound](m, r, v, DELTA) >= epsilon)
        found = bound_power(Goal(epsilon=epsilon, delta=DELTA, bound=bound), m, share, accuracy)
        assert found == pytest.approx(expected, abs=1e-9)


def test_a_tenth_fewer_coins_are_not_enough():
    goal, accuracy = Goal(epsilon=4, bound="f-dp"), partial(gaussian_accuracy, MU)
    plan = coins_for_bound(goal, accuracy)
    others = [bound_power(goal, int(0.9 * plan.m), s, accuracy(s)) for s in (0.02, 0.05, 0.1, 0.2, 0.4, 0.7)]
    assert max(others) < 0.8 <= plan.power


def test_a_bound_that_no_number_of_coins_reaches_is_none():
    assert coins_for_bound(Goal(epsilon=2), lambda share: response_accuracy(2)) is None
    assert bound_power(Goal(epsilon=2), MOST_COINS, 0.7, response_accuracy(2)) < 0.06
    assert bound_power(Goal(epsilon=2), 1, 0.5, 0.9) == 0.0


def test_accuracies_are_those_of_simulated_scores():
    rng = np.random.default_rng(0)
    for mu, share in ((0.5, 0.2), (1.67, 0.05), (3.0, 1.0)):
        r, v = one_run_guesses(*gaussian(mu)(rng, 400_000), share)
        assert gaussian_accuracy(mu, share) == pytest.approx(v / r, abs=4 * math.sqrt(0.25 / r))
    assert gaussian_accuracy(0.0, 0.3) == pytest.approx(0.5)
    assert response_accuracy(0.0) == 0.5 and response_accuracy(math.log(3)) == pytest.approx(0.75)


def test_the_gaussian_parameter_is_the_inverse_of_its_epsilon():
    for epsilon in (0.3, 2.0, 8.0, 40.0):
        assert epsilon_from_gdp(gdp_from_epsilon(epsilon, 1e-6), 1e-6) == pytest.approx(epsilon, abs=1e-9)


def test_the_non_members_that_resolve_a_rate_do_and_fewer_do_not():
    rng = np.random.default_rng(1)
    for fpr in (0.1, 0.05, 0.03):
        need = nonmembers_for_fpr(fpr)
        for count, resolved in ((need, True), (need - 1, False)):
            member = np.arange(count + 50) < 50
            held = np.zeros(count + 50, dtype=bool)
            held[50 : 50 + count // 2] = True
            tpr = tpr_at_fpr(rng.normal(size=count + 50), member, held, fpr)[0]
            assert (tpr.value is not None) is resolved
        assert nonmembers_for_fpr(fpr, 3) == need // 2 * 3


@pytest.mark.parametrize(("tpr", "half"), [(0.1, 0.05), (0.5, 0.1), (0.01, 0.005)])
def test_the_members_give_the_width_and_fewer_do_not(tpr, half):
    n = members_for_tpr(tpr, half)

    def width(size):
        one = clopper_pearson(round(tpr * size), size)
        return (one.high - one.low) / 2

    assert width(n) == pytest.approx(half, rel=0.08) and width(int(0.8 * n)) > half


def test_the_records_find_the_auc_with_the_power_that_was_promised():
    n = records_for_auc(0.6)
    assert smallest_detectable_auc(n, n) <= 0.6 < smallest_detectable_auc(n - 2, n - 2)
    rng, member = np.random.default_rng(2), np.arange(2 * n) < n
    shift = 0.3583  # AUC = Φ(shift/√2) = 0.6
    found = [
        max_t((rng.normal(size=2 * n) + shift * member)[None], member, None, 199, seed)[0] <= 0.05
        for seed in range(300)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=3 * math.sqrt(0.16 / 300))


def test_what_cannot_be_meant_is_named():
    with pytest.raises(ConfigError, match="epsilon is -1"):
        Goal(epsilon=-1)
    with pytest.raises(ConfigError, match="delta is 0"):
        Goal(epsilon=1, delta=0, bound="f-dp")
    with pytest.raises(ConfigError, match=r"auc is 0\.4"):
        records_for_auc(0.4)
    with pytest.raises(ConfigError, match=r"power is 1"):
        coins_for_bound(Goal(epsilon=1), response_accuracy, 1.0)
