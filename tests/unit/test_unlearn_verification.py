"""Verification: what passes, what fails, what stays open, and that it can be computed again without torch."""

import dataclasses
import json
import subprocess
import sys

import msgspec
import numpy as np
import pytest
from scipy import stats as scipy_stats

from sordino.errors import ConfigError
from sordino.results import (
    DeletionRequest,
    Estimate,
    Margins,
    Qualification,
    Robustness,
    Scores,
    Verification,
    decode,
    encode,
)
from sordino.unlearn.verifying.comparing import compare_models, compare_requests, seed_metrics, together
from sordino.unlearn.verifying.verification import Evidence, recompute, requalify, verify

REQUEST = DeletionRequest(id="0123456789ab", created="2026-11-22", run="r", kind="subject", names=("u1",))
MANY = 400


def columns(rng, subjects, shift=0.0, start=0, each=2, memory=0.1):
    """Records whose losses are `shift` from those of the untuned model, each subject with an offset of its own."""
    subject = np.repeat(np.arange(start, start + subjects), each)
    base = rng.normal(3.0, 0.5, len(subject))
    loss = base + shift + rng.normal(0, 0.2, subjects).repeat(each) + rng.normal(0, 0.1, len(subject))
    return {
        "subject": tuple(subject.astype(float).tolist()),
        "loss": tuple(loss.tolist()),
        "base_loss": tuple(base.tolist()),
        "tokens": (20.0,) * len(subject),
        "extraction_strength": tuple(np.clip(rng.normal(memory, 0.05, len(subject)), 0, 1).tolist()),
        "exact_memorisation": tuple(np.clip(rng.normal(memory + 0.2, 0.05, len(subject)), 0, 1).tolist()),
    }


def scores(seed=0, *, subjects=MANY, forget=0.0, model="after", **more):
    rng = np.random.default_rng(seed)
    validation = columns(np.random.default_rng(99), 100, start=5000)
    return Scores(
        model=model,
        forget=columns(rng, subjects, forget, **more),
        never=columns(rng, subjects, start=1000),
        retain=columns(rng, 100, -1.0, start=3000),
        validation=validation,
    )


BEFORE = scores(1, forget=-1.5, model="before", memory=0.5)
GOOD = scores(2)
ROBUST = tuple(
    Robustness(
        name=name, what="-", estimate=Estimate(value=low + 0.05, low=low, high=low + 0.1, n=40, method="made up")
    )
    for name, low in (("relearning", -0.04), ("two_checkpoints", 0.8))
)
UNRESOLVED = dataclasses.replace(ROBUST[0].estimate, value=None)


def seeds(rng, auc=0.5, count=5):
    means = {"auc_calibrated": auc, "loss": 3.0, "extraction_strength": 0.1, "exact_memorisation": 0.3, "utility": 2.5}
    return tuple({name: float(rng.normal(mean, 0.003)) for name, mean in means.items()} for _ in range(count))


def qualification(auc=0.5, count=5):
    rng = np.random.default_rng(5)
    return requalify(
        Qualification(
            id="q", created="2026-11-22", run="r", weights="w", root=None, method="npo", tier="approximate",
            settings={},
            margins=Margins(), subjects=3, generator=0, seeds=tuple(range(count)), unlearned=seeds(rng, auc, count),
            retrained=seeds(rng, 0.5, count), untouched=seeds(rng, 0.9, count),
        )
    )  # fmt: skip


def evidence(**changes):
    return Evidence(**{"qualification": qualification(), "robustness": ROBUST, **changes})


def test_what_is_like_the_never_trained_passes():
    found = verify(REQUEST, BEFORE, GOOD, evidence())
    assert found.outcome == "pass", found.reasons
    assert [c.metric for c in found.comparisons] == [
        "auc_calibrated", "loss_calibrated", "extraction_strength", "exact_memorisation", "utility",
    ]  # fmt: skip
    assert [row.name for row in found.rows] == ["before", "after", "retrain", "do_nothing"]
    assert found.rows[2].source.startswith("qualification q") and found.qualification == "q"
    assert found.rows[0].metrics["auc_calibrated"].value > 0.99


