"""Equivalence: against formulas written anew, simulation, SciPy's own tests, and the numbers the methods page gives."""

import math

import numpy as np
import pytest
from scipy import integrate, optimize, stats

from sordino.errors import AuditError, ConfigError
from sordino.stats import (
    auc_half_width,
    auc_tost,
    observations_for,
    paired_tost,
    smallest_margin,
    tost_power,
    welch_tost,
)


def power_by_quadrature(margin, error, df, alpha=0.05):
    """The definition, by another integral: over the χ² itself, adaptively."""
    t = stats.t.ppf(1 - alpha, df)

    def inside(x):
        s = error * math.sqrt(x / df)
        wide = (margin - t * s) / error
        return max(0.0, 2 * stats.norm.cdf(wide) - 1) * stats.chi2.pdf(x, df)

    end = df * (margin / (t * error)) ** 2
    return integrate.quad(inside, 0, end, limit=400)[0]


@pytest.mark.parametrize("df", [1, 2, 4, 7.3, 38, 600])
@pytest.mark.parametrize("ratio", [0.5, 2.0, 3.0, 6.0, 20.0])
def test_power_is_its_definition(df, ratio):
    assert tost_power(ratio * 0.3, 0.3, df) == pytest.approx(power_by_quadrature(ratio * 0.3, 0.3, df), abs=2e-6)


def test_power_is_what_simulated_seeds_give():
    rng, n, margin = np.random.default_rng(0), 5, 2.2
    first, second = rng.normal(size=(2, 40_000, n))
    differences = first.mean(1) - second.mean(1)
    errors = np.sqrt((first.var(1, ddof=1) + second.var(1, ddof=1)) / n)
    passed = np.abs(differences) + stats.t.ppf(0.95, 8) * errors < margin
    # The exact variance of a share of 40,000 is a quarter of a percent.
    assert passed.mean() == pytest.approx(tost_power(margin, math.sqrt(2 / n), 8), abs=0.01)


def test_seeds_detect_what_the_methods_page_says():
    for n, m, page, exact in ((5, 5, 2.1, 2.032), (1, 3, 5.5, 5.320)):
        error, df = math.sqrt(1 / n + 1 / m), n + m - 2
        approximate = (stats.t.ppf(0.95, df) + stats.t.ppf(0.9, df)) * error
        assert round(approximate, 1) == page
        found = smallest_margin(error, df)
        assert found == pytest.approx(exact, abs=1e-3) and found < approximate
        brute = optimize.brentq(lambda d, e=error, k=df: power_by_quadrature(d, e, k) - 0.8, 0.1, 50)
        assert found == pytest.approx(brute, abs=1e-4)


def test_an_auc_of_few_records_says_little():
    assert round(auc_half_width(20, 20), 2) == 0.18 and round(auc_half_width(400, 400), 2) == 0.04
    rng = np.random.default_rng(1)
    member = np.arange(40) < 20
    widths = [
        np.quantile([stats.rankdata(rng.normal(size=40))[:20].sum() for _ in range(4000)], q) for q in (0.025, 0.975)
    ]
    assert (widths[1] - widths[0]) / 400 / 2 == pytest.approx(auc_half_width(20, 20), abs=0.01)
    few = auc_tost(rng.normal(size=40), member, 0.1)
    assert few.power < 0.05 and few.p_value > 0.05 and few.needs == pytest.approx(144, abs=1)
    z = stats.norm.ppf(0.95) + stats.norm.ppf(0.9)
    assert few.needs == pytest.approx(z**2 / 6 / 0.01, rel=0.02)


def test_three_records_cannot_fail_forget_quality():
    assert stats.ks_2samp(np.zeros(3), np.ones(3)).pvalue == pytest.approx(0.1)


def test_welch_is_two_tests_of_scipy():
    rng = np.random.default_rng(2)
    first, second = rng.normal(0.1, 1, 12), rng.normal(0, 3, 7)
    found = welch_tost(first, second, 2.5)
    above = stats.ttest_ind(first - 2.5, second, equal_var=False, alternative="less").pvalue
    below = stats.ttest_ind(first + 2.5, second, equal_var=False, alternative="greater").pvalue
    assert found.p_value == pytest.approx(max(above, below))
    limits = stats.ttest_ind(first, second, equal_var=False).confidence_interval(0.9)
    assert (found.difference.low, found.difference.high) == pytest.approx((limits.low, limits.high))
    assert found.difference.confidence == pytest.approx(0.9) and found.difference.n == 19
    one = welch_tost(first, second, 2.5, side="above")
    assert one.p_value == pytest.approx(above) and one.power > found.power


def test_the_interval_is_within_the_margin_where_the_test_says_so():
    rng = np.random.default_rng(3)
    seen = set()
    for _ in range(200):
        margin = float(rng.uniform(0.2, 1.5))
        one = welch_tost(rng.normal(size=6), rng.normal(rng.uniform(-1, 1), 1, 9), margin)
        other = paired_tost(rng.normal(0.2, 1, 12), margin)
        for found in (one, other):
            within = -margin <= found.difference.low and found.difference.high <= margin
            assert within == (found.p_value <= 0.05)
            seen.add(within)
    assert seen == {True, False}


