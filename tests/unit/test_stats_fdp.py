"""The f-DP lower bound against published numbers, its own recursion written out, and simulated mechanisms."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import norm

from sordino.errors import ConfigError
from sordino.stats import epsilon_f_dp, epsilon_from_gdp, epsilon_one_run, f_dp_mu, f_dp_p_value

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "epsilon_bounds.json").read_text(encoding="utf-8"))
CASES = [case for case in GOLDEN["one_run"] if "fdp_gaussian" in case]


def counts(case):
    return "-".join(f"{key}{case[key]:g}" for key in ("m", "r", "v", "alpha", "delta"))


@pytest.mark.parametrize("case", CASES, ids=counts)
def test_the_bound_equals_the_golden_numbers(case):
    m, r, v, delta, confidence = case["m"], case["r"], case["v"], case["delta"], 1 - case["alpha"]
    assert epsilon_f_dp(m, r, v, delta, confidence) == pytest.approx(case["fdp_gaussian"]["epsilon"], abs=1e-4)
    mu = f_dp_mu(m, r, v, confidence)
    assert mu == pytest.approx(case["fdp_gaussian"]["mu"], abs=1e-6)
    if mu > 0:
        assert f_dp_p_value(mu, m, r, v) == pytest.approx(case["alpha"], abs=1e-9)


def test_it_is_tighter_than_the_bound_on_any_mechanism():
    assert epsilon_f_dp(1000, 100, 95, 1e-5) == pytest.approx(3.32, abs=5e-3)
    assert epsilon_one_run(1000, 100, 95, 1e-5) == pytest.approx(2.17, abs=5e-3)


def rejected(mu, m, r, v, alpha):
    """The recursion as the paper writes it, indices and all, without leaving early."""
    high, low = np.zeros(v + 1), np.zeros(v + 1)
    high[v], low[v] = alpha * v / m, alpha * (r - v) / m
    for i in range(v - 1, -1, -1):
        low[i] = max(low[i + 1], norm.cdf(norm.ppf(min(high[i + 1], 1)) - mu))
        high[i] = high[i + 1] + i / (r - i) * (low[i] - low[i + 1])
    return high[0] + low[0] > r / m


@pytest.mark.parametrize(("m", "r", "v"), [(50, 30, 26), (40, 40, 31), (200, 20, 20), (30, 10, 5), (7, 1, 1)])
def test_the_p_value_is_where_the_recursion_starts_to_reject(m, r, v):
    for mu in (0.0, 0.3, 1.0):
        p = f_dp_p_value(mu, m, r, v)
        assert not rejected(mu, m, r, v, p - 1e-9)
        assert p == 1.0 or rejected(mu, m, r, v, p + 1e-9)


def test_the_bound_rises_with_every_right_guess_and_falls_with_confidence():
    bounds = [f_dp_mu(300, 60, v) for v in range(61)]
    assert bounds == sorted(bounds) and bounds[30] == 0 < bounds[60]
    assert f_dp_mu(300, 60, 55, 0.99) < f_dp_mu(300, 60, 55, 0.95)


def test_without_evidence_the_bound_is_zero():
    for m, r, v in ((0, 0, 0), (100, 0, 0), (100, 20, 0), (100, 20, 10), (1, 1, 1)):
        assert epsilon_f_dp(m, r, v, 1e-5) == f_dp_mu(m, r, v) == 0.0
    assert f_dp_p_value(0.0, 100, 0, 0) == 1.0
    assert 0 < f_dp_p_value(0.0, 10, 10, 10) < 0.05


def test_no_gaussian_mechanism_has_delta_zero():
    assert epsilon_f_dp(100, 20, 20, 0.0) == math.inf and epsilon_f_dp(100, 20, 10, 0.0) == 0.0


def test_gaussian_mechanisms_are_bounded_by_their_epsilon():
    # A coin's score is coin·μ + N(0, 1): exactly μ-Gaussian DP.
    rng = np.random.default_rng(5)
    for mu in (0.5, 1.0, 2.0):
        truth, m, share, above = epsilon_from_gdp(mu, 1e-5), 400, 0.2, []
        half = int(share * m / 2)
        for _ in range(200):
            coins = rng.random(m) < 0.5
            order = np.argsort(rng.normal(size=m) + mu * coins)
            right = int((~coins[order[:half]]).sum() + coins[order[-half:]].sum())
            above.append(epsilon_f_dp(m, 2 * half, right, 1e-5))
        assert np.mean(np.array(above) > truth) <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / 200)
        assert np.median(above) > 0.3 * truth


def test_impossible_counts_are_named():
    with pytest.raises(ConfigError, match="r is 11"):
        epsilon_f_dp(10, 11, 3, 1e-5)
    with pytest.raises(ConfigError, match="v is 6"):
        f_dp_mu(10, 5, 6)
    with pytest.raises(ConfigError, match=r"confidence is 1\.0"):
        f_dp_mu(10, 5, 5, 1.0)
