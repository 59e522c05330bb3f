"""Certificates: what is issued, what is never, and what is missing is named and never a pass."""

import dataclasses
import math
import sys

import certificate_fixtures as fixtures
import pytest

from sordino.errors import RunError, UnlearningError
from sordino.evidence import Tree, digest, public_hex
from sordino.results import Certificate, Estimate, Scores
from sordino.unlearn.certificates.certificate import issue, prove, read, write
from sordino.unlearn.certificates.checking import check
from sordino.unlearn.certificates.statements import gaps, promise, utility


@pytest.fixture(autouse=True)
def _statistics(monkeypatch):
    monkeypatch.setitem(sys.modules, fixtures.MODULE, fixtures.stand_in())


def states(found):
    return {one.name: one.state for one in found.checks}


def test_a_certificate_is_written_read_and_sound(tmp_path):
    made = issue(fixtures.evidence(), fixtures.KEY)
    path = write(made, tmp_path)
    assert path == tmp_path / "certificate.json"
    assert read(path) == read(tmp_path) == made
    assert (made.outcome, made.missing) == ("pass", ())
    found = check(path, key=public_hex(fixtures.KEY))
    assert found.sound and found.outcome == "pass" and found.id == made.id
    assert {name for name, state in states(found).items() if state != "ok"} == {"qualification", "robustness", "page"}
    assert states(check(path))["key"] == "not checked"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["certificate.html", "certificate.json"]
    with pytest.raises(RunError, match="no folder"):
        write(made, tmp_path / "missing")


@pytest.mark.parametrize("state", ["received", "planned", "executed", "failed"])
def test_what_was_not_verified_is_not_certified(state):
    with pytest.raises(UnlearningError, match=f"is {state}, not verified"):
        issue(fixtures.evidence(state=state), fixtures.KEY)


def without(evidence, what):
    verification = evidence.verification
    if what == "row: retrain":
        rows = tuple(row for row in verification.rows if row.name != "retrain")
        return dataclasses.replace(evidence, verification=dataclasses.replace(verification, rows=rows))
    if what.startswith("robustness"):
        return dataclasses.replace(evidence, verification=dataclasses.replace(verification, robustness=()))
    if what.startswith("qualification"):
        made = dataclasses.replace(verification, qualification=None, qualified=None)
        return dataclasses.replace(evidence, verification=made, qualification=None)
    if what.startswith("comparisons"):
        return dataclasses.replace(evidence, verification=dataclasses.replace(verification, comparisons=()))
    if what == "scores of records after: of validation":
        return dataclasses.replace(evidence, after=dataclasses.replace(evidence.after, validation={}),
                                   before=dataclasses.replace(evidence.before, validation={}))  # fmt: skip
    return dataclasses.replace(evidence, **{what.split()[-1]: None})


MISSING = ["row: retrain", "robustness", "qualification", "scores of before", "scores of after"]


def passes_on_nothing(monkeypatch):
    """Statistics that say again whatever was said."""
    monkeypatch.setattr(sys.modules[fixtures.MODULE], "recompute", lambda verification, before, after: verification)


@pytest.mark.parametrize("what", [*MISSING, "scores of records after: of validation"])
def test_missing_evidence_is_named_and_never_a_pass(what, monkeypatch):
    evidence = without(fixtures.evidence(), what)
    passes_on_nothing(monkeypatch)
    made = issue(evidence, fixtures.KEY)
    assert made.verification.outcome == "pass"
    assert made.outcome == "inconclusive"
    named = what.rpartition(" of ")[2] if what.startswith("scores of") else what
    assert any(named in one for one in made.missing)
    assert any("Missing: " in one and named in one for one in made.reasons)


def test_a_pass_without_a_comparison_is_refused(monkeypatch):
    passes_on_nothing(monkeypatch)
    with pytest.raises(UnlearningError, match="says pass, and not every comparison does"):
        issue(without(fixtures.evidence(), "comparisons"), fixtures.KEY)


def test_a_failure_stays_one_whatever_is_missing():
    evidence = fixtures.evidence()
    failed = dataclasses.replace(evidence.verification.comparisons[0], margin=1e-6)
    verification = dataclasses.replace(evidence.verification, comparisons=(failed,), robustness=())
    after = dataclasses.replace(evidence.after, forget=evidence.before.forget)
    verification = fixtures.recompute(verification, evidence.before, after)
    made = issue(dataclasses.replace(evidence, verification=verification, after=after), fixtures.KEY)
    assert made.outcome == "fail" and made.missing


