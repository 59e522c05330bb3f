"""Single records called members: how many, how many wrongly, and that the rate of false discoveries holds."""

import json

import numpy as np
import pytest
from audit_fixtures import judge_scores
from test_audit_evaluate import PLAN, coins

from sordino import stats
from sordino.audit.evaluate import _strongest
from sordino.audit.identified import FALSE_DISCOVERIES, IDENTIFIED, identified_words, identify
from sordino.results import encode


def planted(extra=0):
    """99 calibrating non-members below 0, then 60 members, 25 of them above all, and 40 other non-members."""
    scores = np.concatenate([-1 - np.arange(99.0), np.full(25, 5.0), np.full(35, -200.0), np.full(40, -200.0)])
    scores[159 : 159 + extra] = 5.0
    member = np.repeat([False, True, False], [99, 60, 40])
    return scores, member, np.arange(199), np.arange(199) < 99, np.arange(199) >= 99


def test_records_above_all_others_are_identified_and_counted():
    found = identify(*planted())
    share = found.estimates[IDENTIFIED]
    assert (share.value, share.n) == (25 / 60, 60)
    assert (share.low, share.high) == pytest.approx(
        (stats.clopper_pearson(25, 60).low, stats.clopper_pearson(25, 60).high)
    )
    assert found.estimates[FALSE_DISCOVERIES].value == 0.0 and found.estimates[FALSE_DISCOVERIES].n == 25
    assert found.called.tolist() == [99 <= i < 124 for i in range(199)]
    assert np.isnan(found.p_values[:99]).all() and set(found.p_values[99:]) == {0.01, 1.0}
    assert identified_words(found.estimates) == (
        "25 of 60 trained-on records are each identified with a false discovery rate of 5% "
        "(0 of 25 accusations were wrong)."
    )


def test_non_members_that_are_called_stand_beside():
    found = identify(*planted(extra=3))
    assert found.estimates[FALSE_DISCOVERIES].value == pytest.approx(3 / 28)
    assert "(3 of 28 accusations were wrong)" in identified_words(found.estimates)


def test_too_few_to_pass_the_rate_are_not_identified():
    # p = .01 for each of the best: of 100 judged, Benjamini–Hochberg at 5 % takes 20 of them or none.
    scores, member, group, held, judged = planted()
    scores[99:104] = -200.0
    assert identify(scores, member, group, held, judged).estimates[IDENTIFIED].value == 20 / 60
    scores[99:105] = -200.0
    one = identify(scores, member, group, held, judged).estimates
    assert one[IDENTIFIED].value == 0.0 and "takes 20 or more at once" in one[IDENTIFIED].method
    words = identified_words(one)
    assert words == "None of 60 trained-on records are each identified with a false discovery rate of 5%."


def test_records_of_a_coin_are_one():
    scores, member, group, held, judged = (np.repeat(a, 3) for a in planted())
    found = identify(scores, member, group, held, judged)
    assert found.estimates[IDENTIFIED].n == 60 and found.estimates[IDENTIFIED].value == 25 / 60
    assert "25 of 60 groups of trained-on records" in identified_words(found.estimates)
    assert found.p_values.shape == (597,)


def test_what_no_p_value_can_reach_is_not_resolvable():
    scores, member, group, held, judged = planted()
    few = held & (np.arange(199) < 18)
    one = identify(scores, member, group, few, judged).estimates
    assert one[IDENTIFIED].value is None and one[IDENTIFIED].needs == 19 and FALSE_DISCOVERIES not in one
    assert str(one[IDENTIFIED]) == "not resolvable: needs 19 (n=18)"
    assert identified_words(one) == identified_words({}) == ""
    assert identify(scores, member, group, held & (np.arange(199) < 19), judged).estimates[IDENTIFIED].value is not None


@pytest.mark.parametrize("leaky", [0.0, 0.6, 0.9])
def test_the_rate_of_false_discoveries_holds_for_the_attack_that_was_chosen(leaky):
    """Twelve attacks of which one works on a share of the members; records of a non-member are never called often."""
    rng, false, found = np.random.default_rng(int(10 * leaky)), [], []
    member = np.arange(400) < 200
    for seed in range(150):
        scores = rng.normal(size=(12, 400))
        scores[3, member & (rng.random(400) < leaky)] += 4
        choose, calibrate = stats.three_way_split(member, None, seed)
        best = scores[max(range(12), key=lambda i: stats.auc(scores[i][choose], member[choose]))]
        one = identify(best, member, np.arange(400), calibrate, ~choose & ~calibrate)
        wrong = one.called & ~member
        false.append(wrong.sum() / max(1, one.called.sum()))
        found.append(one.estimates[IDENTIFIED].value)
    assert np.mean(false) <= 0.05 + 2 * np.std(false) / np.sqrt(150)
    assert np.mean(found) <= 0.01 if not leaky else np.mean(found) > 0.05


def test_the_audit_tells_the_headline_and_keeps_the_records_apart():
    rng = np.random.default_rng(0)
    member = coins(rng, 600)
    outcome = judge_scores({"a": rng.normal(size=600), "b": rng.normal(size=600) + 5 * member}, member, PLAN)
    assert outcome.headline[IDENTIFIED] == outcome.identified.estimates[IDENTIFIED]
    assert outcome.headline[IDENTIFIED].value > 0.8 and outcome.headline[IDENTIFIED].n == 200
    judged = ~np.isnan(outcome.identified.p_values)
    assert not (judged & (outcome.evidence.choose | outcome.evidence.calibrate)).any()
    assert outcome.records == tuple(f"r{i}" for i in range(600))
    kept = json.loads(encode({"p": outcome.identified.p_values.tolist()}))
    assert kept["p"].count(None) == int((~judged).sum())
    assert set(_strongest(["a", "b"], outcome.scores, outcome.evidence, PLAN)[1]) <= set(outcome.headline)
