"""Training anew, doing nothing and the DP tier as methods; qualification of a method on simulated requests."""

import dataclasses
import json

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from unlearn_fixtures import tuned_run

from sordino.config import load
from sordino.errors import RunError, UnlearningError
from sordino.ledger import read_ledger
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.records.store import save as save_split
from sordino.results import Cost, encode
from sordino.run import Run
from sordino.train.flow import fine_tune, train_run
from sordino.unlearn import methods as all_methods
from sordino.unlearn.base import Child, create_child, finish_child, unlearner
from sordino.unlearn.methods.do_nothing import do_nothing
from sordino.unlearn.methods.dp import dp
from sordino.unlearn.methods.retrain import retrain
from sordino.unlearn.requests import new_request, resolve
from sordino.unlearn.verifying.qualifying import fitting, qualifications, qualify
from sordino.unlearn.verifying.verification import requalify

WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "juniper", "kelp", "larch")


def rows(count=160):
    rng = np.random.default_rng(4)
    return [{"text": " ".join(rng.choice(WORDS, 9))} for _ in range(count)]


@pytest.fixture(scope="module")
def run(llama, tmp_path_factory):
    """A run by LoRA on texts of eighty subjects."""
    return tuned_run(tmp_path_factory.mktemp("run"), llama, rows(), method={"rank": 4})


def asked(run, count=2):
    units = dict.fromkeys(e.record.unit for e in load_split(run.records).training if e.role != "canary")
    return resolve(run, new_request(run, "subject", list(units)[:count], acknowledged=True))


def carried_out(deletion, method, settings=None, **more):
    child = Child(run=create_child(deletion, method.name), seed=1, settings=settings or {}, **more)
    with child.run.lock():
        cost = method.run(deletion, child)
    return finish_child(deletion, child, method, cost), cost


def tensors(run):
    return load_file(str(run.weights / "adapter_model.safetensors"))


def trained_without(deletion, root):
    """The same run from the beginning, which never had the records: made by hand."""
    parent = deletion.run.card
    other = Run.create(root, "other", "0000")
    save_split(deletion.left, other.records)
    for name in ("canaries.json", "manifest.json"):
        other.write_private(name, (deletion.run.private / name).read_bytes())
    other.write_card(
        dataclasses.replace(
            parent,
            name=other.path.name,
            status="prepared",
            training={},
            privacy={},
            model={"path": parent.model["path"]},
        )
    )
    return train_run(other)


def test_training_anew_is_training_without_the_records(run, tmp_path):
    deletion, ticks = asked(run), []
    made, cost = carried_out(deletion, retrain, ticker=lambda name, total: ticks.append)
    same = trained_without(deletion, tmp_path)
    assert all(torch.equal(tensor, tensors(same)[name]) for name, tensor in tensors(made).items())
    assert made.card.model["weights"] == same.card.model["weights"] != run.card.model["weights"]
    assert made.card.status == "trained" and made.card.parent == run.card.name
    assert made.card.training["tokens"] == same.card.training["tokens"] == cost.tokens < run.card.training["tokens"]
    assert cost.share == 1.0 and cost.seconds > 0 and sum(ticks) == same.card.training["step"]
    assert {e.record.id for e in load_split(made.records).examples}.isdisjoint(e.record.id for e in deletion.forget)


class Killed(Exception):
    pass


def test_training_anew_goes_on_where_it_was_killed(run):
    deletion = asked(run)
    whole, _ = carried_out(deletion, retrain)
    child = Child(run=create_child(deletion, "retrain"), seed=1, settings={})

    def killed(done):
        raise Killed

    for point in (3, 5):
        left = [point]

        def advance(done, left=left):
            left[0] -= done
            if left[0] <= 0:
                raise Killed

        broken = dataclasses.replace(child, ticker=lambda name, total, advance=advance: advance)
        with pytest.raises(Killed), child.run.lock():
            retrain.run(deletion, broken)
        assert child.run.card.status == "training"
    with child.run.lock():
        retrain.run(deletion, child)
        # Killed after training, before the run was ended: nothing is trained twice.
        again = retrain.run(deletion, dataclasses.replace(child, ticker=lambda name, total: killed))
    assert again.share == 1.0
    made = finish_child(deletion, child, retrain, again)
    assert made.card.model["weights"] == whole.card.model["weights"]