def test_the_statistics_are_those_of_scipy_on_means_of_subjects():
    by_name = {c.metric: c for c in compare_requests(BEFORE, GOOD, Margins())}

    def means(columns, name):
        values = np.subtract(columns["loss"], columns["base_loss"]) if name == "loss" else np.array(columns[name])
        return values.reshape(-1, 2).mean(1)

    for metric, name, margin in (
        ("loss_calibrated", "loss", 0.1),
        ("extraction_strength", "extraction_strength", 0.05),
    ):
        a, b = means(GOOD.forget, name), means(GOOD.never, name)
        above = scipy_stats.ttest_ind(a - margin, b, equal_var=False, alternative="less").pvalue
        below = scipy_stats.ttest_ind(a + margin, b, equal_var=False, alternative="greater").pvalue
        assert by_name[metric].p_value == pytest.approx(max(above, below), rel=1e-6)
        assert by_name[metric].difference.n == 2 * MANY
    assert by_name["utility"].margin == pytest.approx(0.02 * np.mean(BEFORE.validation["loss"]))


@pytest.mark.parametrize("shift", [-1.0, 1.0])
def test_what_is_still_known_or_has_become_conspicuous_fails(shift):
    found = verify(REQUEST, BEFORE, scores(2, forget=shift), evidence())
    failed = {c.metric for c in found.comparisons if c.outcome == "fail"}
    assert found.outcome == "fail" and {"auc_calibrated", "loss_calibrated"} <= failed
    assert any("beyond ± 0.1" in reason for reason in found.reasons)


def test_too_few_subjects_leave_it_open_and_say_what_it_takes():
    found = verify(REQUEST, BEFORE, scores(2, subjects=8), evidence())
    [auc] = [c for c in found.comparisons if c.metric == "auc_calibrated"]
    assert found.outcome == "inconclusive" and auc.power < 1e-3 and auc.difference.needs == 144
    assert any("it takes 144 of each kind" in reason for reason in found.reasons)
    one = verify(REQUEST, BEFORE, scores(2, subjects=1), evidence())
    assert one.outcome == "inconclusive" and one.comparisons[0].difference.value is None


def without(name, part):
    changed = dict(getattr(GOOD, part))
    del changed[name]
    return dataclasses.replace(GOOD, **{part: changed})


def with_nan(name, part):
    changed = dict(getattr(GOOD, part))
    changed[name] = (float("nan"), *changed[name][1:])
    return dataclasses.replace(GOOD, **{part: changed})


@pytest.mark.parametrize(
    "after",
    [
        without("base_loss", "forget"), without("loss", "never"), without("extraction_strength", "never"),
        without("subject", "forget"), with_nan("loss", "forget"), with_nan("base_loss", "never"),
        with_nan("exact_memorisation", "forget"), with_nan("loss", "validation"),
        dataclasses.replace(GOOD, never={}), dataclasses.replace(GOOD, forget={}),
        dataclasses.replace(GOOD, validation={}), scores(2, forget=0.0, subjects=0),
        dataclasses.replace(GOOD, forget={**GOOD.forget, "rouge_l": (0.1,) * 2 * MANY}),
        dataclasses.replace(GOOD, validation=columns(np.random.default_rng(3), 90, start=5000)),
    ],
)  # fmt: skip
def test_what_is_missing_is_never_a_pass(after):
    found = verify(REQUEST, BEFORE, after, evidence())
    assert found.outcome == "inconclusive" and len(found.comparisons) >= 5
    assert any("missing" in reason for reason in found.reasons)
    encode(found)


