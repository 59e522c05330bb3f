"""Training in shards, and exact deletion: bit for bit what training on the rest alone would have given."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from shard_fixtures import child_of, deletion_of, same, settings, snapshots

from sordino.config import load
from sordino.errors import ConfigError, RunError, UnlearningError
from sordino.model import load as load_model
from sordino.model import restore, save, weights_digest
from sordino.records.store import load as load_split
from sordino.records.store import save as save_split
from sordino.results import Cost
from sordino.run import Run
from sordino.train import sharded
from sordino.train.flow import create, fine_tune, plan_of, prepare, train_run
from sordino.train.shard_merge import merged
from sordino.train.shard_plan import (
    expected_share,
    formula,
    read_manifest,
    read_stage,
    shards_folder,
    share_of,
    snapshot,
    write_manifest,
)
from sordino.unlearn.methods import shards as method
from sordino.unlearn.methods.shards import drop, expected, rebuild, seen


class Killed(Exception):
    """Stands for a signal that ends the process."""


def killed_at(step):
    def monitor(progress, steps):
        if progress.step >= step:
            raise Killed

    return monitor


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    save(make_model("llama", seed=3), folder)
    return folder


@pytest.fixture(scope="module")
def trained(base, tmp_path_factory):
    """A run in three shards of two slices, none of them empty."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sharded, "new_key", lambda: "0b" * 32)
        return fine_tune(settings(tmp_path_factory.mktemp("run"), base))


@pytest.fixture
def run(trained, tmp_path):
    """A copy of it that a test may change."""
    shutil.copytree(trained.path, tmp_path / trained.path.name)
    return Run(tmp_path / trained.path.name)


def unit_in(run, *, part, besides=()):
    """A unit that was trained on in slice `part` of any shard but `besides`, and its shard."""
    manifest = read_manifest(run)
    for example in load_split(run.records).training:
        cell = manifest.place(example)
        if cell[1] == part and cell[0] not in besides:
            return example.record.unit, cell[0]
    raise AssertionError("no unit there")


def anew(run, names, folder, base):
    """The same training without `names`, from nothing, with the same key."""
    config = dataclasses.replace(deletion_of(run, []).config, out=str(folder / "anew"))
    other = create(config, prepare(config))
    save_split(deletion_of(run, names).left, other.records)
    (other.private / "shards").mkdir()
    # What is in a manifest before the first step is drawn, but for the key.
    write_manifest(other, dataclasses.replace(read_manifest(run), fresh=read_manifest(run).fresh))
    return train_run(other)