def test_a_tier_that_promises_something_is_judged_by_that():
    facts = {"shards": 8, "rebuilt": 2, "threads": 1}
    same = {"bit_identical": True}
    bare = without(
        without(fixtures.evidence(tier="exact", method="shards", facts=facts), "robustness"), "qualification"
    )
    made = issue(bare, fixtures.KEY)
    assert made.outcome == "pass"
    assert [gap.needed for gap in gaps(made)] == [False, False] and len(made.missing) == 2
    assert "2 of 8 shards" in made.promise and "bits" not in made.promise and "bit for bit" not in made.promise
    assert "1 CPU thread, training" in promise("exact", facts | same)
    assert "cannot be said here" in promise("exact", facts | {"bit_identical": False})
    for name in facts:
        less = {k: v for k, v in facts.items() if k != name}
        made = issue(dataclasses.replace(bare, facts=less), fixtures.KEY)
        assert made.outcome == "inconclusive"
        assert f"Nothing is promised: {name} was not recorded" in made.promise
    anew = issue(dataclasses.replace(bare, method="retrain", facts={"threads": 2}), fixtures.KEY)
    assert anew.outcome == "pass" and "trained anew from the base" in anew.promise
    with pytest.raises(UnlearningError, match="9 of 8 shards"):
        issue(dataclasses.replace(bare, facts={**facts, "rebuilt": 9}), fixtures.KEY)


@pytest.mark.parametrize(
    ("tier", "name", "outcome"),
    [("exact", "never", "pass"), ("exact", "validation", "inconclusive"), ("dp", "validation", "pass")],
)
def test_scores_that_a_tier_is_not_judged_by_may_be_missing(tier, name, outcome, monkeypatch):
    passes_on_nothing(monkeypatch)
    parts = private() if tier == "dp" else fixtures.evidence(tier="exact", facts={"threads": 1})
    empty = {when: dataclasses.replace(getattr(parts, when), **{name: {}}) for when in ("before", "after")}
    made = issue(dataclasses.replace(parts, **empty), fixtures.KEY)
    assert made.outcome == outcome and f"scores of records after: of {name}" in made.missing
    gone = issue(dataclasses.replace(parts, before=None, after=None), fixtures.KEY)
    assert gone.outcome == "inconclusive"


def private(**changed):
    evidence = fixtures.evidence(tier="dp", method="dp")
    same = evidence.digests.weights_before
    digests = dataclasses.replace(evidence.digests, weights_after=same)
    after = dataclasses.replace(evidence.after, model=same)
    facts = {"epsilon": 3.0, "delta": 1e-6, "units": 2, "spent": 1, "capacity": 4} | changed
    return dataclasses.replace(evidence, digests=digests, after=after, facts=facts)


def test_differential_privacy_leaves_the_weights_and_keeps_within_its_capacity():
    made = issue(private(), fixtures.KEY)
    assert "(3, 1e-06)-close" in made.promise and "2 now and 1 before, of 4 that" in made.promise
    replaced = issue(private(relation="replace-one"), fixtures.KEY)
    assert "with others in the place" in replaced.promise and "with others" not in made.promise
    assert any("Gupta" in one for one in made.does_not_prove)
    with pytest.raises(UnlearningError, match=r"3 \+ 2 deletions exceed the capacity, 4"):
        issue(private(spent=3), fixtures.KEY)
    with pytest.raises(UnlearningError, match="weights were changed, so the guarantee"):
        issue(
            dataclasses.replace(private(), digests=fixtures.evidence().digests, after=fixtures.evidence().after),
            fixtures.KEY,
        )


def test_weights_that_did_not_change_are_no_deletion():
    made = private()
    with pytest.raises(UnlearningError, match="nothing was forgotten"):
        verification = dataclasses.replace(made.verification, tier="approximate")
        issue(dataclasses.replace(made, tier="approximate", facts={}, verification=verification), fixtures.KEY)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_not_a_number_is_not_certified(bad):
    evidence = fixtures.evidence()
    with pytest.raises(UnlearningError, match=r"1 values are not numbers .*cost\.share"):
        issue(dataclasses.replace(evidence, cost=dataclasses.replace(evidence.cost, share=bad)), fixtures.KEY)
    losses = (bad, *evidence.before.forget["loss"][1:])
    before = dataclasses.replace(evidence.before, forget={**evidence.before.forget, "loss": losses})
    with pytest.raises((UnlearningError, ValueError), match=r"not numbers|not finite"):
        issue(dataclasses.replace(evidence, before=before), fixtures.KEY)


def changed(evidence, part, **values):
    return dataclasses.replace(evidence, **{part: dataclasses.replace(getattr(evidence, part), **values)})


