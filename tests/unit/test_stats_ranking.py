"""AUC, DeLong and the smallest detectable AUC against published numbers, loops and scikit-learn."""

import json
import math
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import mannwhitneyu, norm
from sklearn.metrics import roc_auc_score

from sordino.errors import AuditError, ConfigError
from sordino.stats import auc, delong, paired_delong, smallest_detectable_auc

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "roc_stats.json").read_text(encoding="utf-8"))
SETS = pytest.mark.parametrize("case", GOLDEN["sets"], ids=lambda case: case["name"])


def arrays(case):
    inside, outside = case["member_scores"], case["nonmember_scores"]
    return np.array(inside + outside), np.arange(len(inside) + len(outside)) < len(inside)


def clustered(seed, groups=40, mixed=False):
    """Scores with a group effect, tied to one decimal; groups of one to five records."""
    rng = np.random.default_rng(seed)
    group = np.repeat(np.arange(groups), rng.integers(1, 6, groups))
    member = rng.random(group.size) < 0.5 if mixed else (np.arange(groups) % 2 == 0)[group]
    return np.round(rng.normal(size=groups)[group] + rng.normal(size=group.size) + member, 1), member, group


def obuchowski(scores, member, group):
    """Obuchowski (1997) as she wrote it: sums over clusters of placement values, in loops."""
    kernel = lambda x, y: 1.0 if x > y else 0.5 if x == y else 0.0  # noqa: E731
    inside, outside = scores[member], scores[~member]
    m, n = inside.size, outside.size
    theta = sum(kernel(x, y) for x in inside for y in outside) / (m * n)
    s10 = s01 = s11 = 0.0
    i10, i01, i = len(set(group[member])), len(set(group[~member])), len(set(group))
    for g in set(group):
        xs, ys = scores[member & (group == g)], scores[~member & (group == g)]
        a = sum(sum(kernel(x, y) for y in outside) / n for x in xs) - len(xs) * theta
        b = sum(sum(kernel(x, y) for x in inside) / m for y in ys) - len(ys) * theta
        s10 += i10 / ((i10 - 1) * m) * a * a
        s01 += i01 / ((i01 - 1) * n) * b * b
        s11 += i / (i - 1) * a * b
    return theta, s10 / m + s01 / n + 2 * s11 / (m * n)


@SETS
def test_auc_equals_the_golden_numbers_and_scikit_learn(case):
    scores, member = arrays(case)
    assert auc(scores, member) == pytest.approx(float(Fraction(case["results"]["auc_fraction"])), abs=1e-15)
    assert auc(scores, member) == pytest.approx(roc_auc_score(member, scores), abs=1e-14)


@pytest.mark.parametrize(
    "case", [x for x in GOLDEN["sets"] if x["results"]["delong_variance"]], ids=lambda case: case["name"]
)
def test_delong_equals_the_golden_intervals(case):
    scores, member = arrays(case)
    expected = case["results"]
    got = delong(scores, member, confidence=expected["confidence"])
    assert (got.low, got.high) == pytest.approx(expected["ci_wald_clipped"], abs=1e-10)
    assert got.value == pytest.approx(expected["auc"], abs=1e-10)
    assert got.n == member.size
    logit = delong(scores, member, confidence=expected["confidence"], scale="logit")
    assert (logit.low, logit.high) == pytest.approx(expected["ci_logit"], abs=1e-10)


def test_paired_delong_equals_the_golden_numbers():
    case = GOLDEN["paired_delong"]
    inside, outside, expected = case["members"], case["nonmembers"], case["results"]
    a, b = (np.array(inside[key] + outside[key]) for key in ("score_1", "score_2"))
    got = paired_delong(a, b, np.arange(a.size) < len(inside["score_1"]))
    assert got.difference == pytest.approx(expected["difference"], abs=1e-10)
    assert got.se == pytest.approx(expected["se_difference"], abs=1e-10)
    assert got.z == pytest.approx(expected["z"], rel=1e-8)
    assert got.p_value == pytest.approx(expected["p_two_sided"], rel=1e-8)
    assert got.interval.high - got.interval.low == pytest.approx(2 * norm.ppf(0.975) * got.se, abs=1e-10)


@pytest.mark.parametrize("mixed", [False, True], ids=["whole groups", "mixed groups"])
@pytest.mark.parametrize("seed", range(3))
def test_clustered_delong_equals_the_loops(seed, mixed):
    scores, member, group = clustered(seed, mixed=mixed)
    theta, variance = obuchowski(scores, member, group)
    got = delong(scores, member, group)
    assert got.value == pytest.approx(theta, abs=1e-12)
    assert got.n == 40
    assert got.high - got.low == pytest.approx(2 * norm.ppf(0.975) * math.sqrt(variance), abs=1e-10)


def test_groups_of_one_record_change_nothing():
    scores, member, _ = clustered(5)
    labels = np.random.default_rng(0).permutation(scores.size) * 7
    assert delong(scores, member, labels) == delong(scores, member)


def test_duplicated_records_do_not_narrow_the_interval():
    scores, member, _ = clustered(6)
    once = delong(scores, member)
    twice = delong(np.tile(scores, 3), np.tile(member, 3), np.tile(np.arange(scores.size), 3))
    assert (twice.low, twice.high, twice.n) == (pytest.approx(once.low), pytest.approx(once.high), once.n)


