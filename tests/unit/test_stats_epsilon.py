"""Lower bounds on ε against published numbers, brute force, and two thousand null audits."""

import json
import math
import time
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binom, norm

from sordino.errors import ConfigError
from sordino.stats import (
    epsilon_from_gdp,
    epsilon_one_run,
    epsilon_two_sided,
    gdp_mu,
    one_run_guesses,
    one_run_p_value,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "epsilon_bounds.json").read_text(encoding="utf-8"))


def counts(case):
    return "-".join(f"{key}{case[key]:g}" for key in case if isinstance(case[key], int | float))


@pytest.mark.parametrize("case", GOLDEN["one_run"], ids=counts)
def test_one_run_bound_equals_the_golden_numbers(case):
    m, r, v, delta, alpha = (case[key] for key in ("m", "r", "v", "delta", "alpha"))
    assert epsilon_one_run(m, r, v, delta, 1 - alpha) == pytest.approx(case["steinke"]["epsilon"], abs=1e-6)
    for eps, p in case["p_values"].items():
        assert one_run_p_value(float(eps), m, r, v, delta) == pytest.approx(p["jax_privacy"], abs=1e-9)


@pytest.mark.parametrize(("m", "r", "v", "eps"), [(50, 30, 21, 0.3), (9, 9, 4, 0.0), (40, 40, 1, 2.0), (5, 4, 4, 1)])
def test_one_run_p_value_equals_the_formula_in_a_loop(m, r, v, eps):
    def tail(k):
        return binom.sf(k - 1, r, 1 / (1 + math.exp(-eps)))

    for delta in (0.0, 1e-4, 1e-2):
        most = max((tail(v - i) - tail(v)) / i for i in range(1, v + 1))
        expected = min(1.0, tail(v) + 2 * m * delta * most)
        assert one_run_p_value(eps, m, r, v, delta) == pytest.approx(expected, abs=1e-12)


def test_the_bound_is_where_the_p_value_crosses_alpha():
    eps = epsilon_one_run(400, 80, 66, 1e-5)
    assert one_run_p_value(eps - 1e-9, 400, 80, 66, 1e-5) < 0.05 < one_run_p_value(eps + 1e-9, 400, 80, 66, 1e-5)


def test_without_evidence_the_bound_is_zero():
    assert epsilon_one_run(0, 0, 0, 0.0) == 0.0
    assert epsilon_one_run(100, 20, 0, 1e-5) == 0.0
    assert epsilon_one_run(100, 20, 10, 1e-5) == 0.0
    assert one_run_p_value(1.0, 100, 20, 0, 1e-5) == 1.0


def test_a_hundred_thousand_coins_are_quick():
    start = time.perf_counter()
    eps = epsilon_one_run(100_000, 100_000, 60_000, 1e-6)
    assert time.perf_counter() - start < 5  # 0.12 s on two idle cores
    # With δ = 0 the limit lies 1.64 standard errors below ln(.6/.4) = .405, at .395.
    assert 0.39 < eps < epsilon_one_run(100_000, 100_000, 60_000, 0.0) < math.log(1.5)


def test_two_thousand_null_audits_reject_no_more_than_five_percent():
    rng = np.random.default_rng(2023)
    audits, m = 2000, 250
    for delta in (0.0, 1e-5):
        rejected = sum(
            epsilon_one_run(m, *one_run_guesses(rng.normal(size=m), rng.random(m) < 0.5, 0.2), delta) > 0
            for _ in range(audits)
        )
        assert rejected / audits <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / audits)
        assert rejected > 0  # not because nothing is ever rejected


def test_randomised_response_is_bounded_by_its_epsilon():
    # Guessing every coin right with probability e^ε/(1+e^ε) is exactly ε-DP, and the bound is near it.
    rng = np.random.default_rng(1)
    truth = 1.5
    right = rng.binomial(1000, 1 / (1 + math.exp(-truth)), size=300)
    found = {v: epsilon_one_run(1000, 1000, int(v), 0.0) for v in np.unique(right)}
    bounds = np.array([found[v] for v in right])
    assert np.mean(bounds > truth) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 300)
    assert np.median(bounds) > truth - 0.25