@pytest.mark.parametrize(
    ("changes", "outcome", "words"),
    [
        ({"qualification": None}, "inconclusive", "No qualification"),
        ({"robustness": ()}, "inconclusive", "Robustness was not measured"),
        ({"untried": {"int8": "There is no quantiser."}}, "inconclusive", "int8: There is no quantiser."),
        ({"qualification": qualification(count=4)}, "inconclusive", "ended as inconclusive"),
        ({"qualification": qualification(auc=0.9)}, "fail", "ended as fail"),
        (
            {"robustness": (dataclasses.replace(ROBUST[0], estimate=UNRESOLVED),)},
            "inconclusive", "no figure for: relearning",
        ),
        ({"robustness": (dataclasses.replace(ROBUST[1], name="int8"),)}, "fail", "comes back beyond 0.1 of AUC (int8"),
    ],
)  # fmt: skip
def test_without_its_evidence_an_approximate_deletion_is_open(changes, outcome, words):
    found = verify(REQUEST, BEFORE, GOOD, evidence(**changes))
    assert found.outcome == outcome and any(words in reason for reason in found.reasons)


def test_a_no_op_fails():
    same = dataclasses.replace(GOOD, model="before")
    assert verify(REQUEST, BEFORE, same, evidence()).outcome == "fail"


def test_lost_utility_fails_and_gained_utility_does_not():
    def moved(by):
        validation = {**GOOD.validation, "loss": tuple(np.array(GOOD.validation["loss"]) + by)}
        return verify(REQUEST, BEFORE, dataclasses.replace(GOOD, validation=validation), evidence())

    noise = np.random.default_rng(8).normal(0, 0.01, 200)
    assert moved(0.5 + noise).outcome == "fail" and moved(-0.5 + noise).outcome == "pass"
    assert moved(0.06 + 10 * noise).outcome == "inconclusive"


SHOWN = {"roots": True, "absence": True, "weights": True}


def test_the_exact_tier_is_judged_by_what_it_shows_and_by_utility():
    known = scores(2, forget=-1.0)  # statistics are printed only
    whole = verify(REQUEST, BEFORE, known, Evidence(tier="exact", shown=SHOWN))
    assert whole.outcome == "pass" and whole.comparisons[0].outcome == "fail"
    assert [row.name for row in whole.rows] == ["before", "after", "retrain", "do_nothing"]
    assert whole.rows[2].source.startswith("by construction")
    for name in SHOWN:
        part = {key: value for key, value in SHOWN.items() if key != name}
        assert verify(REQUEST, BEFORE, known, Evidence(tier="exact", shown=part)).outcome == "inconclusive"
        part[name] = False
        assert verify(REQUEST, BEFORE, known, Evidence(tier="exact", shown=part)).outcome == "fail"
    blank = dataclasses.replace(known, validation={})
    assert verify(REQUEST, BEFORE, blank, Evidence(tier="exact", shown=SHOWN)).outcome == "inconclusive"


def test_the_dp_tier_is_judged_by_its_capacity():
    same = dataclasses.replace(BEFORE)
    assert verify(REQUEST, BEFORE, same, Evidence(tier="dp", shown={"capacity": True})).outcome == "pass"
    assert verify(REQUEST, BEFORE, same, Evidence(tier="dp", shown={"capacity": False})).outcome == "fail"
    assert verify(REQUEST, BEFORE, same, Evidence(tier="dp")).outcome == "inconclusive"


@pytest.mark.parametrize(
    "given",
    [evidence(), Evidence(), Evidence(tier="exact", shown=SHOWN), Evidence(tier="dp", shown={"capacity": True})],
)
def test_it_is_computed_again_from_what_is_written(given):
    found = verify(REQUEST, BEFORE, GOOD, given, Margins(auc=0.15))
    written = decode(encode(found), Verification, "verification.json")
    again = recompute(written, *(decode(encode(s), Scores, "scores.json") for s in (BEFORE, GOOD)))
    assert encode(again) == encode(found)
    forged = dataclasses.replace(written, outcome="pass", comparisons=(), reasons=())
    assert encode(recompute(forged, BEFORE, GOOD)) == encode(found)


