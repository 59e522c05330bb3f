"""From scores to estimates: choices on one part, figures on another, and no leak where there is none."""

from dataclasses import fields, replace

import numpy as np
import pytest
from audit_fixtures import blank_signals, candidates, judge_scores
from scipy.stats import kstest

from sordino import stats
from sordino.attacks.base import Attack
from sordino.audit.evaluate import Evidence, _strongest, score
from sordino.audit.gates import base_gate, lower_bound, shuffle_gate
from sordino.errors import AuditError
from sordino.results import AuditPlan

PLAN = AuditPlan(headline="a", fpr=(0.1,), shuffles=199, guess_share=0.2)


def coins(rng, count):
    return rng.permutation(np.arange(count) % 2 == 0)


def test_null_audits_reject_no_more_often_than_they_say():
    strong, p_values, areas = 0, [], []
    for seed in range(300):
        rng = np.random.default_rng(seed)
        group = np.arange(60) // 2
        member = coins(rng, 30)[group]
        shared = rng.normal(size=30)[group]  # records of a coin are alike, as a person's records are
        scores = {name: shared + rng.normal(size=60) for name in "abc"}
        found = judge_scores(scores, member, PLAN, group=group, seed=seed)
        p_values.append(found.p_value)
        strong += found.headline["auc"].low > 0.5
        areas.append(found.headline["auc"].value)
    limit = 0.05 + 3 * np.sqrt(0.05 * 0.95 / 300)
    assert np.mean([p < 0.05 for p in p_values]) <= limit
    assert kstest(p_values, "uniform").pvalue > 1e-3
    # The headline is free of the choice: half of 2.5 % of its intervals lie above ½, small samples a few more.
    assert strong / 300 <= 0.025 + 4 * np.sqrt(0.05 * 0.95 / 300)
    assert abs(np.mean(areas) - 0.5) < 0.03


def test_a_real_difference_is_found_and_the_right_attack_named():
    rng = np.random.default_rng(0)
    member = coins(rng, 600)
    scores = {"a": rng.normal(size=600), "b": rng.normal(size=600) + 2 * member, "c": rng.normal(size=600) + member}
    found = judge_scores(scores, member, PLAN)
    assert found.strongest == "b" and found.p_value == 1 / 200
    assert found.headline["auc"].value == pytest.approx(0.92, abs=0.04)
    assert found.headline["tpr@0.1fpr"].value == pytest.approx(0.76, abs=0.12)
    adjusted = {a.name: a.p_value for a in found.attempts}
    assert adjusted["b"] == adjusted["c"] == 1 / 200 < adjusted["a"]
    for attempt in found.attempts:
        assert attempt.estimates["auc"].value == pytest.approx(stats.auc(scores[attempt.name], member))
        assert attempt.control["auc"].value == 0.5
        assert (attempt.records, attempt.coins) == (600, 600)


def test_labels_of_the_reporting_part_do_not_move_the_choice():
    rng = np.random.default_rng(1)
    changed = 0
    for seed in range(20):
        member = coins(rng, 80)
        scores = {name: rng.normal(size=80) for name in "abcde"}
        first = judge_scores(scores, member, PLAN, seed=seed)
        choose = first.evidence.choose
        # Exchange members and non-members of the reporting part; keep who is in which part.
        other = member.copy()
        other[~choose] = ~other[~choose]
        again = replace(first.evidence, member=other)
        name, headline = _strongest(list(scores), np.stack(list(scores.values())), again, PLAN)
        assert name == first.strongest
        changed += headline["auc"].value != first.headline["auc"].value
        best = max(scores, key=lambda n: stats.auc(scores[n][choose], member[choose]))
        assert name == best
    assert changed == 20


def test_the_headline_is_on_records_that_did_not_choose():
    rng = np.random.default_rng(2)
    member = coins(rng, 60)
    scores = {name: rng.normal(size=60) for name in "abcdefghij"}
    found = judge_scores(scores, member, PLAN)
    choose = found.evidence.choose
    expected = stats.auc(scores[found.strongest][~choose], member[~choose])
    assert found.headline["auc"].value == pytest.approx(expected)
    assert found.headline["auc"].n == (~choose).sum() == 40


