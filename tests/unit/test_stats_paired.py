"""Paired differences hold what they promise, and their test is McNemar's where it should be."""

from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest, multinomial, permutation_test

from sordino import stats


def test_the_difference_is_between_its_limits_as_often_as_it_says():
    # All tables of 12 pairs, for truths from no difference to a large one: exact coverage, not simulated.
    n = 12
    tables = [(up, down) for up, down in product(range(n + 1), repeat=2) if up + down <= n]
    limits = {}
    for up, down in tables:
        first = np.arange(n) < up
        second = (np.arange(n) >= up) & (np.arange(n) < up + down)
        limits[up, down] = stats.paired_difference(first, second)
    for p_up, p_down in [(0, 0), (0.05, 0), (0.3, 0.3), (0.5, 0.1), (0.9, 0.05), (1, 0), (0.02, 0.02)]:
        covered = 0.0
        for (up, down), found in limits.items():
            if found.low - 1e-12 <= p_up - p_down <= found.high + 1e-12:
                covered += multinomial.pmf([up, down, n - up - down], n, [p_up, p_down, 1 - p_up - p_down])
        assert covered >= 0.95 - 1e-9


def test_the_difference_of_a_few_cases():
    first, second = np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 0], bool)
    found = stats.paired_difference(first, second)
    assert found.value == pytest.approx(0.2)
    up, down = stats.clopper_pearson(2, 5, 0.975), stats.clopper_pearson(1, 5, 0.975)
    assert (found.low, found.high) == (up.low - down.high, up.high - down.low)
    none = stats.paired_difference(np.zeros(40, bool), np.zeros(40, bool))
    assert none.low == -none.high < 0
    people = np.arange(200) // 20
    alone = np.repeat([True, False], 100)
    spread = stats.paired_difference(alone, ~alone & False, people)
    narrow = stats.paired_difference(alone, ~alone & False)
    assert spread.n == 10
    assert spread.high - spread.low > 1.5 * (narrow.high - narrow.low)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 8), st.integers(0, 6))
def test_of_single_pairs_the_test_is_mcnemars(up, down):
    values = np.repeat([1.0, -1.0, 0.0], [up, down, 3])
    expected = binomtest(up, up + down, alternative="greater").pvalue if up + down else 1.0
    assert stats.sign_flip(values) == pytest.approx(expected)


@settings(max_examples=20, deadline=None)
@given(st.lists(st.integers(-3, 3).filter(bool), min_size=2, max_size=9))
def test_of_groups_the_test_is_scipys(sums):
    values = np.concatenate([np.full(abs(s), np.sign(s), dtype=float) for s in sums])
    group = np.repeat(np.arange(len(sums)), np.abs(sums))
    exact = permutation_test((np.array(sums, float),), np.sum, permutation_type="samples", alternative="greater",
                             n_resamples=2 ** len(sums))  # fmt: skip
    assert stats.sign_flip(values, group) == pytest.approx(exact.pvalue)


def test_of_many_groups_the_test_draws_signs():
    values = np.repeat([1.0, -1.0], [22, 10])
    exact = sum(comb(32, k) for k in range(22, 33)) / 2**32
    assert stats.sign_flip(values, shuffles=20_000) == pytest.approx(exact, abs=0.006)
    assert stats.sign_flip(values, shuffles=100) >= 1 / 101
    assert stats.sign_flip(-values) > 0.9
