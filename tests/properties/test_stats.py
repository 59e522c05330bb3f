"""What must hold for every score, label and count."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.stats import (
    auc,
    benjamini_hochberg,
    clopper_pearson,
    conformal_p,
    delong,
    epsilon_one_run,
    holm,
    korn_graubard,
    max_t,
    mean_interval,
    one_run_guesses,
    paired_delong,
    roc,
    thin,
    tpr_at_fpr_in_sample,
)

short = settings(max_examples=60, deadline=None)


@st.composite
def samples(draw, most=40):
    """Integer scores (many ties), labels of both kinds, and groups of one label each."""
    n = draw(st.integers(2, most))
    member = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    member[0], member[-1] = True, False
    scores = np.array(draw(st.lists(st.integers(-5, 5), min_size=n, max_size=n)), float)
    pieces = np.array(draw(st.lists(st.integers(0, 6), min_size=n, max_size=n)))
    return scores, member, 2 * pieces + member


@short
@given(samples())
def test_swapped_labels_and_negated_scores_mirror_the_auc(sample):
    scores, member, group = sample
    area = auc(scores, member)
    assert auc(scores, ~member) == pytest.approx(1 - area, abs=1e-15)
    assert auc(-scores, member) == pytest.approx(1 - area, abs=1e-15)
    here, there = delong(scores, member, group), delong(-scores, member, group)
    assert (1 - there.high, 1 - there.low) == pytest.approx((here.low, here.high), abs=1e-9)


@short
@given(samples())
def test_monotone_transforms_change_nothing(sample):
    scores, member, group = sample
    curved = np.exp(scores / 3) + 7
    assert delong(scores, member, group) == delong(curved, member, group)
    assert one_run_guesses(scores, member, 0.5) == one_run_guesses(curved, member, 0.5)
    assert np.array_equal(roc(scores, member), roc(curved, member))
    assert max_t(scores[None], member, shuffles=49)[0] == max_t(curved[None], member, shuffles=49)[0]


@short
@given(samples(), st.sampled_from([0.5, 0.9, 0.99]))
def test_intervals_contain_their_point(sample, confidence):
    scores, member, group = sample
    hits = scores > 0
    found = [
        delong(scores, member, group, confidence),
        delong(scores, member, None, confidence, "logit"),
        korn_graubard(hits, group, confidence),
        korn_graubard(hits, None, confidence),
        mean_interval(scores, group, confidence),
        paired_delong(scores, np.roll(scores, 1), member, group, confidence).interval,
    ]
    for interval in found:
        assert interval.low - 1e-12 <= interval.value <= interval.high + 1e-12
        assert interval.confidence == confidence
    assert all(0 <= x.low <= x.high <= 1 for x in found[:4])


@short
@given(samples(), st.integers(0, 2**32 - 1))
def test_the_order_of_records_is_irrelevant(sample, seed):
    scores, member, group = sample
    order = np.random.default_rng(seed).permutation(scores.size)
    here, there = delong(scores, member, group), delong(scores[order], member[order], group[order])
    assert (here.low, here.high) == pytest.approx((there.low, there.high), abs=1e-9)
    for target in (0.0, 0.1, 0.5):
        assert tpr_at_fpr_in_sample(scores, member, target) == tpr_at_fpr_in_sample(
            scores[order], member[order], target
        )


@short
@given(samples(most=120), st.integers(10, 30))
def test_thinned_curves_are_points_of_the_curve(sample, points):
    scores, member, _ = sample
    scores = scores + np.arange(scores.size) / 1000
    fpr, tpr = roc(scores, member)
    x, y = thin(fpr, tpr, points)
    assert x.size <= points
    assert {*zip(x, y, strict=True)} <= {*zip(fpr, tpr, strict=True)}
    assert (x[-1], y[-1]) == (1, 1)
    assert tpr[fpr == 0].max() in y[x == 0]
    assert np.trapezoid(*roc(scores, member)[::-1]) == pytest.approx(auc(scores, member))


@short
@given(st.integers(0, 300), st.integers(1, 300), st.integers(2, 20))
def test_more_evidence_never_widens_clopper_pearson(k, n, times):
    k = min(k, n)
    few, many = clopper_pearson(k, n), clopper_pearson(k * times, n * times)
    assert many.high - many.low <= few.high - few.low + 1e-12
    one_sided = clopper_pearson(k, n, side="lower").low, clopper_pearson(k, n, side="upper").high
    assert few.low <= one_sided[0] + 1e-12
    assert one_sided[1] <= few.high + 1e-12


@short
@given(st.integers(1, 200), st.data())
def test_the_one_run_bound_is_monotone(r, data):
    v = data.draw(st.integers(0, r - 1))
    delta = data.draw(st.sampled_from([0.0, 1e-6, 1e-3]))
    m = data.draw(st.integers(r, 4 * r))
    eps = epsilon_one_run(m, r, v, delta)
    assert eps >= 0
    assert epsilon_one_run(m, r, v + 1, delta) >= eps - 1e-12
    assert epsilon_one_run(m, r, v, delta, 0.99) <= eps + 1e-12
    assert epsilon_one_run(m, r, v, 0.0) >= eps - 1e-12
    assert epsilon_one_run(2 * m, r, v, delta) <= eps + 1e-12


@short
@given(st.lists(st.floats(0, 1), min_size=1, max_size=30))
def test_corrections_keep_the_order_and_never_lower_a_p_value(p):
    values = np.array(p)
    step_down, step_up = holm(values), benjamini_hochberg(values)
    assert np.all((values <= step_up + 1e-15) & (step_up <= step_down + 1e-15) & (step_down <= 1))
    order = np.argsort(values, kind="stable")
    assert np.all(np.diff(step_down[order]) >= 0)
    assert np.all(np.diff(step_up[order]) >= 0)


@short
@given(samples())
def test_conformal_p_values_fall_with_the_score(sample):
    scores, member, _ = sample
    p = conformal_p(scores[~member], np.sort(scores))
    assert np.all(np.diff(p) <= 0)
    assert np.all((p > 0) & (p <= 1))