def two_ways(scores, member, fpr, seed):
    """Realised FPR where one half chose the attack and set its threshold, as this audit once did."""
    half = stats.calibration_split(member, None, seed) | stats.calibration_split(~member, None, seed)
    best = max(scores.values(), key=lambda row: stats.auc(row[half], member[half]))
    judged = ~(half & member)
    return stats.tpr_at_fpr(best[judged], member[judged], half[judged], fpr)[1].value


def test_choosing_and_calibrating_on_the_same_records_accuses_too_many_and_three_parts_do_not():
    member, old, new = np.arange(240) < 120, [], []
    plan = replace(PLAN, shuffles=99, fpr=(0.25,))
    for seed in range(150):
        rng = np.random.default_rng(seed)
        scores = {str(i): rng.normal(size=240) for i in range(12)}
        old.append(two_ways(scores, member, 0.25, seed))
        stack, evidence = np.stack(list(scores.values())), Evidence.of(candidates(member, np.arange(240)), seed)
        new.append(_strongest(list(scores), stack, evidence, plan)[1]["realised fpr@0.25fpr"].value)
    error = np.std(old) / np.sqrt(150)
    assert np.mean(old) > 0.25 + 4 * error  # the best of twelve on these non-members is not the best on others
    assert 0.25 - 6 * error < np.mean(new) <= 0.25 + 2 * error


def test_a_headline_that_cannot_be_resolved_says_what_three_parts_take():
    rng = np.random.default_rng(2)
    member = coins(rng, 600)
    for size, resolved in ((600, True), (580, False)):
        found = judge_scores({"a": rng.normal(size=size)}, member[:size], PLAN)
        tpr = found.headline["tpr@0.1fpr"]
        assert (tpr.value is not None) is resolved
        if not resolved:
            assert (tpr.needs, tpr.n) == (300, (~member[:size]).sum()) and "a third of them to choose" in tpr.method
            assert found.attempts[0].estimates["tpr@0.1fpr"].value is not None  # a single attack needs no choice


