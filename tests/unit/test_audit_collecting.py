"""Signals for an audit: computed once, never of a model, a base or a tokenizer other than the run's own."""

import json
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import pytest

from sordino.attacks.complexity import compressed_sizes
from sordino.audit.collecting import Collector
from sordino.audit.inputs import Context, compressed
from sordino.audit.inputs.drawn import along, give
from sordino.collect import drawn
from sordino.config import load
from sordino.errors import RunError
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import AuditPlan
from sordino.run import Run
from sordino.serialize import lowercase
from sordino.train.flow import create, prepare, train_run


@pytest.fixture(scope="module", params=["lora", "full"])
def made(request, make_model, tmp_path_factory) -> Path:
    """A folder with a model, and a run that tuned it a little."""
    folder = tmp_path_factory.mktemp("made")
    save(make_model("llama"), folder / "model")
    rows = [{"text": f"Note {i}: the KEY of flat {i * 7919 % 1000} is green"} for i in range(80)]
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values = {
        "data": {"path": str(folder / "x.jsonl")}, "out": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "device": "cpu"}, "canaries": {"per_level": 0},
        "split": {"candidates": 0.6, "near_duplicates": 0},
        "method": {"kind": "full"} if request.param == "full" else {"rank": 2},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
    }  # fmt: skip
    config = load(values=values, environment={})
    train_run(create(config, prepare(config)))
    return folder


@pytest.fixture
def run(made, tmp_path) -> Run:
    """A copy of that run, with a model of its own to damage."""
    [source] = (made / "runs").iterdir()
    shutil.copytree(made / "model", tmp_path / "model")
    copy = Run(Path(shutil.copytree(source, tmp_path / "run")))
    text = (copy.path / "run.json").read_text().replace(str(made / "model"), str(tmp_path / "model"))
    (copy.path / "run.json").write_text(text)
    return copy


def signals(run: Run):
    collector = Collector(run)
    examples = [e for e in load_split(run.records).examples if e.role == "candidate"]
    return collector, *collector.signals(examples, {"lowercase": lowercase})


def test_how_tokens_are_drawn_comes_along_with_the_pass_of_the_signals(run, monkeypatch):
    collector, decodings = Collector(run), AuditPlan().sampling.decodings
    examples = [e for e in load_split(run.records).examples if e.role == "candidate"]
    collector.signals(examples, {}, decodings)
    assert collector.forwards == 2
    context = Context(collector=collector, examples=examples, known=[], plan=AuditPlan(), seed=0)
    assert along(context) == decodings
    kept = collector.store.arrays(collector.drawn_key(examples, "tuned", decodings))
    wanted = drawn(collector.subject.tuned, [collector.encode(e) for e in examples], decodings)
    np.testing.assert_allclose(kept["logprob"], wanted, atol=1e-5)
    monkeypatch.setattr("sordino.collect.drawn", lambda *args, **more: pytest.fail("a pass of its own"))
    pair = give(context, collector.signals(examples, {}, decodings))
    np.testing.assert_array_equal(pair[0].sampled.logprob, kept["logprob"])
    assert collector.forwards == 2


def test_each_is_computed_once_ever(run, monkeypatch):
    collector, tuned, control = signals(run)
    assert collector.forwards == 4  # two models, plain and in lower case
    monkeypatch.setattr("sordino.model.restore", lambda *args: pytest.fail("a model was loaded"))
    again, tuned2, control2 = signals(run)
    assert again.forwards == 0
    for first, second in ((tuned, tuned2), (control, control2), (tuned.views["lowercase"], tuned2.views["lowercase"])):
        assert np.array_equal(first.logprob.values, second.logprob.values)
        assert first.record_ids == second.record_ids


def test_base_and_control_are_the_untuned_model(run):
    _, tuned, control = signals(run)
    assert np.array_equal(tuned.reference.logprob.values, control.logprob.values)
    assert np.array_equal(control.reference.nll, control.nll)
    assert not np.allclose(tuned.nll, control.nll)
    assert (tuned.nll < control.nll).mean() > 0.9


def test_keys_depend_on_records_view_model_and_order(run):
    collector = Collector(run)
    examples = [e for e in load_split(run.records).examples if e.role == "candidate"]
    keys = {
        collector.key(examples, "tuned"), collector.key(examples, "base"), collector.key(examples[1:], "tuned"),
        collector.key(examples, "tuned", "lowercase"), collector.key(examples[::-1], "tuned"),
    }  # fmt: skip
    assert len(keys) == 5


@pytest.mark.parametrize("cached", [False, True])
def test_changed_weights_are_refused_even_where_nothing_must_be_computed(run, cached):
    if cached:
        signals(run)
    [path] = run.weights.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(RunError, match="are not those that training wrote") as error:
        Collector(run)
    assert str(run.weights) in error.value.message


def test_a_changed_base_is_refused_and_nothing_of_it_is_kept(run, tmp_path):
    from safetensors.torch import load_file, save_file

    path = tmp_path / "model" / "model.safetensors"
    tensors = load_file(path)
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(RunError, match=r"The model .* has changed since it was tuned"):
        signals(run)
    manifests = [json.loads(p.read_text()) for p in run.private.glob("signals/*/manifest.json")]
    # A fully tuned model does not depend on what it was tuned from; an adapter does.
    wrong = {"base"} if run.card.config["method"]["kind"] == "full" else {"base", "tuned"}
    assert not wrong & {m["model"] for m in manifests}