@pytest.mark.parametrize(
    ("part", "values", "why"),
    [
        ("request", {"records": ()}, "No record is named"),
        ("request", {"records": tuple(fixtures.leaf(i).hex() for i in (1, 0, 2, 3))}, "are not those of the 4 records"),
        ("request", {"records": (fixtures.leaf(0).hex(),) * 4}, "3 records are listed twice"),
        ("request", {"id": "b" * 32}, "verification is of another request"),
        ("manifests", {"root_after": Tree([]).root}, "4 of 4 records are not shown to be gone"),
        ("manifests", {"root_before": Tree([]).root}, "not shown to have been trained on"),
        ("digests", {"tokenizer": "none"}, "1 digests are none, such as that of tokenizer"),
        ("digests", {"weights_before": digest("x")}, "not of the models whose digests"),
        ("digests", {"code": "A" * 32}, "such as that of code"),
        ("qualification", {"id": "other"}, "another qualification"),
        ("qualification", {"outcome": "fail"}, "to have ended in another way"),
        ("verification", {"tier": "exact"}, "by the rule of the tier exact, not approximate"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(part, values, why):
    with pytest.raises(UnlearningError, match=why):
        issue(changed(fixtures.evidence(), part, **values), fixtures.KEY)


@pytest.mark.parametrize("path", ["/srv/runs/x", "../other/x", "a/../../x"])
def test_the_purge_list_stays_within_the_runs(path):
    evidence = fixtures.evidence()
    purge = (dataclasses.replace(evidence.purge[0], path=path), evidence.purge[1])
    with pytest.raises(UnlearningError, match="1 paths of the purge list lie outside"):
        issue(dataclasses.replace(evidence, purge=purge), fixtures.KEY)


def test_what_still_is_trained_on_has_no_proof():
    was, now = Tree(fixtures.leaf(i) for i in range(5)), Tree(fixtures.leaf(i) for i in range(1, 5))
    assert len(prove(was, now, [fixtures.leaf(0)])) == 1
    with pytest.raises(UnlearningError, match="1 of 2 records cannot be shown to have gone"):
        prove(was, now, [fixtures.leaf(0), fixtures.leaf(1)])
    with pytest.raises(UnlearningError, match="1 of 1 records cannot be shown to have gone"):
        prove(was, now, [fixtures.leaf(9)])


def test_utility_is_the_mean_of_paired_differences():
    first = Scores(model="", forget={}, never={}, retain={}, validation={
        "subject": (0.0, 0.0, 1.0), "loss": (1.0, 2.0, 4.0), "rouge_l": (0.5, 0.5, 0.5)})  # fmt: skip
    second = dataclasses.replace(first, validation={**first.validation, "loss": (1.5, 2.0, 4.25)})
    found = utility(first, second)
    assert set(found) == {"validation_loss", "validation_rouge_l"}
    loss = found["validation_loss"]
    # Two subjects, whose residual sums are ±1/4 − mean: by hand from Cochran's linearised variance.
    assert loss.value == pytest.approx(0.25) and loss.n == 2
    residuals = [0.5 + 0.0 - 2 * 0.25, 0.25 - 0.25]
    error = math.sqrt(2 / 1 * sum((r / 3) ** 2 for r in residuals))
    assert (loss.low, loss.high) == pytest.approx((0.25 - 12.706 * error, 0.25 + 12.706 * error), rel=1e-4)
    assert utility(None, second) == {}
    other = dataclasses.replace(second, validation={**second.validation, "subject": (0.0, 1.0, 1.0)})
    with pytest.raises(UnlearningError, match="different records of the set 'validation'"):
        utility(first, other)


def test_limits_say_what_the_numbers_say():
    made = issue(fixtures.evidence(), fixtures.KEY)
    said = " ".join(made.does_not_prove)
    assert "With 24 subjects the AUC" in said and "± 0.15" in said
    assert "1 of 2 listed places still hold" in said
    assert "compare the two" in said and "Gupta" not in said
    unresolved = Estimate(value=None, low=-1e308, high=1e308, n=2, method="groups of records", needs=2)
    evidence = fixtures.evidence()
    rows = tuple(dataclasses.replace(r, metrics=r.metrics | {"auc": unresolved}) if r.name == "after" else r
                 for r in evidence.verification.rows)  # fmt: skip
    made = issue(changed(evidence, "verification", rows=rows), fixtures.KEY)
    assert any("was not measured to any precision" in one for one in made.does_not_prove)
    acknowledged = issue(changed(evidence, "request", acknowledged=True), fixtures.KEY)
    assert any("were known of, and stay" in one for one in acknowledged.does_not_prove)


@pytest.mark.parametrize("tier", ["exact", "dp"])
def test_nothing_is_promised_on_facts_that_were_not_recorded(tier):
    assert promise(tier, {}).startswith("Nothing is promised: ")
    assert promise("approximate", {}) == "Empirical, no guarantee: what was measured is all that speaks for it."


def test_no_field_is_left_to_chance():
    """What is signed has every field, also those that have a default."""
    made = issue(fixtures.evidence(), fixtures.KEY)
    from sordino.unlearn.certificates.reading import plain_of

    assert set(plain_of(made)) == {f.name for f in dataclasses.fields(Certificate)}