def test_the_three_parts_are_whole_coins_and_all_are_used():
    rng = np.random.default_rng(3)
    group = rng.integers(0, 40, 200)
    member = coins(rng, 40)[group]
    evidence = Evidence.of(candidates(member, group), 5)
    for code in np.unique(evidence.group):
        for part in (evidence.calibration, evidence.choose, evidence.calibrate):
            assert len(set(part[evidence.group == code])) == 1
    assert not (evidence.choose & evidence.calibrate).any()
    assert not (evidence.member & (evidence.calibrate | evidence.calibration)).any()
    inside, outside = (len(np.unique(evidence.group[evidence.member == side])) for side in (True, False))

    def count(chosen):
        return len(np.unique(evidence.group[chosen]))

    assert count(evidence.calibration) == outside // 2
    assert count(evidence.choose & evidence.member) == inside // 3
    assert count(evidence.choose & ~evidence.member) == outside // 3
    assert count(evidence.calibrate) == (outside - outside // 3) // 2
    kept = evidence.take(evidence.member)
    assert all(getattr(kept, f.name).size == evidence.member.sum() for f in fields(kept))


def test_records_without_a_score_are_left_out_of_all_and_counted():
    rng = np.random.default_rng(4)
    member = coins(rng, 100)
    scores = {name: rng.normal(size=100) for name in "ab"}
    scores["a"][3] = np.nan
    controls = {"b": np.where(np.arange(100) == 7, np.nan, 0.0)}
    found = judge_scores(scores, member, PLAN, controls=controls)
    assert found.unscored == 2 and found.scores.shape == (2, 98)
    assert {a.records for a in found.attempts} == {98}


@pytest.mark.parametrize(
    ("result", "message"), [(np.zeros(3), "shape"), (np.full(5, np.inf), "infinite"), (np.zeros((5, 1)), "shape")]
)
def test_attacks_that_break_the_contract(result, message):
    def run(signals):
        return result

    attack = Attack(name="odd", family="membership", run=run, paper="", access="", base=False, views={})
    with pytest.raises(AuditError, match=f"'odd' returned .*{message}"):
        score(attack, blank_signals(5))


@pytest.mark.parametrize("right", [0, 5, 10, 20])
def test_the_lower_bound_is_that_of_its_guesses(right):
    """100 coins, a fifth guessed: the 10 highest scores as members, the 10 lowest as not; `right` are so."""
    scores = np.arange(100.0)
    truth = np.tile([True, False], 50)
    truth[:10] = [i >= min(right, 10) for i in range(10)]  # low scores: right where not a member
    truth[90:] = [i < max(0, right - 10) for i in range(10)]
    found = judge_scores({"a": scores}, truth, PLAN)
    bound, guesses, hits = lower_bound(found, PLAN)
    assert (guesses, hits) == (20, right)
    assert bound.value == bound.low == stats.epsilon_one_run(100, 20, right, PLAN.delta, 0.95)
    assert bound.high == stats.UNBOUNDED and f"{right} of 20 guesses right over 100 coins" in bound.method
    assert (bound.value > 1.5) == (right == 20)


def test_the_lower_bound_is_the_one_declared_and_says_of_what_it_speaks():
    member = np.arange(100) >= 50
    found = judge_scores({"a": np.arange(100.0)}, member, PLAN)
    bound, guesses, right = lower_bound(found, replace(PLAN, bound="f-dp"))
    assert bound.value == stats.epsilon_f_dp(100, 20, 20, PLAN.delta) and (guesses, right) == (20, 20)
    assert bound.method.startswith("f-DP one-run lower bound for Gaussian mechanisms")
    assert bound.value != lower_bound(found, PLAN)[0].value
    gate = shuffle_gate(found, replace(PLAN, bound="f-dp"), 0)
    assert gate.passed is True


def test_the_lower_bound_counts_coins_not_records():
    rng = np.random.default_rng(6)
    group = np.repeat(np.arange(50), 4)
    member = coins(rng, 50)[group]
    scores = member + 0.1 * rng.normal(size=200)
    bound, guesses, hits = lower_bound(judge_scores({"a": scores}, member, PLAN, group=group), PLAN)
    assert (guesses, hits, bound.n) == (10, 10, 50)


def test_the_lower_bound_is_that_of_the_attack_declared_before():
    rng = np.random.default_rng(7)
    member = coins(rng, 200)
    scores = {"a": rng.normal(size=200), "z": member + 0.0}
    bound, _, _ = lower_bound(judge_scores(scores, member, PLAN), PLAN)
    assert bound.value < 1


def test_the_base_control_finds_a_split_that_the_base_knows_and_passes_fair_ones():
    rng = np.random.default_rng(8)
    member = coins(rng, 120)
    noise = {name: rng.normal(size=120) for name in "ab"}
    for direction in (1, -1):  # two-sided: a base that knows non-members better is as wrong
        controls = {"a": rng.normal(size=120) + direction * 1.5 * member, "b": rng.normal(size=120)}
        gate = base_gate(judge_scores(noise, member, PLAN, controls=controls), PLAN, 0)
        assert gate.passed is False and gate.p_value == 1 / 200 and gate.name == "base"
    gates = [base_gate(judge_scores(noise, coins(rng, 120), PLAN, controls=noise, seed=s), PLAN, s) for s in range(30)]
    assert sum(not g.passed for g in gates) <= 2


def test_shuffled_coins_give_no_bound():
    rng = np.random.default_rng(9)
    member = coins(rng, 200)
    gate = shuffle_gate(judge_scores({"a": rng.normal(size=200)}, member, PLAN), PLAN, 0)
    assert gate.passed is True and "of 200 draws" in gate.finding
