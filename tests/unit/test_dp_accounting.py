"""Accounting against published figures, exact formulas, and the order that any bound must keep."""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import dp_accounting
import pytest
from dp_accounting import rdp as rdp_library
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.dp import accounting
from sordino.dp.accounting import calibrate, curve, spend
from sordino.dp.events import (
    composed,
    decode_event,
    encode_event,
    fixed_size_gaussian,
    leaves,
    poisson_gaussian,
    repeated,
    shuffled_gaussian,
)
from sordino.dp.groups import gaussian_delta, generic_group, group
from sordino.dp.sampling import truncation
from sordino.errors import AccountingError, ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "accounting.json").read_text(encoding="utf-8"))
ADD, REPLACE = "add-or-remove-one", "replace-one"


def dp_sgd(case, sigma=None):
    return poisson_gaussian(case["q"], sigma or case["sigma"], case["steps"], units=10**6, cap=None)


def name(case):
    return "-".join(f"{key}{case[key]:g}" for key in ("q", "sigma", "steps", "mu", "target_epsilon") if key in case)


def check_dp_sgd(case, interval, key):
    spent = spend(dp_sgd(case), delta=case["delta"], relation=ADD, interval=interval)
    prv, pld = case["prv_accountant"], case["pld_dp_accounting"]
    # Figures that were refined beyond the interval asked for are held against the finest.
    expected = pld[key] if f"interval {interval:g}" in spent.accountant else pld["epsilon"]
    assert abs(spent.epsilon - expected) <= 2e-3 * (1 + spent.epsilon)
    assert spent.epsilon >= prv["lower"] - 1e-6
    assert 0 <= spent.lower <= min(spent.epsilon, prv["upper"])
    assert spent.rdp == pytest.approx(case["rdp_dp_accounting"]["epsilon"], rel=1e-9)
    if "exact_gaussian" in case:
        assert spent.lower <= case["exact_gaussian"] <= spent.epsilon


@pytest.mark.parametrize("case", GOLDEN["dp_sgd"], ids=name)
def test_epsilon_of_dp_sgd_equals_the_golden_figures(case):
    check_dp_sgd(case, 1e-3, "epsilon_vdi_1e-3")


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["dp_sgd"], ids=name)
def test_epsilon_of_dp_sgd_on_a_certificate_equals_the_golden_figures(case):
    check_dp_sgd(case, 1e-4, "epsilon")


def check_calibration(case, interval, too_much):
    target = {"epsilon": case["target_epsilon"], "delta": case["delta"], "relation": ADD}
    sigma = calibrate(lambda s: dp_sgd(case, s), **target, interval=interval)
    assert case["sigma_pld"] * (1 - 2e-4) <= sigma <= case["sigma_pld"] * (1 + too_much)
    at = {"delta": case["delta"], "relation": ADD, "interval": interval}
    assert spend(dp_sgd(case, sigma), **at).epsilon <= case["target_epsilon"]
    assert spend(dp_sgd(case, sigma / (1 + 1.1e-4)), **at).epsilon > case["target_epsilon"]


