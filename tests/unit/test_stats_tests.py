"""The max-T permutation test and corrections for many p-values, against enumeration and SciPy."""

import itertools
import time

import numpy as np
import pytest
from scipy.stats import false_discovery_control, kstest

from sordino.errors import AuditError, ConfigError
from sordino.stats import auc, benjamini_hochberg, conformal_p, holm, max_t


def test_it_equals_the_enumeration_of_every_labelling():
    rng = np.random.default_rng(0)
    scores = np.round(rng.normal(size=(3, 8)), 1)
    member = np.array([1, 1, 0, 1, 0, 0, 1, 0], bool)
    scores[0] += member
    labellings = [np.isin(np.arange(8), chosen) for chosen in itertools.combinations(range(8), 4)]
    for alternative, fold in (("greater", lambda x: x), ("two-sided", np.abs)):
        areas = np.array([[auc(row, label) - 0.5 for label in labellings] for row in scores])
        scaled = fold(areas / areas.std(axis=1, keepdims=True))
        observed = fold((np.array([auc(row, member) for row in scores]) - 0.5) / areas.std(axis=1))
        exact = np.array([(scaled.max(axis=0) >= t - 1e-9).mean() for t in observed])
        overall, adjusted = max_t(scores, member, shuffles=8000, seed=1, alternative=alternative)
        np.testing.assert_allclose(adjusted, exact, atol=0.02)
        assert overall == adjusted.min()


def test_groups_are_permuted_whole():
    # Ten copies of each record add nothing: the same permutations, the same p-values.
    rng = np.random.default_rng(1)
    member = np.arange(40) < 20
    scores = rng.normal(size=(4, 40)) + 0.5 * member
    once = max_t(scores, member, shuffles=499, seed=3)
    copied = max_t(np.repeat(scores, 10, axis=1), np.repeat(member, 10), np.repeat(np.arange(40), 10), 499, 3)
    assert once[0] == copied[0]
    assert np.array_equal(once[1], copied[1])
    alone = max_t(np.repeat(scores, 10, axis=1), np.repeat(member, 10), shuffles=499, seed=3)
    assert alone[0] == 1 / 500 < once[0]


@pytest.mark.parametrize("alternative", ["greater", "two-sided"])
def test_the_p_value_is_uniform_under_the_null(alternative):
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 6, 40)
    group = np.repeat(np.arange(40), sizes)
    found = []
    for _ in range(400):
        member = (rng.permutation(40) < 20)[group]
        scores = rng.normal(size=(5, 40))[:, group] + rng.normal(size=(5, group.size))
        scores[1] = np.round(scores[0])  # correlated and tied attacks
        p, adjusted = max_t(scores, member, group, 199, int(rng.integers(2**31)), alternative)
        found.append(p)
        assert p == adjusted.min()
    assert kstest(found, "uniform").pvalue > 0.01
    assert np.mean(np.array(found) <= 0.05) <= 0.05 + 2 * np.sqrt(0.05 * 0.95 / 400)


def test_each_side_finds_its_own_effect():
    rng = np.random.default_rng(3)
    member = np.arange(200) < 100
    scores = rng.normal(size=(3, 200))
    scores[1] -= member
    assert max_t(scores, member)[0] > 0.05
    p, adjusted = max_t(scores, member, alternative="two-sided")
    assert p == adjusted[1] == 0.001
    assert min(adjusted[0], adjusted[2]) > 0.05


def test_constant_scores_say_nothing_and_cost_nothing():
    rng = np.random.default_rng(4)
    member = np.arange(60) < 30
    scores = rng.normal(size=(2, 60)) + member
    plain = max_t(scores, member, seed=5)
    padded = max_t(np.vstack([scores, np.full(60, 3.0)]), member, seed=5)
    assert padded[1].tolist() == [*plain[1], 1.0]
    for alternative in ("greater", "two-sided"):
        assert max_t(np.zeros((2, 60)), member, alternative=alternative)[0] == 1.0


def test_twelve_attacks_on_four_thousand_records_are_quick():
    rng = np.random.default_rng(5)
    scores, member = rng.normal(size=(12, 4000)), rng.random(4000) < 0.5
    seconds, found = [], []
    for _ in range(3):
        start = time.perf_counter()
        found.append(max_t(scores, member, shuffles=999, seed=1)[0])
        seconds.append(time.perf_counter() - start)
    assert min(seconds) < 2  # 0.3 s on two cores
    assert len(set(found)) == 1


def test_what_cannot_be_permuted_is_refused():
    scores, member = np.arange(8.0)[None], np.arange(8) < 4
    with pytest.raises(AuditError, match="1 of 3 groups have members and non-members"):
        max_t(scores, member, [0, 0, 0, 1, 1, 2, 2, 2])
    with pytest.raises(AuditError, match="scores has shape"):
        max_t(scores[0], member)
    with pytest.raises(AuditError, match="1 of 8 scores are NaN"):
        max_t(np.where(scores == 2, np.nan, scores), member)
    with pytest.raises(ConfigError, match="alternative is 'less'"):
        max_t(scores, member, alternative="less")


def test_corrections_equal_their_definitions():
    rng = np.random.default_rng(6)
    p = rng.random(30) ** 3
    np.testing.assert_allclose(benjamini_hochberg(p), false_discovery_control(p), atol=1e-15)
    ranks = np.argsort(np.argsort(p))
    for i in range(30):
        expected = max(min(1.0, (30 - ranks[j]) * p[j]) for j in range(30) if p[j] <= p[i])
        assert holm(p)[i] == pytest.approx(expected)
    assert holm([0.01, 0.04, 0.03]).tolist() == pytest.approx([0.03, 0.06, 0.06])
    assert holm([]).size == benjamini_hochberg([]).size == 0
    with pytest.raises(AuditError, match=r"A p-value is 1\.5"):
        holm([0.2, 1.5])


def test_conformal_p_values_count_the_calibration():
    assert conformal_p([1, 2, 3, 4], [5, 4, 2.5, 0]).tolist() == [0.2, 0.4, 0.6, 1.0]
    rng = np.random.default_rng(7)
    small = [np.mean(conformal_p(rng.normal(size=99), rng.normal(size=200)) <= 0.1) for _ in range(300)]
    assert np.mean(small) == pytest.approx(0.1, abs=3 * np.std(small) / np.sqrt(300))