def test_no_more_than_alpha_pass_at_the_margin():
    rng = np.random.default_rng(4)
    passed = [welch_tost(rng.normal(1, 1, 5), rng.normal(0, 2, 8), 1.0).p_value <= 0.05 for _ in range(1500)]
    assert np.mean(passed) < 0.06
    clustered = []
    for _ in range(800):
        people, own = np.repeat(np.arange(12), 6), rng.normal(0, 1, 12)
        clustered.append(paired_tost(0.8 + own[people] + rng.normal(0, 0.3, 72), 0.8, group=people).p_value <= 0.05)
    assert np.mean(clustered) < 0.07


def test_records_of_one_person_are_one_observation():
    rng = np.random.default_rng(5)
    people, values = np.repeat(np.arange(10), 4), np.repeat(rng.normal(size=10), 4)
    once, often = paired_tost(values[::4], 1.0), paired_tost(values, 1.0, group=people)
    assert often.p_value == pytest.approx(once.p_value) and often.difference.n == 10
    assert often.difference.low == pytest.approx(once.difference.low)
    two = welch_tost(values, values[:20] + 0.1, 1.0, groups=(people, people[:20]))
    assert two.p_value == pytest.approx(welch_tost(values[::4], values[:20:4] + 0.1, 1.0).p_value)


def test_an_auc_is_tested_as_brunner_and_munzel_do():
    rng = np.random.default_rng(6)
    a, b = rng.normal(0.3, 1, 30), rng.normal(0, 2, 40)
    found = auc_tost(np.concatenate([a, b]), np.arange(70) < 30, 0.2)
    known = stats.brunnermunzel(b, a)
    error = found.difference.value / known.statistic
    df = optimize.brentq(lambda d: 2 * stats.t.sf(abs(known.statistic), d) - known.pvalue, 1, 500)
    reach = stats.t.ppf(0.95, df) * error
    assert found.difference.high - found.difference.value == pytest.approx(reach, rel=1e-6)
    expected = max(
        stats.t.cdf((found.difference.value - 0.2) / error, df), stats.t.sf((found.difference.value + 0.2) / error, df)
    )
    assert found.p_value == pytest.approx(expected, rel=1e-6)


def test_an_auc_without_variance_is_bounded_by_pairs():
    scores, member = np.r_[np.ones(30), np.zeros(30)], np.arange(60) < 30
    found = auc_tost(scores, member, 0.1)
    assert found.difference.value == 0.5 and found.difference.low > 0.1 and found.p_value == 1.0
    tied = auc_tost(np.zeros(60), member, 0.1)
    assert tied.difference.value == 0 and tied.p_value > 0.05  # thirty ties do not show that there are no others
    many = auc_tost(np.zeros(2000), np.arange(2000) < 1000, 0.1)
    assert many.p_value <= 0.05 and many.difference.low > -0.1


def test_equal_values_show_no_more_than_their_number_allows():
    bound = paired_tost(np.zeros(20), 0.05, bound=1.0)
    assert bound.p_value > 0.05 and bound.power == 0
    # One share above and below, of values between -1 and 1.
    assert bound.difference.high == pytest.approx(2 * (1 - 0.05 ** (1 / 20)))
    assert bound.needs == math.ceil(math.log(0.05) / math.log(1 - 0.025))
    assert paired_tost(np.zeros(bound.needs), 0.05, bound=1.0).p_value <= 0.05
    assert paired_tost(np.zeros(bound.needs - 1), 0.05, bound=1.0).p_value > 0.05
    same = paired_tost(np.zeros(20), 0.05)
    assert (same.p_value, same.difference.low, same.difference.high) == (0.0, 0.0, 0.0)
    assert paired_tost(np.full(20, 0.2), 0.05).p_value == 1.0


def test_too_few_are_told_what_it_takes():
    alone = welch_tost([0.0], [1.0, 1.2, 0.9, 1.1], 0.5)
    assert alone.difference.value is None and alone.p_value == 1.0 and alone.power == 0.0 and alone.detectable is None
    assert alone.needs is not None and alone.needs >= 2
    assert welch_tost([0.0], [1.0], 0.5).needs == 2
    rng = np.random.default_rng(7)
    few = welch_tost(rng.normal(size=4), rng.normal(size=4), 0.5)
    assert few.power < 0.8 and few.needs is not None
    spreads = (1.0, 2.0)
    needed = observations_for(0.5, spreads)
    for n, enough in ((needed, True), (needed - 1, False)):
        df = (n - 1) * 25 / 17
        assert (tost_power(0.5, math.sqrt(5 / n), df) >= 0.8) is enough
    assert observations_for(1e-9, (1.0,)) is None


@pytest.mark.parametrize("values", [[1.0, math.nan], [1.0, math.inf]])
def test_what_is_no_number_is_refused(values):
    with pytest.raises(AuditError):
        welch_tost(values, [0.0, 1.0], 0.1)
    with pytest.raises(AuditError):
        paired_tost(values, 0.1)


@pytest.mark.parametrize("margin", [0.0, -1.0, math.nan, math.inf])
def test_a_margin_is_a_size(margin):
    with pytest.raises(ConfigError):
        paired_tost([0.0, 1.0], margin)
