"""Audit canaries through a whole run: the leak is found, nothing of them is released, and a crash changes nothing."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from sordino.audit.bounds import value_of
from sordino.audit.canaried import canaried
from sordino.audit.collecting import Collector
from sordino.audit.flow import audit
from sordino.config import load
from sordino.errors import ConfigError, RunError
from sordino.export import export
from sordino.model import load as load_model
from sordino.model import load_tokenizer, save
from sordino.records.store import load as load_split
from sordino.report import render_html
from sordino.results import AuditPlan
from sordino.run import Run
from sordino.train.flow import create, fine_tune, plan_of, prepare, train_run
from sordino.train.planted import NEW_TOKENS, read_audit_canaries

SLOW = pytest.mark.slow
WORDS = [f"name{n}" for n in range(60)]


@pytest.fixture(scope="module")
def records(make_model, tmp_path_factory) -> Path:
    """Made-up texts, beside them the models to tune: the head of the one tuned whole is tied to its embedding."""
    rng = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("data") / "r.jsonl"
    for kind, shape in (("lora", "llama"), ("full", "gpt2")):
        save(make_model(shape, seed=3), path.parent / kind)
    lines = (json.dumps({"text": " ".join(rng.choice(WORDS, 8))}) for _ in range(200))
    path.write_text("".join(line + "\n" for line in lines))
    return path


def config(records: Path, out: Path, kind: str = "lora", **more):
    values = {
        "data": {"path": str(records)}, "out": str(out), "seed": 5,
        "model": {"path": str(records.parent / kind), "device": "cpu"},
        "canaries": {"per_level": 0, "audit": {"design": "new-token", "count": 100}},
        "split": {"candidates": 0.4}, "method": {"kind": kind, **({"rank": 4} if kind == "lora" else {})},
        "train": {"epochs": 4, "batch_size": 4, "learning_rate": 5e-3 if kind == "lora" else 1e-3},
        "audit": {"headline": "canaries", "shuffles": 99, "require": ["epsilon.canaries <= 3"]},
    }  # fmt: skip
    return load(values=values, environment={}) if not more else load(values={**values, **more}, environment={})


@pytest.fixture(scope="module", params=["lora", "full"])
def trained(request, records, tmp_path_factory) -> Run:
    """A run with a hundred new tokens."""
    return fine_tune(config(records, tmp_path_factory.mktemp("runs"), request.param))


@pytest.fixture(scope="module")
def audited(trained):
    return trained, audit(trained, attacks=["loss"])


def test_the_planted_leak_is_found(audited):
    run, report = audited
    found = report.metrics["epsilon.canaries"]
    assert found.low > 1.5 and found.n == 100 and "20 of 20 guesses right over 100 new-token canaries" in found.method
    assert report.metrics["epsilon.lower"].low < found.low
    gates = {gate.name: gate for gate in report.gates}
    # What the plan declared comes first; the other bound is told, and decides nothing.
    assert found.method in gates["bound"].finding.split("Not the declared bound")[0]
    assert report.metrics["epsilon.lower"].method in gates["bound"].finding.split("Not the declared bound")[1]
    assert gates["shuffles"].passed
    [requirement] = report.requirements
    assert requirement.status == "inconclusive" and requirement.estimate == found
    assert "new-token canaries" in render_html(report, run.card)


def test_coins_that_mean_nothing_show_nothing(trained):
    coins = canaried(Collector(trained), load_split(trained.records).canaries, trained.card.plan)
    rng = np.random.default_rng(0)
    drawn = [rng.random(len(coins.gains)) < 0.5 for _ in range(200)]
    above = sum(value_of(coins.gains, member, AuditPlan()) > 0 for member in drawn)
    assert above <= 200 * (0.05 + 2 * np.sqrt(0.05 * 0.95 / 200))
    left_out = coins.gains[~coins.included]
    member = rng.random(len(left_out)) < 0.5
    assert value_of(left_out, member, AuditPlan()) == 0


def test_canaries_are_no_evidence_about_records(audited):
    run, report = audited
    placed = load_split(run.records)
    assert report.counts["members"] + report.counts["non-members"] == len(placed.candidates)
    assert not {e.record.id for e in placed.candidates} & {c.id for c in read_audit_canaries(run)}


def test_nothing_of_new_tokens_is_released(trained, tmp_path):
    out = export(trained, tmp_path / "out")
    base, tokenizer = load_model(trained_config(trained).model), load_tokenizer(trained_config(trained).model)
    for folder in (trained.weights, out):
        tensors = {n: t for path in folder.glob("*.safetensors") for n, t in load_file(str(path)).items()}
        assert tensors and not any("sordino" in name for name in tensors)
        wide = [t for name, t in tensors.items() if any(part in name for part in ("lm_head", "embed", "wte"))]
        assert all(t.shape[0] <= len(tokenizer) for t in wide)
        assert bool(wide) == (trained.card.config["method"]["kind"] == "full")
        assert load_tokenizer(trained_config(trained).model, str(folder)).get_vocab() == tokenizer.get_vocab()
        text = "".join(p.read_text() for p in folder.glob("*.json"))
        assert "sordino_rows" not in text and "audit-canary" not in text
    if trained.card.config["method"]["kind"] == "full":
        again = load_model(trained_config(trained).model, str(trained.weights))
        assert {n: t.shape for n, t in again.module.state_dict().items()} == {
            n: t.shape for n, t in base.module.state_dict().items()
        }
        assert again.module.config.vocab_size == base.module.config.vocab_size
    else:
        assert Collector(trained).subject.tuned.base().digest() == base.digest() == trained.card.model["base"]
    assert (trained.private / NEW_TOKENS).stat().st_mode & 0o777 == 0o600


def trained_config(run: Run):
    from sordino.config import recorded

    return recorded(run.card.config, "run.json")


def test_damaged_or_missing_rows_are_told(trained, tmp_path):
    import shutil

    copied = Run(shutil.copytree(trained.path, tmp_path / "run"))
    shutil.rmtree(copied.private / "exposures", ignore_errors=True)
    rows = copied.private / NEW_TOKENS
    rows.write_bytes(b"no tensors")
    examples = load_split(copied.records).canaries
    with pytest.raises(RunError, match="are damaged"):
        canaried(Collector(copied), examples, copied.card.plan)
    rows.unlink()
    with pytest.raises(RunError, match="are missing"):
        canaried(Collector(copied), examples, copied.card.plan)
    (copied.private / "audit_canaries.json").unlink()
    with pytest.raises(RunError, match=r"audit_canaries.json are damaged"):
        canaried(Collector(copied), examples, copied.card.plan)


class Stop(Exception):
    pass


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=SLOW)])
def test_an_interrupted_run_ends_with_the_same_rows(records, tmp_path, kind):
    train = {"epochs": 1, "batch_size": 16, "checkpoint_every": 5, "learning_rate": 5e-3, "monitor": {"every": 4}}
    settings = [config(records, tmp_path / name, kind, train=train) for name in ("whole", "broken")]
    whole = fine_tune(settings[0])
    broken = create(settings[1], prepare(settings[1]))

    def stop(progress, steps):
        if progress.step == 9:
            raise Stop

    with pytest.raises(Stop):
        train_run(broken, monitor=stop)
    assert not (broken.private / NEW_TOKENS).exists()
    curves = [run.private / "memorisation.jsonl" for run in (whole, broken)]
    assert [json.loads(line)["step"] for line in curves[1].read_text().splitlines()] == [4, 8]
    train_run(broken)  # from step 5 on
    assert curves[0].read_bytes() == curves[1].read_bytes()
    assert broken.card.model["weights"] == whole.card.model["weights"]
    one, two = (load_file(str(run.private / NEW_TOKENS)) for run in (whole, broken))
    assert torch.equal(one["tuned"], two["tuned"]) and torch.equal(one["initial"], two["initial"])
    assert not torch.equal(one["tuned"], one["initial"])


_KILLED = """
import os, signal, sys
import torch
torch.set_num_threads(1)
from sordino.run import Run
from sordino.train.flow import train_run
def die(progress, steps):
    if progress.step == 13:
        os.kill(os.getpid(), signal.SIGKILL)