def test_the_guess_budget_depends_on_nothing_but_the_coins():
    rng = np.random.default_rng(0)
    for m in (1, 7, 10, 99, 100):
        for share in (0.05, 0.2, 0.7, 1.0):
            r, v = one_run_guesses(rng.normal(size=m), rng.random(m) < 0.5, share)
            assert r == 2 * math.floor(share * m / 2 + 1e-9)
            assert 0 <= v <= r
    member = np.arange(100) < 50
    assert one_run_guesses(member.astype(float), member, 1.0) == (100, 100)
    assert one_run_guesses(-member.astype(float), member, 0.2) == (20, 0)
    assert one_run_guesses(np.linspace(0, 1, 10), np.arange(10) >= 8, 0.4) == (4, 4)


def test_ties_are_broken_without_labels():
    # All tied, members first: guessing by position or by label would be all right or all wrong.
    member = np.arange(2000) < 1000
    r, v = one_run_guesses(np.zeros(2000), member, 1.0)
    assert abs(v - r / 2) < 3 * math.sqrt(r) / 2
    wrong = one_run_guesses(np.zeros(2000), ~member, 1.0)
    assert wrong == (r, r - v)  # the same guesses, whatever the labels


@pytest.mark.parametrize("case", GOLDEN["two_group"], ids=counts)
def test_two_group_bounds_equal_the_golden_numbers(case):
    tp, n_pos, fp, n_neg, delta = (case[key] for key in ("tp", "n_pos", "fp", "n_neg", "delta"))
    confidence = 1 - case["alpha"]
    expected = case["clopper_pearson"]["epsilon_two_sided"]
    assert epsilon_two_sided(tp, n_pos, fp, n_neg, delta, confidence) == pytest.approx(expected, abs=1e-9)
    if "gdp" in case:
        mu = gdp_mu(tp, n_pos, fp, n_neg, confidence)
        assert mu == pytest.approx(case["gdp"]["mu"], abs=1e-9)
        assert epsilon_from_gdp(mu, delta) == pytest.approx(case["gdp"]["epsilon"], abs=1e-6)


@pytest.mark.parametrize("mu", [0.01, 0.5, 1.0, 3.0, 20.0])
@pytest.mark.parametrize("delta", [1e-2, 1e-5, 1e-12])
def test_gdp_epsilon_solves_its_equation(mu, delta):
    eps = epsilon_from_gdp(mu, delta)
    log_far = eps + norm.logcdf(-eps / mu - mu / 2)
    back = norm.cdf(-eps / mu + mu / 2) - math.exp(log_far)
    if eps > 0:
        assert back == pytest.approx(delta, rel=1e-6, abs=1e-15)
    else:
        assert back <= delta


def test_the_ends_of_the_gaussian_bounds():
    assert epsilon_from_gdp(0.0, 1e-5) == 0.0
    assert epsilon_from_gdp(1.0, 0.0) == math.inf
    assert gdp_mu(0, 10, 0, 10) == 0.0
    assert gdp_mu(10, 10, 10, 10) == 0.0
    assert gdp_mu(10, 10, 0, 10) > 0.0
    assert epsilon_two_sided(0, 10, 10, 10, 0.0) == 0.0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [((10, 11, 3, 0.0), "r is 11"), ((10, 5, 6, 0.0), "v is 6"), ((10, 5, 5, 1.0), "delta is 1.0")],
)
def test_impossible_counts_are_named(arguments, words):
    with pytest.raises(ConfigError, match=words):
        epsilon_one_run(*arguments)


def test_an_impossible_share_is_named():
    with pytest.raises(ConfigError, match=r"share is 1\.2, which is not in \(0, 1\]"):
        one_run_guesses([1.0, 2.0], [True, False], 1.2)