def test_each_slice_is_seen_in_its_stage_alone(trained):
    manifest = read_manifest(trained)
    cells = [manifest.place(e) for e in load_split(trained.records).training]
    tokens = 0
    for cell in manifest.cells:
        stage = read_stage(snapshot(trained, cell))
        assert stage.count == cells.count(cell) > 0
        assert stage.steps == -(-cells.count(cell) // 4) * 2
        before = manifest.fresh if cell[1] == 0 else read_stage(snapshot(trained, (cell[0], cell[1] - 1))).weights
        assert stage.start == before != stage.weights
        tokens += stage.tokens
    card = trained.card
    assert card.training["tokens"] == tokens
    assert card.training["validation"] > 0
    assert card.model["shards"] == {"count": 3, "slices": 2, "combine": "merge"}
    assert not list(shards_folder(trained).glob("*/stage-*"))
    assert manifest.key not in (trained.path / "run.json").read_text() + (trained.path / "events.jsonl").read_text()
    assert shards_folder(trained).stat().st_mode & 0o077 == 0
    assert (shards_folder(trained) / "shards.json").stat().st_mode & 0o077 == 0


def test_the_weights_are_the_mean_by_records(trained, tmp_path):
    manifest = read_manifest(trained)
    counts = [sum(read_stage(snapshot(trained, (s, r))).count for r in range(2)) for s in range(3)]
    merged([(snapshot(trained, (s, 1)), counts[s] / sum(counts)) for s in range(3)], tmp_path)
    assert (tmp_path / "adapter_model.safetensors").read_bytes() == (
        trained.weights / "adapter_model.safetensors"
    ).read_bytes()
    config = deletion_of(trained, []).config
    model = restore(config.model, config.method, trained.weights)
    assert next(p for n, p in model.module.named_parameters() if "lora_A" in n).shape[0] == manifest.count * 4


def test_training_interrupted_anywhere_gives_the_same(trained, tmp_path, base):
    config = dataclasses.replace(deletion_of(trained, []).config, out=str(tmp_path))
    other = create(config, prepare(config))
    (other.private / "shards").mkdir()
    write_manifest(other, read_manifest(trained))
    whole = trained.card.training["step"]
    for step in (3, whole // 3, whole // 4):  # of what is left each time
        with pytest.raises(Killed):
            train_run(other, monitor=killed_at(step))
    train_run(other)
    assert same(snapshots(other), snapshots(trained))
    assert weights_digest(other.weights) == weights_digest(trained.weights)
    assert other.card.training["tokens"] == trained.card.training["tokens"]


@pytest.mark.parametrize("killed", [False, True])
def test_the_rebuilt_shards_are_those_of_training_anew(run, tmp_path, base, killed, monkeypatch):
    (late, one), (early, two) = unit_in(run, part=1), unit_in(run, part=0, besides={unit_in(run, part=1)[1]})
    names, before = [late, early], snapshots(run)
    deletion = deletion_of(run, names)
    child = child_of(deletion)
    if killed:
        training = sharded.Shards.train
        with monkeypatch.context() as patch:
            patch.setattr(sharded.Shards, "train", lambda shards, monitor: training(shards, killed_at(5)))
            with pytest.raises(Killed):
                method.shards.run(deletion, child)
        assert child.run.weights.exists()
        assert list(shards_folder(child.run).glob("*/stage-*"))
    cost = method.shards.run(deletion, child)
    found = snapshots(child.run)
    assert same(found, snapshots(anew(run, names, tmp_path, base)))
    assert same(snapshots(run), before), "the parent stays as it was"
    third = ({0, 1, 2} - {one, two}).pop()
    clean = [f"{third:02d}/slice-00", f"{third:02d}/slice-01", f"{one:02d}/slice-00", "fresh"]
    changed = [f"{one:02d}/slice-01", f"{two:02d}/slice-00", f"{two:02d}/slice-01"]
    assert same({n: found[n] for n in clean}, {n: before[n] for n in clean})
    for name in changed:
        assert any(not np.array_equal(found[name][k], before[name][k]) for k in before[name])
    tokens = np.array([[read_stage(snapshot(child.run, (s, r))).tokens for r in range(2)] for s in range(3)])
    assert cost.share == pytest.approx(share_of(tokens, [(one, 1), (two, 0)]))
    assert cost.tokens == round(cost.share * tokens.sum())
    assert cost.share == pytest.approx(expected(deletion), rel=0.1)
    assert cost.formula == formula(3, 2, 2)
    said = child.run.card.unlearning["shards"]
    assert (said["bit_identical"], said["differs"], said["threads"], said["retrained"]) == (True, [], 1, 3)


def test_a_child_that_is_trained_anew_places_units_as_its_parent_does(run):
    """With the method retrain, that is: the control of this one."""
    deletion = deletion_of(run, [unit_in(run, part=0)[0]])
    rebuilt, again = child_of(deletion), child_of(deletion)
    method.shards.run(deletion, rebuilt)
    again.run.write_card(dataclasses.replace(again.run.card, status="prepared"))
    train_run(again.run)
    assert same(snapshots(again.run), snapshots(rebuilt.run))
    assert weights_digest(again.run.weights) == weights_digest(rebuilt.run.weights)


def test_the_expected_share_is_that_of_every_record_deleted_alone(trained):
    manifest = read_manifest(trained)
    stages = {cell: read_stage(snapshot(trained, cell)) for cell in manifest.cells}
    total, shares = sum(stage.tokens for stage in stages.values()), []
    for example in load_split(trained.records).training:
        shard, part = manifest.place(example)
        shares.append(sum(s.tokens for (other, at), s in stages.items() if other == shard and at >= part) / total)
    tokens, counts = (
        np.array([[getattr(stages[s, r], name) for r in range(2)] for s in range(3)]) for name in ("tokens", "count")
    )
    assert expected_share(tokens, counts) == pytest.approx(np.mean(shares))
    assert np.mean(shares) == pytest.approx(formula(3, 2), rel=0.3), "so few units fall unevenly"


def test_what_saw_the_records_cannot_be_reached_from_the_child(run):
    name, _ = unit_in(run, part=0)
    deletion = deletion_of(run, [name])
    inodes = {p.stat().st_ino for folder in seen(run, deletion.forget) for p in folder.rglob("*.safetensors")}
    assert [f.name for f in seen(run, deletion.forget)] == ["slice-00", "slice-01"]
    child = child_of(deletion)
    drop(deletion, child)
    assert not shards_folder(child.run).exists()
    rebuild(deletion, child)
    assert len(inodes) == 2
    assert not inodes & {p.stat().st_ino for p in child.run.path.rglob("*") if p.is_file()}
    shutil.rmtree(run.path)
    assert len(snapshots(child.run)) == 7, "the child has its own"


def test_dropping_is_the_mean_of_the_others_at_once(run, tmp_path, monkeypatch):
    name, shard = unit_in(run, part=1)
    deletion = deletion_of(run, [name])
    child = child_of(deletion)
    for loader in ("sordino.model.load", "sordino.train.loop.train"):
        monkeypatch.setattr(loader, lambda *given, **named: pytest.fail("a model was loaded"))
    seconds = drop(deletion, child)
    assert seconds < 1
    left = [s for s in range(3) if s != shard]
    counts = [sum(read_stage(snapshot(run, (s, r))).count for r in range(2)) for s in left]
    parts = [(snapshot(run, (s, 1)), n / sum(counts)) for s, n in zip(left, counts, strict=True)]
    (tmp_path / "mean").mkdir()
    merged(parts, tmp_path / "mean")
    weights = "adapter_model.safetensors"
    assert (child.run.weights / weights).read_bytes() == (tmp_path / "mean" / weights).read_bytes()
    assert (child.run.weights / "tokenizer.json").read_bytes() == (run.weights / "tokenizer.json").read_bytes()
    assert child.run.card.unlearning["shards"]["dropped"] == 1


def test_where_all_shards_are_affected_the_untuned_model_answers(run):
    names = [unit_in(run, part=1)[0]]
    for besides in ({unit_in(run, part=1)[1]}, {0, 1}, {0, 2}, {1, 2}):
        names.append(unit_in(run, part=0, besides=besides)[0])
    deletion = deletion_of(run, names)
    child = child_of(deletion)
    drop(deletion, child)
    config = deletion.config
    tuned, untuned = restore(config.model, config.method, child.run.weights), load_model(config.model)
    ids = torch.arange(20)[None]
    with tuned.active() as one, untuned.active() as two:
        assert torch.equal(one(input_ids=ids).logits, two(input_ids=ids).logits)


def test_a_chain_of_requests_from_child_to_child(run, tmp_path, base):
    names, at = [], run
    for part in (1, 0, 0):
        name, _ = unit_in(at, part=part)
        deletion = deletion_of(at, [name])
        child = child_of(deletion)
        cost = method.shards.run(deletion, child)
        assert isinstance(cost, Cost)
        if at.path != run.path:
            shutil.rmtree(at.path)
        names, at = [*names, name], child.run
    assert same(snapshots(at), snapshots(anew(run, names, tmp_path, base)))


def test_records_of_a_unit_may_go_alone(run):
    name, _ = unit_in(run, part=1)
    whole = deletion_of(run, [name])
    one = whole.forget[0]
    left = dataclasses.replace(whole.left, examples=tuple(e for e in load_split(run.records).examples if e != one))
    deletion = dataclasses.replace(whole, forget=[one], left=left)
    child = child_of(deletion)
    cost = method.shards.run(deletion, child)
    assert cost.tokens > 0
    assert cost.formula == formula(3, 2, 1)


def test_damaged_and_missing_snapshots_are_told_and_trained_again_on_demand(run, tmp_path, base):
    name, shard = unit_in(run, part=1)
    other = next(s for s in range(3) if s != shard)
    (snapshot(run, (other, 1)) / "adapter_model.safetensors").write_bytes(b"x")
    deletion = deletion_of(run, [name])
    for step in (drop, rebuild):
        with pytest.raises(UnlearningError, match=rf"\[{other}\].*repair: true"):
            step(deletion, child_of(deletion))
    shutil.rmtree(snapshot(run, (other, 0)))
    with pytest.raises(UnlearningError, match="missing or damaged"):
        expected(deletion)
    child = child_of(deletion, repair=True)
    method.shards.run(deletion, child)
    assert child.run.card.unlearning["shards"]["dropped"] == 2
    assert same(snapshots(child.run), snapshots(anew(run, [name], tmp_path, base)))


def changed(run, **values):
    write_manifest(run, dataclasses.replace(read_manifest(run), **values))


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"base": "0"}, "base model"),
        ({"tokenizer": "0"}, "tokenizer"),
        ({"serializer": "0"}, "serializer"),
        ({"method": {"kind": "lora", "rank": 8}}, "method"),
        ({"seed": 12}, "seed"),
        ({"count": 2}, "shards"),
    ],
)
def test_another_base_tokenizer_or_setting_is_refused(run, values, said):
    deletion = deletion_of(run, [unit_in(run, part=1)[0]])
    changed(run, **values)
    with pytest.raises(UnlearningError, match=said):
        rebuild(deletion, child_of(deletion))