def test_doing_nothing_is_the_model_as_it_was(run):
    made, cost = carried_out(asked(run), do_nothing)
    assert do_nothing.control and made.card.model["weights"] == run.card.model["weights"]
    assert (cost.tokens, cost.share) == (0, 0.0)
    for name, tensor in tensors(made).items():
        assert torch.equal(tensor, tensors(run)[name])
    [mine] = made.weights.glob("*.safetensors")
    [theirs] = run.weights.glob("*.safetensors")
    assert mine.stat().st_ino != theirs.stat().st_ino  # its own, so that the parent can be purged


def test_weights_that_are_not_the_runs_are_refused(run, tmp_path):
    import shutil

    copy = Run(tmp_path / "runs" / run.path.name)
    shutil.copytree(run.path, copy.path)
    deletion = dataclasses.replace(asked(run), run=copy)
    [file] = copy.weights.glob("*.safetensors")
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(RunError, match="are not those"):
        carried_out(deletion, do_nothing)


@pytest.fixture(scope="module")
def private(llama, tmp_path_factory):
    """A run under differential privacy, with much noise."""
    folder = tmp_path_factory.mktemp("private")
    save(llama, folder / "model")
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    values = {
        "data": {"path": str(folder / "x.jsonl"), "unit_rows": 2}, "out": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "device": "cpu"}, "canaries": {"per_level": 0}, "method": {"rank": 4},
        "split": {"candidates": 0.6, "near_duplicates": 0}, "dp": {"noise_multiplier": 3.0, "unit": "subject"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 0.01, "per_sample": "book-keeping"},
    }  # fmt: skip
    return fine_tune(load(values=values, environment={}))


def test_the_dp_tier_leaves_the_model_and_counts(private):
    deletion, said = asked(private), []
    made, cost = carried_out(deletion, dp, {"epsilon": 8.0, "delta": 1e-3}, say=said.append)
    assert made.card.model["weights"] == private.card.model["weights"] and cost.share == 0.0
    told = made.card.unlearning["guarantee"]
    assert told["units"] == 2 and told["spent"] == 0 and told["capacity"] >= 2 and told["delta"] <= 1e-3
    assert "stay as they are" in said[0] and "2 subjects" in said[0]
    assert read_ledger(made.path / "ledger.json") == read_ledger(private.path / "ledger.json")
    with pytest.raises(UnlearningError, match="are left, and 2 are to go"):
        carried_out(deletion, dp, {"epsilon": 8.0, "delta": 1e-3, "spent": told["capacity"] - 1})
    with pytest.raises(UnlearningError, match="what the guarantee has to be worth"):
        carried_out(deletion, dp, {})


def test_the_dp_tier_goes_on_from_the_run_that_came_of_it(private):
    made, _ = carried_out(asked(private, 1), dp, {"epsilon": 8.0, "delta": 1e-3, "spent": 0})
    again, _ = carried_out(asked(made, 1), dp, {"epsilon": 8.0, "delta": 1e-3, "spent": 1})
    assert again.card.unlearning["guarantee"]["spent"] == 1


def test_a_run_without_a_guarantee_has_no_such_tier(run):
    with pytest.raises(UnlearningError, match="no ledger"):
        carried_out(asked(run), dp, {"epsilon": 8.0, "delta": 1e-3})


def test_training_anew_privately_spends_anew(private):
    made, _ = carried_out(asked(private), retrain)
    [new], [old] = (read_ledger(one.path / "ledger.json") for one in (made, private))
    assert new.id != old.id and new.fingerprint == old.fingerprint
    # What the parent spent on the same people is composed with it.
    assert made.card.privacy["epsilon with earlier runs"] > made.card.privacy["epsilon"]


@pytest.fixture
def counted(monkeypatch):
    """Two methods, counted: one that trains anew under another name, one that is a small step from the parent."""
    calls = []

    @unlearner(tier="approximate", defaults={"strength": 1.0})
    def shrink(deletion, child):
        """Shrink the adapter."""
        from safetensors.torch import save_file

        from sordino.run import write_folder
        from sordino.unlearn.tuning.copying import copy_model

        calls.append(("shrink", child.seed))
        copy_model(deletion.run, child.run)
        path = child.run.weights / "adapter_model.safetensors"
        found = {name: tensor * child.settings["strength"] for name, tensor in load_file(str(path)).items()}
        with write_folder(child.run.weights) as folder:
            for other in child.run.weights.iterdir():
                (folder / other.name).write_bytes(other.read_bytes())
            save_file(found, str(folder / path.name), {"format": "pt"})
        return Cost(seconds=0.0, tokens=7, share=0.0)

    def again(deletion, child):
        calls.append(("retrain", child.run.card.seed))
        return retrain.run(deletion, child)

    known = {"shrink": shrink, "retrain": dataclasses.replace(retrain, run=again), "do_nothing": do_nothing}
    monkeypatch.setattr(all_methods, "discover", lambda: known)
    return calls