def test_it_needs_no_torch():
    code = (
        "import sys, sordino.unlearn.verifying.verification\n"
        "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.strip() == "[]"


def test_seeds_are_compared_in_pairs_of_one_request():
    found = qualification()
    assert found.outcome == "pass" and [r.name for r in found.rows] == ["unlearned", "retrain", "do_nothing"]
    by_name = {c.metric: c for c in found.comparisons}
    a, b = ([seed["loss"] for seed in s] for s in (found.unlearned, found.retrained))
    limits = scipy_stats.ttest_rel(a, b).confidence_interval(0.9)
    assert (by_name["loss"].difference.low, by_name["loss"].difference.high) == pytest.approx((limits.low, limits.high))
    assert by_name["utility"].side == "above"
    assert by_name["utility"].margin == pytest.approx(0.02 * np.mean([s["utility"] for s in found.retrained]))
    assert encode(requalify(decode(encode(found), Qualification, "q"))) == encode(found)
    # Requests that differ much, in the same way for both models, do not hide that the models agree.
    offsets = np.linspace(0, 0.4, 5)
    moved = [
        tuple({**seed, "auc_calibrated": seed["auc_calibrated"] + o} for seed, o in zip(some, offsets, strict=True))
        for some in (found.unlearned, found.retrained)
    ]
    paired = requalify(dataclasses.replace(found, unlearned=moved[0], retrained=moved[1]))
    assert paired.comparisons[0].outcome == "pass"
    assert all(0 <= e.low <= e.high <= 1 for e in [row.metrics["auc_calibrated"] for row in paired.rows])


def test_few_or_broken_seeds_leave_a_qualification_open():
    few = qualification(count=4)
    assert few.outcome == "inconclusive" and "There are 4 seeds" in few.reasons[0]
    blank = requalify(dataclasses.replace(few, unlearned=(), retrained=(), untouched=()))
    assert blank.outcome == "inconclusive"
    full = qualification()
    lost = tuple({k: v for k, v in seed.items() if k != "loss"} for seed in full.unlearned)
    assert requalify(dataclasses.replace(full, unlearned=lost)).outcome == "inconclusive"
    assert qualification(auc=0.9).outcome == "fail"
    wide = compare_models([{"loss": float(x)} for x in range(5)], full.retrained, Margins())
    assert requalify(dataclasses.replace(full, unlearned=full.unlearned[:4])).outcome == "inconclusive"
    assert next(c for c in wide if c.metric == "loss").outcome == "inconclusive"


def test_the_figures_of_a_seed():
    found = seed_metrics(GOOD)
    assert set(found) == {"auc_calibrated", "loss", "extraction_strength", "exact_memorisation", "utility"}
    assert found["loss"] == pytest.approx(np.mean(GOOD.forget["loss"]))
    assert found["utility"] == pytest.approx(np.mean(GOOD.validation["loss"]))
    assert seed_metrics(with_nan("loss", "forget")) == {}


def test_outcomes_add_up():
    assert together(["pass", "pass"]) == "pass" and together([]) == "inconclusive"
    assert together(["pass", "inconclusive"]) == "inconclusive" and together(["inconclusive", "fail"]) == "fail"


@pytest.mark.parametrize(
    "values", [{"auc": 0.0}, {"auc": 0.5}, {"loss": float("nan")}, {"alpha": 0.5}, {"utility": -1}]
)
def test_margins_that_cannot_be_meant(values):
    with pytest.raises(ConfigError, match="margin"):
        Margins(**values)
    if values.get("loss") is None:
        with pytest.raises(msgspec.ValidationError):
            msgspec.json.decode(json.dumps(values).encode(), type=Margins)