@pytest.mark.parametrize("case", GOLDEN["calibration"], ids=name)
def test_calibrated_noise_meets_the_target_and_no_less_would(case):
    # The golden σ is for interval 1e-4: where ten thousand steps are rounded up to 1e-3, more noise is needed.
    check_calibration(case, 1e-3, 4e-2 if case["steps"] == 10_000 else 1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("case", GOLDEN["calibration"], ids=name)
def test_calibrated_noise_equals_the_golden_figures(case):
    check_calibration(case, 1e-4, 2e-4)


@pytest.mark.parametrize("case", GOLDEN["gaussian"], ids=name)
def test_gaussian_composition_is_exact(case):
    event = poisson_gaussian(1.0, case["sigma"], case["steps"], units=10, cap=None)
    exact = group(event, 1, delta=case["delta"], relation=ADD)
    assert exact.epsilon == pytest.approx(case["epsilon"], rel=1e-8)
    for epsilon, delta in case["delta_at_epsilon"].items():
        assert gaussian_delta(case["mu"], float(epsilon)) == pytest.approx(delta, rel=1e-8, abs=1e-300)
    spent = spend(event, delta=case["delta"], relation=ADD)
    assert case["epsilon"] <= spent.epsilon <= case["epsilon"] + 2e-5
    assert spent.epsilon <= spent.rdp == pytest.approx(case["rdp_dp_accounting"], rel=1e-9)


@pytest.mark.parametrize("case", GOLDEN["group_privacy"], ids=name)
@pytest.mark.parametrize("size", [2, 5])
def test_group_privacy_equals_the_golden_figures(case, size):
    event = poisson_gaussian(1.0, 2 / case["mu"], 4, units=10, cap=None)
    expected = case[f"k={size}"]
    exact = group(event, size, delta=case["delta"], relation=ADD)
    assert exact.epsilon == pytest.approx(expected["epsilon"], rel=1e-8)
    assert exact.delta == case["delta"]
    assert exact.method.startswith("exact")
    epsilon, delta = generic_group(case["epsilon_k1"], case["delta"], size)
    assert epsilon == pytest.approx(expected["generic_epsilon"], rel=1e-8)
    assert delta == pytest.approx(expected["generic_delta"], rel=1e-8)


def test_group_privacy_of_a_sampled_mechanism_is_the_generic_bound_and_says_so():
    event = poisson_gaussian(0.01, 1.0, 100, units=1000, cap=None)
    one = spend(event, delta=1e-6, relation=ADD)
    three = group(event, 3, delta=1e-6, relation=ADD)
    assert (three.epsilon, three.delta) == generic_group(one.epsilon, 1e-6, 3)
    assert three.delta > 1e-6
    assert "generic" in three.method
    assert generic_group(0.0, 1e-6, 3) == pytest.approx((0.0, 3e-6))
    assert generic_group(200.0, 1e-6, 9) == (1800.0, math.inf)


@pytest.mark.parametrize("case", GOLDEN["rdp_curve"], ids=name)
def test_renyi_divergences_of_the_library_are_right_at_whole_orders(case):
    accountant = rdp_library.RdpAccountant(case["orders"])
    accountant.compose(poisson_gaussian(case["q"], case["sigma"], 1, units=10, cap=None))
    pairs = list(zip(case["orders"], accountant._rdp, case["independent"], strict=True))
    assert [got for order, got, _ in pairs if order == int(order)] == pytest.approx(
        [right for order, _, right in pairs if order == int(order)], rel=1e-6
    )
    # Elsewhere it is only an upper bound, which is all that the cross-check takes it for.
    assert all(got >= right * (1 - 1e-6) for _, got, right in pairs)


def test_replacing_a_unit_costs_more_than_adding_one():
    event = poisson_gaussian(0.01, 1.0, 2000, units=10_000, cap=None)
    replaced = spend(event, delta=1e-5, relation=REPLACE)
    assert replaced.epsilon == pytest.approx(4.194, abs=1e-3)
    assert replaced.rdp is None
    assert spend(event, delta=1e-5, relation=ADD).epsilon == pytest.approx(2.585, abs=1e-3)


def test_replacing_a_unit_is_twice_the_sensitivity_where_nothing_is_sampled():
    once = spend(shuffled_gaussian(10.0, 20, relation=REPLACE), delta=1e-5, relation=REPLACE)
    wide = spend(poisson_gaussian(1.0, 5.0, 20, units=10, cap=None), delta=1e-5, relation=ADD)
    assert once.epsilon == pytest.approx(wide.epsilon, rel=1e-9)
    assert once.rdp == pytest.approx(wide.rdp, rel=1e-9)
    assert once.epsilon >= group(shuffled_gaussian(10.0, 20, relation=REPLACE), 1, delta=1e-5, relation=REPLACE).epsilon


def test_a_cap_that_batches_hardly_meet_costs_hardly_anything():
    free = spend(poisson_gaussian(0.01, 1.0, 2000, units=10_000, cap=None), delta=1e-5, relation=ADD)
    cap = truncation(10_000, 0.01)
    capped = spend(poisson_gaussian(0.01, 1.0, 2000, units=10_000, cap=cap), delta=1e-5, relation=ADD)
    assert capped.rdp is None
    assert capped.lower <= free.epsilon < capped.epsilon < free.epsilon + 0.005
    at_mean = spend(poisson_gaussian(0.01, 2.0, 500, units=10_000, cap=100), delta=1e-5, relation=ADD)
    far_above = spend(poisson_gaussian(0.01, 2.0, 500, units=10_000, cap=cap), delta=1e-5, relation=ADD)
    assert at_mean.epsilon > 2 * far_above.epsilon
    assert poisson_gaussian(0.01, 1.0, 5, units=50, cap=50) == poisson_gaussian(0.01, 1.0, 5, units=50, cap=None)


def test_batches_of_fixed_size_cost_more_than_poisson_and_less_than_renyi_says():
    event = fixed_size_gaussian(4.0, 500, units=10_000, batch=100)
    replaced = spend(event, delta=1e-5, relation=REPLACE)
    poisson = poisson_gaussian(0.01, 4.0, 500, units=10_000, cap=None)
    assert spend(poisson, delta=1e-5, relation=REPLACE).epsilon <= replaced.epsilon <= replaced.rdp
    assert spend(event, delta=1e-5, relation=ADD).rdp is None
    whole = fixed_size_gaussian(4.0, 500, units=100, batch=100)
    assert whole == poisson_gaussian(1.0, 4.0, 500, units=100, cap=None)


def test_shuffling_is_never_accounted_as_if_a_unit_could_be_added():
    with pytest.raises(AccountingError, match="add-or-remove-one"):
        shuffled_gaussian(1.0, 20, relation=ADD)


@given(
    rate=st.floats(0.001, 0.1),
    sigma=st.floats(1.0, 5.0),
    steps=st.integers(1, 200),
    relation=st.sampled_from([ADD, REPLACE]),
)
@settings(max_examples=6, deadline=None)
def test_epsilon_falls_with_noise_and_rises_with_sampling_and_steps(rate, sigma, steps, relation):
    def epsilon(rate, sigma, steps):
        return spend(
            poisson_gaussian(rate, sigma, steps, units=1000, cap=None), delta=1e-5, relation=relation, interval=1e-3
        ).epsilon

    # Rounding to the interval is worth a little, however little the change.
    base, slack = epsilon(rate, sigma, steps), 2e-3
    assert epsilon(rate, 1.5 * sigma, steps) <= base + slack
    assert epsilon(min(1.0, 1.5 * rate), sigma, steps) >= base - slack
    assert epsilon(rate, sigma, 2 * steps) >= base - slack


def test_two_runs_cost_at_least_each_and_at_most_their_sum():
    first = poisson_gaussian(0.01, 1.0, 500, units=1000, cap=None)
    second = poisson_gaussian(0.05, 2.0, 100, units=1000, cap=truncation(1000, 0.05))
    parts = [spend(event, delta=1e-5, relation=ADD).epsilon for event in (first, second)]
    both = spend(composed([first, second]), delta=2e-5, relation=ADD)
    assert spend(composed([first, second]), delta=1e-5, relation=ADD).epsilon >= max(parts)
    assert both.epsilon <= sum(parts)


def test_composition_counts_equal_steps_together():
    step = poisson_gaussian(0.01, 1.0, 1, units=10, cap=None)
    event = composed([repeated(step, 3), composed([step, repeated(step, 0)]), step])
    assert list(leaves(event).values()) == [5]
    assert event == poisson_gaussian(0.01, 1.0, 5, units=10, cap=None)
    assert composed([]) == repeated(step, 0) == dp_accounting.NoOpDpEvent()
    nothing = spend(composed([]), delta=1e-5, relation=ADD)
    assert nothing.epsilon == nothing.lower == 0


def test_the_curve_falls_and_goes_through_what_is_spent():
    event = poisson_gaussian(0.01, 1.0, 2000, units=10_000, cap=None)
    points = curve(event, relation=ADD)
    assert points == sorted(points, key=lambda point: (point[0], -point[1]))
    assert all(0 <= later <= earlier <= 1 for (_, earlier), (_, later) in itertools.pairwise(points))
    at = dict(points)
    assert at[2.5] > 1e-5 > at[3.0]
    assert spend(event, delta=at[3.0], relation=ADD).epsilon == pytest.approx(3.0, abs=1e-6)


def test_what_no_noise_can_meet_is_refused():
    spent = poisson_gaussian(1.0, 1.0, 10, units=10, cap=None)

    def more(sigma):
        return composed([spent, poisson_gaussian(0.1, sigma, 10, units=10, cap=None)])

    with pytest.raises(ConfigError, match="out of reach"):
        calibrate(more, epsilon=3.0, delta=1e-5, relation=ADD)
    with pytest.raises(ConfigError, match="needs less noise"):
        calibrate(lambda s: poisson_gaussian(1e-6, s, 1, units=10, cap=None), epsilon=30.0, delta=1e-5, relation=ADD)


@pytest.mark.parametrize("relation", [ADD, REPLACE])
def test_noise_is_calibrated_for_capped_batches_and_either_relation(relation):
    def make(sigma):
        return poisson_gaussian(0.02, sigma, 50, units=2000, cap=truncation(2000, 0.02))

    sigma = calibrate(make, epsilon=1.0, delta=1e-5, relation=relation)
    assert 0.999 < spend(make(sigma), delta=1e-5, relation=relation).epsilon <= 1.0


def test_a_calibration_takes_few_figures_and_the_last_is_not_computed_again():
    def make(sigma):
        return poisson_gaussian(16 / 250, sigma, 48, units=250, cap=truncation(250, 16 / 250))

    kept = accounting._composed_pld
    kept.cache_clear()
    sigma = calibrate(make, epsilon=1.0, delta=250**-1.1, relation=ADD)
    # Of the narrow interval, at most four: the first distribution is that of a million times the clip norm.
    assert kept.cache_info().misses <= 12
    before = kept.cache_info().misses
    assert spend(make(sigma), delta=250**-1.1, relation=ADD).epsilon <= 1.0
    assert curve(make(sigma), relation=ADD)[0][0] == 0 and kept.cache_info().misses == before
    assert spend(make(sigma / (1 + 1.1e-4)), delta=250**-1.1, relation=ADD).epsilon > 1.0


@pytest.mark.parametrize(
    "build",
    [
        lambda: poisson_gaussian(0.0, 1.0, 1, units=10, cap=None),
        lambda: poisson_gaussian(1.1, 1.0, 1, units=10, cap=None),
        lambda: poisson_gaussian(0.1, 0.0, 1, units=10, cap=None),
        lambda: poisson_gaussian(0.1, math.inf, 1, units=10, cap=None),
        lambda: poisson_gaussian(0.1, math.nan, 1, units=10, cap=None),
        lambda: poisson_gaussian(0.1, 1.0, 0, units=10, cap=None),
        lambda: poisson_gaussian(0.1, 1.0, 1, units=0, cap=None),
        lambda: poisson_gaussian(0.1, 1.0, 1, units=10, cap=0),
        lambda: poisson_gaussian(1.0, 1.0, 1, units=10, cap=5),
        lambda: fixed_size_gaussian(1.0, 1, units=10, batch=11),
        lambda: shuffled_gaussian(1.0, 0, relation=REPLACE),
        lambda: repeated(dp_accounting.NoOpDpEvent(), -1),
        lambda: spend(dp_accounting.GaussianDpEvent(1.0), delta=0.0, relation=ADD),
        lambda: calibrate(dp_accounting.GaussianDpEvent, epsilon=0.0, delta=1e-5, relation=ADD),
        lambda: group(dp_accounting.GaussianDpEvent(1.0), 0, delta=1e-5, relation=ADD),
    ],
)
def test_values_that_cannot_be_meant_are_refused(build):
    with pytest.raises(ConfigError):
        build()


@pytest.mark.parametrize("delta", [1e-13, 1e-30])
def test_a_delta_below_what_the_accountant_resolves_is_refused(delta):
    with pytest.raises(AccountingError, match="below what it resolves"):
        spend(poisson_gaussian(0.01, 1.0, 100, units=10, cap=None), delta=delta, relation=ADD)


def test_an_event_without_an_accountant_is_refused():
    event = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.LaplaceDpEvent(1.0))
    with pytest.raises(AccountingError):
        curve(event, relation=REPLACE)