def test_a_method_is_qualified_against_training_anew(run, counted):
    found = qualify(run, "shrink", {"strength": 0.9}, seeds=2, subjects=3)
    assert len(set(found.seeds)) == 2
    assert counted == [(name, seed) for seed in found.seeds for name in ("shrink", "retrain")]
    assert found.outcome == "inconclusive" and "There are 2 seeds" in found.reasons[0]
    assert [row.name for row in found.rows] == ["unlearned", "retrain", "do_nothing"]
    assert found.root == run.card.data["manifest"]["root"] and found.weights == run.card.model["weights"]
    for metrics in (*found.unlearned, *found.retrained, *found.untouched):
        assert set(metrics) == {"auc_calibrated", "loss", "extraction_strength", "exact_memorisation", "utility"}
    # Two seeds of training anew differ, in their metrics too.
    assert found.retrained[0]["utility"] != found.retrained[1]["utility"] and found.tokens > 14
    assert encode(requalify(found)) == encode(found)
    folder = run.path.parent / "deletions" / "qualifications"
    assert [p.name for p in folder.iterdir()] == [f"{found.id}.json"] and folder.stat().st_mode & 0o777 == 0o700
    # The subjects that were drawn are nowhere in it.
    units = {e.record.unit for e in load_split(run.records).examples}
    assert not any(f'"{unit}"' in (folder / f"{found.id}.json").read_text() for unit in units)
    before = len(counted)
    assert qualify(run, "shrink", {"strength": 0.9}, seeds=2, subjects=3) == found and len(counted) == before
    assert fitting(run, "shrink", {"strength": 0.9}) == found == fitting(run, "shrink", {"strength": 0.9}, found.id[:6])
    assert fitting(run, "shrink", {"strength": 0.8}) is None and found in qualifications(run.path.parent)
    with pytest.raises(UnlearningError, match="another model"):
        fitting(run, "shrink", {"strength": 0.8}, found.id)
    with pytest.raises(UnlearningError, match="is not there"):
        fitting(run, "shrink", {"strength": 0.9}, "zzz")


def test_a_qualification_goes_on_where_it_was_stopped(run, counted):
    stop = [3]

    def ticker(name, total):
        def advance(done):
            stop[0] -= name.startswith("qualification")
            if not stop[0]:
                raise Killed

        return advance

    with pytest.raises(Killed):
        qualify(run, "shrink", {"strength": 0.5}, seeds=2, generator=1, ticker=ticker)
    first = list(counted)
    found = qualify(run, "shrink", {"strength": 0.5}, seeds=2, generator=1)
    assert len(first) == 2 and counted == [(n, s) for s in found.seeds for n in ("shrink", "retrain")]


def test_those_who_asked_are_never_drawn(run, counted, monkeypatch):
    from sordino.deletions import Deletions
    from sordino.unlearn.verifying import qualifying

    real = [e.record.unit for e in load_split(run.records).training][-3:]
    deletions, request = Deletions.open(run.path.parent), new_request(run, "subject", sorted(set(real)))
    deletions.receive(request)
    for state in ("planned", "executed"):  # the run was replaced: its method can still be qualified
        deletions.advance(request.id, state)
    drawn = []
    kept = qualifying._requests
    monkeypatch.setattr(qualifying, "_requests", lambda asked: drawn.extend(kept(asked)) or drawn)
    qualify(run, "do_nothing", {}, seeds=1, subjects=4, generator=2)
    assert set(drawn[0].request.names).isdisjoint(real) and len(drawn[0].request.names) == 4
    with pytest.raises(UnlearningError, match="asked for nothing"):
        qualify(run, "do_nothing", {}, seeds=1, subjects=40)
    with pytest.raises(UnlearningError, match="0 seeds"):
        qualify(run, "do_nothing", {}, seeds=0)


def test_a_damaged_qualification_is_an_error(run):
    folder = run.path.parent / "deletions" / "qualifications"
    folder.mkdir(parents=True, exist_ok=True)
    bad = folder / "bad.json"
    bad.write_text(json.dumps({"id": 1}))
    with pytest.raises(RunError, match=r"bad\.json"):
        qualifications(run.path.parent)
    bad.unlink()
    assert msgspec.json.encode(qualifications(run.path.parent)).startswith(b"[")
