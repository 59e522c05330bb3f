"""What the card of a run that has forgotten says in the end, and weights that no method can tune."""

import dataclasses
import shutil
from unittest import mock

import pytest
from unlearn_fixtures import deletion_of, tuned_run

from sordino.deletions import Deletions
from sordino.errors import UnlearningError
from sordino.results import Absence, CertifiedRequest, Cost, Inclusion, Manifests, Notice, RecordProof, UnlearnPlan
from sordino.run import Run
from sordino.unlearn.base import Child, create_child, finish_child
from sordino.unlearn.flow import Transaction
from sordino.unlearn.methods import named
from sordino.unlearn.planning import Policy, options
from sordino.unlearn.proving import Proofs, shown_by
from sordino.unlearn.tuning.opening import reopen

ROWS = [{"text": f"row {n} says something of its own, number {n * 7}"} for n in range(160)]


@pytest.fixture(scope="module")
def run(tmp_path_factory, make_model):
    return tuned_run(tmp_path_factory.mktemp("ended"), make_model("llama"), ROWS, method={"rank": 2})


def ended(run: Run, method: str) -> Child:
    """The child of `method` as if that had written the weights, which are those of before."""
    deletion = deletion_of(run)
    child = Child(run=create_child(deletion, method), seed=1, settings={})
    shutil.copytree(run.weights, child.run.weights)
    finish_child(deletion, child, dataclasses.replace(named(method), control=True), Cost(seconds=1.0, tokens=1))
    return child


def test_what_was_said_of_weights_is_not_said_of_those_that_are_trained_anew(run):
    card = run.card
    told = Notice(kind="remembers", count=1, message="An adapter of these weights remembers.")
    ended_privacy = Notice(kind="no-longer-private", count=1, message="No longer.")
    kept = Notice(kind="duplicates", count=2, message="2 records came twice.")
    run.write_card(dataclasses.replace(card, notices=(kept, told, ended_privacy)))
    try:
        assert [n.kind for n in ended(run, "retrain").run.card.notices] == ["duplicates", "deleted"]
        kinds = [n.kind for n in ended(run, "do_nothing").run.card.notices]
        assert kinds == ["duplicates", "remembers", "no-longer-private", "deleted"]
    finally:
        run.write_card(card)


def test_a_child_that_is_ended_twice_says_once_what_was_deleted_but_each_deletion_says_so(run):
    child, deletion = ended(run, "do_nothing"), deletion_of(run)
    method = named("do_nothing")
    finish_child(deletion, child, method, Cost(seconds=1.0, tokens=1))
    assert [n.kind for n in child.run.card.notices].count("deleted") == 1
    # As many records of others are deleted from it next.
    next_one = ended(child.run, "do_nothing")
    assert [n.kind for n in next_one.run.card.notices].count("deleted") == 2


def test_several_adapters_that_are_read_as_one_model_are_not_tuned(run, monkeypatch):
    deletion = deletion_of(run)
    (run.weights / "combined.json").write_text("{}")
    try:
        with pytest.raises(UnlearningError, match="several adapters"):
            reopen(deletion)
        found = {o.method: o.refused for o in options(deletion, Policy(method="npo"), {"npo": named("npo")})}
        assert "several adapters" in found["npo"] and not found["retrain"]
    finally:
        (run.weights / "combined.json").unlink()
    found = {o.method: o.refused for o in options(deletion, Policy(method="npo"), {"npo": named("npo")})}
    assert not found["npo"]


@pytest.mark.parametrize("bits", [True, False])
def test_exact_weights_are_shown_where_bits_are_not_those_of_training_anew_but_not_other_weights(run, bits, tmp_path):
    child = ended(run, "do_nothing").run
    shards = {"count": 2, "dropped": 1, "threads": 1, "slices": 1, "bit_identical": bits}
    child.write_card(dataclasses.replace(child.card, unlearning={**child.card.unlearning, "shards": shards}))
    request = deletion_of(run).request
    leaves = {"records": ("a",), "subjects": (), "id": request.id, "received": "now", "kind": "subject", "count": 1}
    gone = Absence(size=0, left=None, right=None)
    proof = RecordProof(leaf="a", before=Inclusion(index=0, size=1, path=()), after=gone)
    manifests = Manifests(before="x", after="y", root_before="1", root_after="2", proofs=(proof,))
    proofs = Proofs(request=CertifiedRequest(**leaves), manifests=manifests)
    transaction = Transaction(run=run, deletions=Deletions.open(tmp_path), request=request)
    plan = UnlearnPlan(request=request.id, tier="exact", method="shards")
    with mock.patch.multiple(Transaction, planned=plan, child=child):
        assert shown_by(transaction, proofs) == {"roots": True, "absence": True, "weights": True}
        card = child.card
        child.write_card(dataclasses.replace(card, model={**card.model, "weights": "other"}))
        assert shown_by(transaction, proofs)["weights"] is False