def test_no_interval_has_zero_width():
    member = np.arange(20) < 8
    perfect = delong(member.astype(float), member)
    assert perfect.value == 1.0 == perfect.high
    assert perfect.low == pytest.approx(0.025 ** (1 / 8))  # eight pairs in order: Clopper–Pearson of 8/8
    assert "Clopper–Pearson" in perfect.method
    reverse = delong(-member.astype(float), member)
    assert (reverse.low, reverse.high) == (0.0, pytest.approx(1 - perfect.low))
    tied = delong(np.zeros(20), member)
    assert tied.value == 0.5
    assert tied.high - 0.5 == pytest.approx(math.sqrt(math.log(40) / 16))
    assert "Hoeffding" in tied.method
    lonely = delong([3.0, 1.0, 2.0, 0.0], [True, True, False, False], [0, 0, 1, 1])
    assert (lonely.low, lonely.high, lonely.n) == (0.0, 1.0, 2)


def test_the_perfect_separation_interval_covers():
    # Three members and three non-members at a true AUC of .8: 1 is often seen and .8 must stay inside.
    rng = np.random.default_rng(3)
    member = np.arange(6) < 3
    shift = math.sqrt(2) * norm.ppf(0.8)
    found = [delong(rng.normal(size=6) + shift * member, member) for _ in range(400)]
    separated = [x for x in found if x.value == 1.0]
    assert len(separated) > 50
    assert all(x.low < 0.8 for x in separated)


def test_clustered_intervals_cover_and_unclustered_ones_do_not():
    rng = np.random.default_rng(8)
    groups, size, truth = 60, 6, 0.5
    group = np.repeat(np.arange(groups), size)
    member = (np.arange(groups) % 2 == 0)[group]
    covered = np.zeros(2)
    for _ in range(300):
        scores = rng.normal(size=groups)[group] + 0.5 * rng.normal(size=group.size)
        for i, labels in enumerate((group, None)):
            got = delong(scores, member, labels)
            covered[i] += got.low <= truth <= got.high
    assert 0.90 <= covered[0] / 300 <= 0.985
    assert covered[1] / 300 < 0.75


def test_paired_difference_of_a_score_with_itself_is_not_certain():
    scores, member, group = clustered(4)
    same = paired_delong(scores, 3 * scores, member, group)
    assert (same.difference, same.se, same.z, same.p_value) == (0.0, 0.0, 0.0, 1.0)
    assert same.interval.low < 0 < same.interval.high
    opposite = paired_delong(member, -member.astype(float), member)
    assert opposite.z == math.inf
    assert 0 < opposite.p_value < 1e-6
    assert opposite.interval.low < 1 == opposite.interval.high


def test_paired_clustered_variance_is_that_of_the_difference():
    scores, member, group = clustered(9)
    other = scores + np.random.default_rng(1).normal(size=scores.size)
    a, b = delong(scores, member, group), delong(other, member, group)
    got = paired_delong(scores, other, member, group)
    loose = math.hypot(a.high - a.low, b.high - b.low) / 2 / norm.ppf(0.975)
    assert got.difference == pytest.approx(a.value - b.value)
    assert 0 < got.se < loose  # positively correlated scores: less than the independent sum


def test_smallest_detectable_auc_is_found_with_the_power_it_promises():
    rng = np.random.default_rng(11)
    m, n = 60, 80
    area = smallest_detectable_auc(m, n, power=0.8, alpha=0.05)
    shift = math.sqrt(2) * norm.ppf(area)
    found = [
        mannwhitneyu(rng.normal(shift, size=m), rng.normal(size=n), alternative="greater").pvalue < 0.05
        for _ in range(600)
    ]
    assert np.mean(found) == pytest.approx(0.8, abs=0.06)
    assert smallest_detectable_auc(2, 2) == 1.0
    assert smallest_detectable_auc(10_000, 10_000) < 0.52


@pytest.mark.parametrize(
    ("scores", "member", "words"),
    [
        ([1.0, math.nan], [True, False], "1 of 2 scores are NaN"),
        ([1.0, 2.0], [True, True], "2 members and 0 non-members"),
        ([1.0, 2.0], [True], "member has shape"),
        ([[1.0, 2.0]], [True, False], "scores has shape"),
    ],
)
def test_bad_input_is_named(scores, member, words):
    with pytest.raises(AuditError, match=words):
        auc(scores, member)


def test_bad_arguments_are_named():
    with pytest.raises(ConfigError, match="confidence is 95"):
        delong([1.0, 0.0], [True, False], confidence=95)
    with pytest.raises(ConfigError, match="scale is 'probit'"):
        delong([1.0, 0.0], [True, False], scale="probit")
    with pytest.raises(AuditError, match="group has shape"):
        delong([1.0, 0.0], [True, False], [1])
    with pytest.raises(ConfigError, match="n_members is 0"):
        smallest_detectable_auc(0, 5)


def test_infinite_scores_are_ranks_like_any_other():
    scores = [math.inf, 1.0, 0.0, -math.inf]
    assert auc(scores, [True, False, True, False]) == 0.75
