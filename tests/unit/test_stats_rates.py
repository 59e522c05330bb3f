"""ROC, thinned curves, proportions and TPR at FPR against published numbers, SciPy and simulations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest
from sklearn.metrics import roc_curve

from sordino.errors import AuditError, ConfigError
from sordino.stats import (
    calibration_split,
    clopper_pearson,
    korn_graubard,
    roc,
    thin,
    tpr_at_fpr,
    tpr_at_fpr_in_sample,
)

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "roc_stats.json").read_text(encoding="utf-8"))
SETS = pytest.mark.parametrize("case", GOLDEN["sets"], ids=lambda case: case["name"])


def arrays(case):
    inside, outside = case["member_scores"], case["nonmember_scores"]
    return np.array(inside + outside), np.arange(len(inside) + len(outside)) < len(inside)


@SETS
def test_roc_equals_the_golden_counts_and_scikit_learn(case):
    scores, member = arrays(case)
    fpr, tpr = roc(scores, member)
    expected = case["results"]["roc"]
    assert (fpr[0], tpr[0]) == (0, 0)
    assert np.array_equal(np.rint(fpr[1:] * (~member).sum()), expected["fp"])
    assert np.array_equal(np.rint(tpr[1:] * member.sum()), expected["tp"])
    other = roc_curve(member, scores, drop_intermediate=False)
    np.testing.assert_allclose((fpr, tpr), other[:2], atol=1e-15)


@SETS
def test_in_sample_tpr_equals_the_golden_numbers(case):
    scores, member = arrays(case)
    for row in case["results"]["tpr_at_fpr"]:
        tpr, fpr, threshold = tpr_at_fpr_in_sample(scores, member, row["target_fpr"], case["results"]["confidence"])
        assert threshold == (math.inf if row["threshold"] is None else row["threshold"])
        assert (tpr.value, fpr.value) == pytest.approx((row["tpr"], row["realised_fpr"]), abs=1e-15)
        assert (tpr.low, tpr.high) == pytest.approx(row["tpr_ci"], abs=1e-10)
        assert (fpr.low, fpr.high) == pytest.approx(row["fpr_ci"], abs=1e-10)
        upper = clopper_pearson(row["fp"], fpr.n, case["results"]["confidence"], "upper")
        assert (upper.low, upper.high) == (0.0, pytest.approx(row["fpr_upper_one_sided"], abs=1e-10))


def test_thin_keeps_the_low_end_and_stays_on_the_curve():
    rng = np.random.default_rng(0)
    member = np.arange(20_000) < 10_000
    fpr, tpr = roc(rng.normal(size=member.size) + member, member)
    x, y = thin(fpr, tpr, 200)
    assert x.size <= 200 < fpr.size
    assert {*zip(x, y, strict=True)} <= {*zip(fpr, tpr, strict=True)}
    assert (x[0], y[0], x[-1], y[-1]) == (0, 0, 1, 1)
    for low in range(11):  # the best TPR at 0, 1, … 10 false positives is among the points drawn
        assert (low / 10_000, tpr[fpr <= low / 10_000].max()) in {*zip(x, y, strict=True)}
    assert np.abs(np.interp(fpr, x, y) - tpr).max() < 0.03


def test_thin_drops_only_what_no_line_shows():
    scores, member = np.arange(10.0), np.arange(10) >= 5
    fpr, tpr = roc(scores, member)
    assert [rate.tolist() for rate in thin(fpr, tpr)] == [[0, 0, 1], [0, 1, 1]]
    with pytest.raises(AuditError, match="do not rise"):
        thin([0, 0.5, 0.2, 1], [0, 0.5, 0.7, 1])
    with pytest.raises(ConfigError, match="points is 3"):
        thin(fpr, tpr, 3)


@pytest.mark.parametrize(("k", "n"), [(0, 7), (7, 7), (3, 7), (1, 1000), (499, 500)])
@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_clopper_pearson_equals_scipy(k, n, confidence):
    for side, other in (("two", "two-sided"), ("lower", "greater"), ("upper", "less")):
        got = clopper_pearson(k, n, confidence, side)
        expected = binomtest(k, n, alternative=other).proportion_ci(confidence, "exact")
        assert (got.low, got.high) == pytest.approx((expected.low, expected.high), abs=1e-9)


def test_clopper_pearson_of_nothing_is_not_resolvable():
    assert (clopper_pearson(0, 0).value, clopper_pearson(0, 0).needs) == (None, 1)
    with pytest.raises(ConfigError, match="k is 4"):
        clopper_pearson(4, 3)
    with pytest.raises(ConfigError, match=r"k is 1\.5"):
        clopper_pearson(1.5, 3)


def test_korn_graubard_at_its_limits():
    hits = np.array([True, False, True, True, False, False])
    plain, exact = korn_graubard(hits), clopper_pearson(3, 6)
    assert plain == exact == korn_graubard(hits, [5, 3, 1, 9, 8, 2])
    none = korn_graubard(np.zeros(12, bool), np.repeat(np.arange(4), 3))
    assert none.high == clopper_pearson(0, 4).high
    assert none.n == 4
    every = korn_graubard(np.ones(12, bool), np.repeat(np.arange(4), 3))
    assert (every.low, every.high) == (clopper_pearson(4, 4).low, 1.0)
    one = korn_graubard(hits, np.zeros(6))
    assert (one.low, one.value, one.high) == (0, 0.5, 1)


def test_korn_graubard_of_copied_records_has_the_groups_as_sample():
    rng = np.random.default_rng(2)
    once = rng.random(400) < 0.3
    copied = korn_graubard(np.repeat(once, 5), np.repeat(np.arange(400), 5))
    exact = clopper_pearson(int(once.sum()), 400)
    assert copied.value == pytest.approx(exact.value)
    assert (copied.low, copied.high) == pytest.approx((exact.low, exact.high), abs=2e-3)


def test_korn_graubard_covers_where_clopper_pearson_does_not():
    rng = np.random.default_rng(4)
    group = np.repeat(np.arange(50), 8)
    covered = np.zeros(2)
    for _ in range(400):
        hits = rng.random(group.size) < rng.beta(0.4, 1.6, 50)[group]  # mean .2, correlation 1/3
        for i, got in enumerate((korn_graubard(hits, group), clopper_pearson(int(hits.sum()), hits.size))):
            covered[i] += got.low <= 0.2 <= got.high
    assert covered[0] / 400 >= 0.93
    assert covered[1] / 400 < 0.8


def test_the_threshold_is_the_conformal_order_statistic():
    rng = np.random.default_rng(5)
    member = np.arange(700) < 200
    scores = np.round(rng.normal(size=700) + member, 2)
    calibration = calibration_split(member, seed=1)
    for target in (0.05, 0.1, 0.25, 0.5):
        tpr, fpr, threshold = tpr_at_fpr(scores, member, calibration, target)
        k = math.ceil((calibration.sum() + 1) * (1 - target) - 1e-9)
        assert threshold == np.sort(scores[calibration])[k - 1]
        judged = ~member & ~calibration
        assert tpr.value == np.mean(scores[member] > threshold)
        assert fpr.value == np.mean(scores[judged] > threshold)
        exact = clopper_pearson(int((scores[member] > threshold).sum()), 200)
        assert (tpr.low, tpr.high, tpr.n) == (exact.low, exact.high, 200)


def test_the_expected_false_positive_rate_keeps_its_target():
    rng = np.random.default_rng(6)
    member = np.arange(220) < 10
    calibration = calibration_split(member)
    realised = [tpr_at_fpr(rng.normal(size=220), member, calibration, 0.1)[1].value for _ in range(600)]
    mean, error = np.mean(realised), np.std(realised) / math.sqrt(600)
    assert mean <= 0.1 + 2 * error
    assert mean >= 0.1 - 1 / 106 - 3 * error  # and no more conservative than the rule's 1/(n+1)


def test_a_threshold_over_groups_keeps_its_target_too():
    rng = np.random.default_rng(7)
    group = np.repeat(np.arange(230), 4)
    member = group < 30
    calibration = calibration_split(member, group)
    realised = []
    for _ in range(400):
        scores = 2 * rng.normal(size=230)[group] + rng.normal(size=group.size)
        tpr, fpr, _ = tpr_at_fpr(scores, member, calibration, 0.1, group)
        realised.append(fpr.value)
    assert np.mean(realised) <= 0.1 + 2 * np.std(realised) / 20
    assert (tpr.n, fpr.n) == (30, 100)
    assert "Korn–Graubard" in tpr.method


def test_a_large_group_weighs_no_more_than_a_small_one():
    rng = np.random.default_rng(9)
    for target in (0.08, 0.2, 0.4):
        group = np.repeat(np.arange(60), rng.integers(1, 9, 60))
        member = group < 10
        scores = np.round(rng.normal(size=60)[group] + rng.normal(size=group.size), 1)
        calibration = calibration_split(member, group)
        threshold = tpr_at_fpr(scores, member, calibration, target, group)[2]
        held = np.unique(group[calibration])

        def kept(t, scores=scores, group=group, held=held, target=target):
            return 1 + sum(np.mean(scores[group == g] > t) for g in held) <= target * (held.size + 1)

        assert threshold == min(t for t in scores[calibration] if kept(t))


def test_a_small_sample_is_not_resolvable():
    rng = np.random.default_rng(8)
    member = np.arange(300) < 150
    scores = rng.normal(size=300)
    calibration = calibration_split(member)
    tpr, fpr, threshold = tpr_at_fpr(scores, member, calibration, 0.01)
    assert (tpr.value, tpr.low, tpr.high, tpr.n, tpr.needs) == (None, 0.0, 1.0, 150, 2000)
    assert threshold == math.inf
    assert fpr.value == 0.0
    # Records do not stand in for coins: 1,200 non-members of 120 groups resolve no more than 120.
    group = np.arange(2400) // 10
    member = group < 120
    crowd = tpr_at_fpr(rng.normal(size=2400), member, calibration_split(member, group), 0.1, group)[0]
    assert (crowd.value, crowd.n, crowd.needs) == (None, 120, 200)


def test_the_smallest_sample_that_resolves_does():
    member = np.arange(250) < 50
    scores = np.linspace(1, 0, 250)
    assert tpr_at_fpr(scores, member, calibration_split(member), 0.1)[0].value == 1.0
    assert tpr_at_fpr(scores[:-1], member[:-1], calibration_split(member[:-1]), 0.1)[0].value is None


def test_a_group_on_both_sides_is_refused():
    member = np.array([True, False, False, False])
    calibration = np.array([False, True, False, False])
    with pytest.raises(AuditError, match="1 groups have records on both sides"):
        tpr_at_fpr(np.arange(4.0), member, calibration, 0.1, [0, 1, 1, 2])


def test_calibration_takes_half_of_the_non_member_groups_whole():
    group = np.arange(90) // 3
    member = group % 3 == 0
    chosen = calibration_split(member, group, seed=4)
    assert not (chosen & member).any()
    assert np.unique(group[chosen]).size == 10
    assert chosen.sum() == 30
    assert np.array_equal(chosen, calibration_split(member, group, seed=4))
    assert not np.array_equal(chosen, calibration_split(member, group, seed=5))