def test_rounding_of_many_tiny_losses_is_refined_away():
    spent = spend(poisson_gaussian(0.01, 1000.0, 2000, units=10, cap=None), delta=1e-5, relation=ADD)
    assert spent.epsilon <= spent.rdp + 1.1e-3
    assert "interval 0.001" not in spent.accountant


def test_accountants_that_disagree_are_an_error(monkeypatch):
    event = poisson_gaussian(1.0, 4.0, 1, units=10, cap=None)
    with monkeypatch.context() as patch:
        patch.setattr(accounting, "_rdp", lambda *_: 0.01)
        with pytest.raises(AccountingError, match="disagree"):
            spend(event, delta=1e-5, relation=ADD)
    monkeypatch.setattr(accounting, "_optimistic", lambda *_: 99.0)
    with pytest.raises(AccountingError, match="contradicts"):
        spend(event, delta=1e-5, relation=ADD)


@pytest.mark.parametrize(
    "event",
    [
        poisson_gaussian(0.1, 1.1, 7, units=100, cap=None),
        poisson_gaussian(1 / 3, 0.7, 7, units=100, cap=40),
        poisson_gaussian(1.0, 2.0, 3, units=100, cap=None),
        fixed_size_gaussian(2.0, 3, units=100, batch=9),
        shuffled_gaussian(2.0, 3, relation=REPLACE),
        composed([poisson_gaussian(0.1, 1.1, 7, units=9, cap=None), poisson_gaussian(1.0, 2.0, 3, units=9, cap=None)]),
        composed([]),
    ],
    ids=lambda event: type(event).__name__,
)
def test_events_survive_json(event):
    assert decode_event(json.loads(json.dumps(encode_event(event)))) == event


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        {},
        {"kind": "LaplaceDpEvent", "noise_multiplier": 1.0},
        {"kind": ["GaussianDpEvent"]},
        {"kind": "GaussianDpEvent"},
        {"kind": "GaussianDpEvent", "noise_multiplier": 0.0},
        {"kind": "GaussianDpEvent", "noise_multiplier": "1"},
        {"kind": "GaussianDpEvent", "noise_multiplier": True},
        {"kind": "GaussianDpEvent", "noise_multiplier": 1.0, "sensitivity": 0.5},
        {"kind": "SelfComposedDpEvent", "count": 2.5, "event": {"kind": "NoOpDpEvent"}},
        {"kind": "SelfComposedDpEvent", "count": 2, "event": {"kind": "os.system"}},
        {"kind": "PoissonSampledDpEvent", "sampling_probability": 0.1, "event": {"kind": "NoOpDpEvent"}},
        {"kind": "ComposedDpEvent", "events": {"kind": "NoOpDpEvent"}},
    ],
)
def test_an_event_that_sordino_did_not_write_is_refused(data):
    with pytest.raises(AccountingError):
        decode_event(data)


def test_an_event_that_cannot_be_kept_is_refused():
    with pytest.raises(AccountingError, match="LaplaceDpEvent"):
        encode_event(composed([dp_accounting.LaplaceDpEvent(1.0)]))


def test_importing_the_accounting_loads_neither_torch_nor_its_library():
    code = (
        "import sys, sordino.dp.accounting, sordino.dp.groups, sordino.dp.sampling, sordino.ledger;"
        "assert not {'torch', 'dp_accounting', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