def test_another_beginning_is_refused(run):
    deletion = deletion_of(run, [unit_in(run, part=1)[0]])
    changed(run, fresh="0")
    with pytest.raises(UnlearningError, match="missing or damaged"):
        rebuild(deletion, child_of(deletion))
    with pytest.raises(RunError, match="not the one that is drawn now"):
        rebuild(deletion, child_of(deletion, repair=True))


def test_records_that_were_not_trained_on_are_not_taken_for_deleted(run):
    deletion = deletion_of(run, [unit_in(run, part=1)[0]])
    unchanged = dataclasses.replace(deletion, left=load_split(run.records))
    with pytest.raises(UnlearningError, match="not trained on all"):
        rebuild(unchanged, child_of(unchanged))


def test_bits_are_not_claimed_where_something_else_computed(run):
    deletion = deletion_of(run, [unit_in(run, part=1)[0]])
    changed(run, environment={**read_manifest(run).environment, "torch": "1.0"})
    child = child_of(deletion)
    rebuild(deletion, child)
    said = child.run.card.unlearning["shards"]
    assert (said["bit_identical"], said["differs"]) == (False, ["torch"])


def test_threads_are_those_of_the_training():
    before = torch.get_num_threads()
    with sharded.pinned(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_run_without_shards_has_none(run):
    shutil.rmtree(shards_folder(run))
    deletion = deletion_of(run, [])
    with pytest.raises(RunError, match="no shards"):
        drop(deletion, child_of(deletion))


def test_an_empty_slice_changes_nothing(base, tmp_path):
    """More slices than units."""
    config = settings(tmp_path, base, shards={"count": 1, "slices": 30}, train={"epochs": 1})
    found = fine_tune(config)
    empty = [c for c in read_manifest(found).cells if read_stage(snapshot(found, c)).count == 0]
    assert empty
    for cell in empty:
        stage = read_stage(snapshot(found, cell))
        assert (stage.tokens, stage.steps, stage.weights) == (0, 0, stage.start)


def test_a_dry_run_tells_of_shards(base, tmp_path):
    config = settings(tmp_path, base)
    plan = plan_of(config, prepare(config))
    assert (plan["shards"], plan["slices"], plan["deletion of one unit"]) == (3, 2, "25.0% of training anew")
    assert plan["steps"] % 12 == 0


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"method": {"kind": "full"}}, "method.kind"),
        ({"method": {"variant": "dora"}}, "method.variant"),
        ({"method": {"variant": "ffa"}}, "method.variant"),
        ({"dp": {"epsilon": 8}}, "dp"),
        ({"train": {"select": "best"}}, "train.select"),
        ({"train": {"stop_loss": 1.0}}, "train.stop_loss"),
        ({"train": {"validate_every": 5}}, "train.validate_every"),
        ({"train": {"monitor": {"every": 5}}}, "train.monitor"),
        ({"canaries": {"audit": {"count": 20, "design": "bigram"}}}, "canaries.audit.design"),
        ({"task": "classification", "data": {"path": "x", "label": "y"}}, "task"),
        ({"shards": {"count": 0}}, "shards.count"),
        ({"shards": {"slices": 0}}, "shards.slices"),
    ],
)
def test_what_shards_cannot_be_trained_with_is_refused(values, key):
    with pytest.raises(ConfigError, match=key):
        load(values={"data": {"path": "x"}, "shards": {"count": 2}, **values}, environment={})


def test_flags_for_short(base, tmp_path, capsys):
    from sordino.cli import _run

    settings(tmp_path, base)  # writes the records
    data, model = {"path": str(tmp_path / "data.csv")}, {"path": str(base), "device": "cpu"}
    (tmp_path / "run.yaml").write_text(json.dumps({"data": data, "model": model, "split": {"candidates": 0}}))
    words = ["train", str(tmp_path / "run.yaml"), "--dry-run", "--json"]
    assert _run([*words, "--shards", "5", "--slices", "2", "--shards.combine", "ensemble"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["shards"], plan["slices"]) == (5, 2)
    assert _run([*words, "--slices", "0"]) == 2
    assert "shards.slices is 0" in capsys.readouterr().err