train_run(Run.open(sys.argv[1]), monitor=die)
"""


@pytest.mark.slow
def test_a_killed_run_goes_on_with_its_rows_and_its_curve(records, tmp_path):
    train = {"epochs": 1, "batch_size": 8, "checkpoint_every": 5, "learning_rate": 5e-3, "monitor": {"every": 2}}
    settings = [config(records, tmp_path / name, train=train) for name in ("whole", "broken")]
    torch.set_num_threads(1)
    whole = fine_tune(settings[0])
    broken = create(settings[1], prepare(settings[1]))
    died = subprocess.run([sys.executable, "-c", _KILLED, str(broken.path)], env=dict(os.environ), timeout=200)
    assert died.returncode == -signal.SIGKILL
    curve = broken.private / "memorisation.jsonl"
    assert len(curve.read_text().splitlines()) == 6  # steps 2 to 12; the last checkpoint was after 10
    train_run(broken)
    for name in (NEW_TOKENS, "memorisation.jsonl"):
        assert (broken.private / name).read_bytes() == (whole.private / name).read_bytes()


@pytest.mark.slow
def test_a_private_run_tests_its_rows_and_claims_about_canaries(records, tmp_path):
    train = {"epochs": 1, "batch_size": 16, "learning_rate": 5e-3, "per_sample": "book-keeping"}
    canaries = {"per_level": 0, "audit": {"design": "new-token", "count": 40}}
    run = fine_tune(config(records, tmp_path, train=train, canaries=canaries, dp={"noise_multiplier": 0.6}))
    report = audit(run, attacks=["loss"])
    bound = {gate.name: gate for gate in report.gates}["bound"]
    assert bound.passed and "Claimed ε" in bound.finding
    assert "new-token canaries" in bound.finding.split("Not the declared bound")[0]
    rows = load_file(str(run.private / NEW_TOKENS))
    # Noise is on every row, those of canaries left out too.
    out = [c.number for c in read_audit_canaries(run) if not c.included]
    assert (rows["tuned"][out] != rows["initial"][out]).any(dim=1).all()
    assert len({tuple(row) for row in rows["tuned"][out].tolist()}) == len(out)


@pytest.mark.parametrize(
    "design", ["secret", "bigram", *(pytest.param(d, marks=SLOW) for d in ("in-distribution", "high-perplexity"))]
)
def test_other_designs_go_the_same_way(records, tmp_path, design):
    canaries = {"per_level": 1, "levels": [4], "digits": 3, "audit": {"design": design, "count": 60}}
    settings = config(records, tmp_path, canaries=canaries, train={"epochs": 1, "batch_size": 16})
    settings = replace(settings, audit=replace(settings.audit, headline="loss"))
    assert plan_of(settings, prepare(settings))["canaries"] == 61
    run = fine_tune(settings)
    assert not (run.private / NEW_TOKENS).exists()
    report = audit(run, attacks=["loss"])
    assert f"over 60 {design} canaries" in report.metrics["epsilon.canaries"].method
    bound = {gate.name: gate for gate in report.gates}["bound"]
    assert "from audit canaries" in bound.finding.split("Not the declared bound")[1]
    # A second audit finds everything there.
    collector = Collector(run)
    canaried(collector, load_split(run.records).canaries, run.card.plan)
    assert collector.forwards == 0 and len(report.canaries) == 1


def test_without_audit_canaries_nothing_is_said_of_them(records, tmp_path):
    settings = config(records, tmp_path, canaries={"per_level": 0}, audit={"shuffles": 99})
    settings = replace(settings, train=replace(settings.train, epochs=1))
    run = fine_tune(settings)
    report = audit(run, attacks=["loss"])
    assert "epsilon.canaries" not in report.metrics and report.memorisation == ()
    with pytest.raises(ConfigError, match=r"epsilon\.canaries"):
        audit(run, attacks=["loss"], require=["epsilon.canaries <= 1"])