def test_a_changed_tokenizer_is_refused(run):
    path = run.weights / "tokenizer.json"
    rules = json.loads(path.read_text())
    rules["model"]["merges"] = rules["model"]["merges"][:-1]
    path.write_text(json.dumps(rules))
    with pytest.raises(RunError, match="is not the one the run was trained with"):
        _ = Collector(run).serializer


@pytest.mark.parametrize("status", ["prepared", "training"])
def test_an_unfinished_run_is_refused(run, status):
    card = json.loads((run.path / "run.json").read_text()) | {"status": status}
    (run.path / "run.json").write_text(json.dumps(card))
    with pytest.raises(RunError, match=rf"is not trained to its end \({status}\)") as error:
        Collector(run)
    assert f"--resume {run.path}" in error.value.hint


@pytest.fixture
def pair(made, tmp_path) -> tuple[Run, Run]:
    """Two copies of that run in one folder, of which the first has its signals."""
    [source] = (made / "runs").iterdir()
    first, second = (Run(Path(shutil.copytree(source, tmp_path / name))) for name in ("first", "second"))
    signals(first)
    return first, second


def base_of(run: Run) -> list[Path]:
    found = [p.parent for p in run.private.glob("signals/*/manifest.json")]
    return sorted(p for p in found if json.loads((p / "manifest.json").read_text())["model"] == "base")


def test_signals_of_the_same_untuned_model_are_taken_from_the_run_beside(pair):
    first, second = pair
    collector, _, control = signals(second)
    assert collector.forwards == 2  # of the tuned model alone
    _, _, theirs = signals(first)
    assert np.array_equal(control.logprob.values, theirs.logprob.values)
    assert [json.loads((p / "manifest.json").read_text())["from"] for p in base_of(second)] == ["first", "first"]
    # From now on they are its own.
    shutil.rmtree(first.path)
    assert signals(second)[0].forwards == 0


def rewrite(folder: Path, **values) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**manifest, **values}))


def flip(folder: Path) -> None:
    path = folder / "statistics.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\x01")


def renumber(folder: Path) -> None:
    """The statistics of other tokens under this key, with a digest that fits them."""
    from sordino.evidence import digest_file
    from sordino.signals import Store

    store, key = Store(folder.parent), folder.name
    there = store.get(key)
    changed = {**there.present(), "token": there.token[::-1].copy()}
    store.put(key, type(there)(offsets=there.offsets, **changed), json.loads((folder / "manifest.json").read_text()))
    assert store.manifest(key)["digest"] == digest_file(folder / "statistics.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [
        flip,
        renumber,
        lambda folder: rewrite(folder, settings="another"),
        lambda folder: rewrite(folder, base="another"),
        lambda folder: rewrite(folder, context="63"),
        lambda folder: rewrite(folder, **{"computed by": "torch 1.0, cpu"}),
        lambda folder: rewrite(folder, digest="another"),
        lambda folder: (folder / "manifest.json").write_text("["),
        lambda folder: (folder / "manifest.json").unlink(),
    ],
    ids=["a byte", "tokens", "settings", "base", "context", "torch", "digest", "a broken manifest", "no manifest"],
)
def test_what_cannot_be_trusted_is_computed_again(pair, spoil):
    first, second = pair
    for folder in base_of(first):
        spoil(folder)
    collector, _, control = signals(second)
    assert collector.forwards == 4
    assert np.isfinite(control.logprob.values).all()
    assert not any("from" in json.loads((p / "manifest.json").read_text()) for p in base_of(second))


def test_texts_are_compressed_once_ever_and_alike_for_both_models(run, monkeypatch):
    collector, tuned, control = signals(run)
    examples = [e for e in load_split(run.records).examples if e.role == "candidate"]

    def give():
        context = Context(collector=collector, examples=examples, known=[], plan=AuditPlan(), seed=0)
        return compressed.give(context, (tuned, control))

    first, second = give()
    expected = [len(zlib.compress(text.encode())) for text in tuned.texts]
    assert first.measured["compressed"].tolist() == second.measured["compressed"].tolist() == expected
    assert first.base.measured["compressed"].tolist() == expected
    monkeypatch.setattr(compressed, "compressed_sizes", lambda texts: pytest.fail("compressed again"))
    assert give()[0].measured["compressed"].tolist() == expected
    monkeypatch.setattr(compressed, "compressed_sizes", lambda texts: compressed_sizes(texts) + 1)
    monkeypatch.setattr(zlib, "ZLIB_RUNTIME_VERSION", "another")
    assert give()[0].measured["compressed"].tolist() == [size + 1 for size in expected]


def test_the_seconds_of_one_thing_done_twice_are_added(run):
    context = Context(collector=Collector(run), examples=[], known=[], plan=AuditPlan(), seed=0)
    for _ in range(2):
        with context.timed("waiting"):
            time.sleep(0.02)
    assert 0.04 <= context.seconds["waiting"] < 2
