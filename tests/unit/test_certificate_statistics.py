"""Certificates with the statistics themselves: what verification says is what a check computes again."""

import dataclasses
import json

import certificate_fixtures as fixtures
import numpy as np
import pytest
from test_checking import found_out, leaves, mutated

from sordino.results import DeletionRequest, Estimate, Margins, Qualification, Qualified, Robustness, encode
from sordino.unlearn.certificates.certificate import issue
from sordino.unlearn.certificates.checking import check

statistics = pytest.importorskip("sordino.unlearn.verifying.verification")

ESTIMATE = Estimate(value=0.01, low=-0.02, high=0.04, n=40, method="DeLong")


def qualification():
    rng = np.random.default_rng(1)

    def seeds(auc):
        centers = {
            "auc": auc,
            "auc_calibrated": auc,
            "loss": 2.6,
            "extraction_strength": 0.1,
            "exact_memorisation": 0.3,
        }
        centers |= {"probability": 0.1, "rouge_l": 0.2, "utility": 2.4}
        return tuple({k: v + float(rng.normal(0, 0.002)) for k, v in centers.items()} for _ in range(5))

    draft = Qualification(
        id="q" * 8, created="2026-11-20T00:00:00+00:00", run="2026-11-22-tickets-3f9a", weights="0" * 32, root=None,
        method="grad_diff", tier="approximate", settings={}, margins=Margins(), subjects=2, generator=1,
        seeds=(0, 1, 2, 3, 4), unlearned=seeds(0.5), retrained=seeds(0.5), untouched=seeds(0.9),
    )  # fmt: skip
    return statistics.requalify(draft)


def parts(count, tier="approximate", **evidence):
    """The parts of the certificate of `count` deleted records, verified by the rule of `tier`."""
    made = fixtures.evidence(count=count, others=count)
    held = qualification()
    request = DeletionRequest(id="a" * 32, created="", run="", kind="subject", names=("one", "two"))
    known = statistics.Evidence(tier=tier, qualification=held, **evidence)
    found = statistics.verify(request, made.before, made.after, known, Margins(utility=0.2))
    cited = Qualified(id=held.id, digest="0" * 32, outcome=held.outcome, rows=held.rows)
    return dataclasses.replace(made, tier=tier, verification=found, qualification=cited)


ROBUST = (Robustness(name="relearning", what="AUC after an epoch", estimate=ESTIMATE),)


def test_a_sample_that_says_enough_passes_and_one_that_does_not_is_open(tmp_path):
    path = tmp_path / "certificate.json"
    outcomes = []
    for made in (parts(200, robustness=ROBUST), parts(200), parts(4, robustness=ROBUST)):
        certificate = issue(made, fixtures.KEY)
        path.write_bytes(encode(certificate))
        assert check(path).sound
        outcomes.append(certificate.outcome)
    assert outcomes == ["pass", "inconclusive", "inconclusive"]


def test_what_came_back_fails_and_a_pass_cannot_be_written_over_it(tmp_path):
    back = (dataclasses.replace(ROBUST[0], estimate=dataclasses.replace(ESTIMATE, value=0.3, low=0.25, high=0.35)),)
    plain = json.loads(encode(issue(parts(200, robustness=back), fixtures.KEY)))
    assert plain["outcome"] == "fail"
    path = tmp_path / "certificate.json"
    plain["outcome"] = plain["verification"]["outcome"] = "pass"
    assert found_out(fixtures.resigned(plain), path)


def test_the_exact_tier_is_judged_by_what_it_shows(tmp_path):
    shown = {"roots": True, "absence": True, "weights": True}
    made = dataclasses.replace(parts(200, "exact", shown=shown), facts={"threads": 1})
    assert issue(made, fixtures.KEY).outcome == "pass"
    lacking = dataclasses.replace(parts(200, "exact", shown={**shown, "weights": False}), facts={"threads": 1})
    assert issue(lacking, fixtures.KEY).outcome == "fail"
    assert issue(dataclasses.replace(made, facts={}), fixtures.KEY).outcome == "inconclusive"


def test_every_score_counts_even_where_the_issuer_signs_the_change(tmp_path):
    plain = json.loads(encode(issue(parts(6, robustness=ROBUST), fixtures.KEY)))
    path = tmp_path / "certificate.json"
    assert not found_out(fixtures.resigned(plain), path)
    # The untuned model's losses may differ in their last digits: they are held against each other.
    changed = [one for one in leaves(plain) if one[0] in ("before", "after") and "base_loss" not in one]
    changed += [one for one in leaves(plain["verification"], ("verification",)) if one[1] == "comparisons"]
    assert len(changed) > 100
    changed = changed[:: max(1, len(changed) // 80)]
    assert [one for one in changed if not found_out(fixtures.resigned(mutated(plain, one)), path)] == []
    for when in ("before", "after"):
        plain[when]["retain"]["base_loss"][0] += 0.01
        assert found_out(fixtures.resigned(plain), path)
        plain[when]["retain"]["base_loss"][0] -= 0.01
