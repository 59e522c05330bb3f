"""Means, ratios, perplexities and the bootstrap against SciPy, loops and simulations."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from sordino.errors import AuditError, ConfigError
from sordino.stats import UNBOUNDED, bootstrap, mean_interval, perplexity_interval, ratio_interval


def test_the_mean_of_single_records_has_students_interval():
    values = np.random.default_rng(0).normal(size=23)
    got = mean_interval(values, confidence=0.9)
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.9)
    assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert (got.value, got.n, got.confidence) == (pytest.approx(values.mean()), 23, 0.9)


def test_the_mean_of_equal_groups_is_the_mean_of_their_means():
    rng = np.random.default_rng(1)
    values, group = rng.normal(size=60), np.arange(60) % 12
    got = mean_interval(values, group)
    means = np.array([values[group == g].mean() for g in range(12)])
    expected = stats.ttest_1samp(means, 0).confidence_interval(0.95)
    assert (got.low, got.high, got.n) == (pytest.approx(expected.low), pytest.approx(expected.high), 12)


def test_the_ratio_interval_equals_its_formula_in_a_loop():
    rng = np.random.default_rng(2)
    group, tokens = rng.integers(0, 9, 50), rng.integers(1, 40, 50)
    losses = 2.5 * tokens + rng.normal(size=50)
    got = ratio_interval(losses, tokens, group)
    ratio = losses.sum() / tokens.sum()
    spread = sum((losses[group == g].sum() - ratio * tokens[group == g].sum()) ** 2 for g in range(9))
    reach = stats.t.ppf(0.975, 8) * math.sqrt(9 / 8 * spread) / tokens.sum()
    assert (got.low, got.value, got.high) == pytest.approx((ratio - reach, ratio, ratio + reach), abs=1e-12)
    perplexity = perplexity_interval(losses, tokens, group)
    assert perplexity.value == pytest.approx(math.exp(ratio))
    assert (perplexity.low, perplexity.high) == pytest.approx((math.exp(got.low), math.exp(got.high)))


def test_the_clustered_ratio_covers():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(40), 5)
    covered = 0
    for _ in range(400):
        tokens = rng.integers(5, 50, group.size)
        losses = tokens * (3 + rng.normal(size=40)[group] + 0.3 * rng.normal(size=group.size))
        got = ratio_interval(losses, tokens, group)
        covered += got.low <= 3 <= got.high
    assert 0.915 <= covered / 400 <= 0.98


def test_one_group_resolves_nothing_and_survives_a_file():
    for got in (mean_interval([1.0, 2.0], [7, 7]), bootstrap([1.0, 2.0], np.mean, [7, 7])):
        assert (got.value, got.n, got.needs) == (None, 1, 2)
        assert (got.low, got.high) == (-UNBOUNDED, UNBOUNDED)
        assert json.loads(json.dumps(got.high, allow_nan=False)) == UNBOUNDED
    perplexity = perplexity_interval([3.0], [2])
    assert (perplexity.value, perplexity.low, perplexity.high) == (None, 0.0, UNBOUNDED)
    assert ratio_interval([0.0, 0.0], [0, 0]).value is None


def test_a_perplexity_too_large_for_a_float_stays_finite():
    assert perplexity_interval([1e6, 2e6, 3e6], [1, 1, 1]).high == UNBOUNDED


def test_agreement_of_all_groups_is_said():
    got = mean_interval([0.5, 0.5, 0.5])
    assert got.low == got.high == 0.5
    assert "no spread" in got.method


def test_the_bootstrap_resamples_groups():
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(60), 5)
    values = rng.normal(size=60)[group] + 0.1 * rng.normal(size=300)
    clustered, exact = bootstrap(values, np.mean, group), mean_interval(values, group)
    assert clustered.high - clustered.low == pytest.approx(exact.high - exact.low, rel=0.15)
    alone = bootstrap(values, np.mean)
    assert alone.high - alone.low < 0.6 * (clustered.high - clustered.low)
    assert clustered == bootstrap(values, np.mean, group)


def test_unequal_groups_stay_whole_in_a_resample():
    group = np.array([3, 1, 1, 2, 2, 2, 9, 9, 9, 9])
    sizes = dict(zip(*np.unique(group, return_counts=True), strict=True))
    seen = []

    def whole(rows):
        labels, held = np.unique(rows[:, 0], return_counts=True)
        seen.append(all(count % sizes[label] == 0 for label, count in zip(labels, held, strict=True)))
        return rows[:, 1].mean()

    bootstrap(np.column_stack([group, np.arange(10)]), whole, group, resamples=50)
    assert len(seen) == 51
    assert all(seen)


def test_what_has_no_mean_is_refused():
    with pytest.raises(AuditError, match="1 of 2 values are not finite"):
        mean_interval([1.0, math.inf])
    with pytest.raises(AuditError, match="A denominator is -1"):
        ratio_interval([1.0, 2.0], [1, -1])
    with pytest.raises(AuditError, match="not finite on 11 of 11 samples"):
        bootstrap([1.0, 2.0], lambda rows: math.nan, resamples=10)
    with pytest.raises(ConfigError, match="resamples is 0"):
        bootstrap([1.0, 2.0], np.mean, resamples=0)
