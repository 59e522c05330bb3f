"""A training run that is killed and resumed ends as if nothing had happened: bit for bit."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from cli_worker import ENVIRONMENT

from sordino.config import load
from sordino.records import SplitConfig
from sordino.run import Run
from sordino.train.flow import create, prepare

CHECKPOINT = 4


@pytest.fixture(scope="module")
def values(small_model, tickets, tmp_path_factory):
    """A short run with everything in it that a resumed run could get wrong: dropout, parts, warm-up."""
    few = tmp_path_factory.mktemp("few") / "tickets.csv"
    few.write_text("".join(tickets.read_text().splitlines(keepends=True)[:241]))
    return {
        "name": "resume",
        "data": {"path": str(few), "unit": "customer"},
        "model": {"path": str(small_model), "device": "cpu"},
        "split": {"candidates": 0.5, "validation": 0.1, "near_duplicates": 0},
        "canaries": {"per_level": 2, "levels": [1, 2]},
        "method": {"dropout": 0.1, "rank": 4},
        "train": {
            "epochs": 2, "batch_size": 16, "accumulation": 2, "learning_rate": 0.01, "max_length": 24,
            "checkpoint_every": CHECKPOINT, "validate_every": 7, "select": "best",
        },
    }  # fmt: skip


@pytest.fixture(scope="module")
def prepared(values, tmp_path_factory) -> Path:
    """A run folder with its coins drawn and nothing trained."""
    config = load(values={**values, "out": str(tmp_path_factory.mktemp("prepared"))}, environment={})
    assert config.split == SplitConfig(candidates=0.5, validation=0.1, near_duplicates=0)
    return create(config, prepare(config)).path


@pytest.fixture(scope="module")
def uninterrupted(prepared, forked, tmp_path_factory) -> Run:
    """The same run, trained in one go."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    shutil.copytree(prepared, folder / "run")
    ended = forked("train", "--resume", "run", cwd=folder)
    assert ended.code == 0, ended.err
    return Run.open(folder / "run")


def training(run: Run) -> dict:
    return {k: v for k, v in run.card.training.items() if k != "seconds"}


def steps(run: Run) -> list[int]:
    lines = [json.loads(line) for line in (run.private / "losses.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def assert_same(run: Run, other: Run) -> None:
    for name in ("private/losses.jsonl", "weights/adapter_model.safetensors", "weights/adapter_config.json"):
        assert (run.path / name).read_bytes() == (other.path / name).read_bytes(), name
    state = "private/checkpoints/last/state.safetensors"
    assert (run.path / state).read_bytes() == (other.path / state).read_bytes()
    assert training(run) == training(other)
    assert run.card.model == other.card.model
    left = [p.name for p in run.checkpoints.iterdir() if p.name.startswith(".")]
    assert not left, "half-written checkpoints stay behind"


def resumed_from(run: Run) -> list[int]:
    events = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    return [event["step"] for event in events if event["event"] == "resumed"]


def test_the_run_is_long_enough_to_be_interrupted(uninterrupted):
    assert steps(uninterrupted) == list(range(1, training(uninterrupted)["step"] + 1))
    assert len(steps(uninterrupted)) >= 3 * CHECKPOINT
    assert resumed_from(uninterrupted) == []
    assert training(uninterrupted)["best_step"] is not None


DEATHS = [
    ("in a step", random.Random(0).randrange(1, 3 * CHECKPOINT)),
    ("before its losses are written", 6),
    ("in a half-written checkpoint", 1),
    ("in a half-written checkpoint", 3),
    # The second checkpoint first moves the old one aside, then takes its name: death before and between.
    *(("before a folder is renamed", passage) for passage in (2, 3)),
]
MORE_DEATHS = [
    ("in a step", 1),
    *(("in a step", random.Random(seed).randrange(1, 3 * CHECKPOINT)) for seed in range(1, 10)),
    *(("before a checkpoint", passage) for passage in (1, 3)),
    *(("before a folder is renamed", passage) for passage in (1, 4, 5, 6, 7, 8, 9)),
    *(("before data is flushed", passage) for passage in range(1, 30, 4)),
]


@pytest.mark.parametrize(
    "death",
    [*DEATHS, *(pytest.param(death, marks=pytest.mark.slow) for death in MORE_DEATHS)],
    ids=lambda death: f"{death[0]}, {death[1]}",
)
def test_killed_and_resumed_is_uninterrupted(death, prepared, uninterrupted, forked, tmp_path):
    run = Run(Path(shutil.copytree(prepared, tmp_path / "run")))
    killed = forked("train", "--resume", "run", cwd=tmp_path, death=death)
    assert killed.code == -signal.SIGKILL, killed.err
    assert run.card.status in ("prepared", "training")

    ended = forked("train", "--resume", "run", cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert ended.out == "run\n"
    assert_same(run, uninterrupted)


def test_it_goes_on_from_the_last_checkpoint_not_from_the_start(prepared, uninterrupted, forked, tmp_path):
    run = Run(Path(shutil.copytree(prepared, tmp_path / "run")))
    for step in (CHECKPOINT + 2, CHECKPOINT):
        killed = forked("train", "--resume", "run", cwd=tmp_path, death=("in a step", step))
        assert killed.code == -signal.SIGKILL
    # Twice killed: 6 steps from the start, then 4 more from the checkpoint at 4, dying in the 8th.
    assert forked("train", "--resume", "run", cwd=tmp_path).code == 0
    assert resumed_from(run) == [CHECKPOINT, 7]
    assert_same(run, uninterrupted)


def start(config: Path, cwd: Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "sordino.cli", "train", str(config)]
    # A shell that starts the tests in the background has interrupts ignored, by all they start as well.
    return subprocess.Popen(
        command, cwd=cwd, env={**os.environ, **ENVIRONMENT}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip


def wait_for_step(process: subprocess.Popen, folder: Path, wanted: int) -> Run:
    until = time.monotonic() + 120
    while time.monotonic() < until and process.poll() is None:
        logs = list(folder.glob("runs/*/private/losses.jsonl"))
        if logs and logs[0].read_bytes().count(b'"loss"') >= wanted:
            return Run(logs[0].parents[1])
        time.sleep(0.002)
    out, err = process.communicate()
    raise AssertionError(f"step {wanted} was never seen (exit code {process.returncode}): {out}{err}")


# Processes that kill themselves are killed above, at points that were chosen.
@pytest.mark.parametrize(
    ("kind", "code"),
    [pytest.param(signal.SIGKILL, -signal.SIGKILL, marks=pytest.mark.slow), (signal.SIGINT, 130)],
)
def test_a_signal_from_outside_at_a_random_step(kind, code, values, uninterrupted, forked, tmp_path):
    config = tmp_path / "run.yaml"
    config.write_text(json.dumps(values))
    process = start(config, tmp_path)
    run = wait_for_step(process, tmp_path, random.Random(int(kind)).randrange(2, 2 * CHECKPOINT))
    process.send_signal(kind)
    out, err = process.communicate(timeout=60)
    assert process.returncode == code, err
    assert out == ""
    assert "Traceback" not in err
    if kind == signal.SIGINT:
        assert "sordino train --resume" in err
    assert run.card.status == "training"

    ended = forked("train", "--resume", run.path, cwd=tmp_path)
    assert ended.code == 0, ended.err
    assert_same(run, uninterrupted)


def test_a_damaged_checkpoint_is_refused_not_ignored(prepared, forked, tmp_path):
    run = Run(Path(shutil.copytree(prepared, tmp_path / "run")))
    forked("train", "--resume", "run", cwd=tmp_path, death=("in a step", CHECKPOINT + 1))
    state = run.checkpoints / "last" / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-100])
    ended = forked("train", "--resume", "run", cwd=tmp_path)
    assert ended.code == 2
    assert "is damaged" in ended.err and "Traceback" not in ended.err


def test_a_changed_base_model_is_refused(values, prepared, forked, tmp_path, small_model):
    from safetensors.torch import load_file, save_file

    run = Run(Path(shutil.copytree(prepared, tmp_path / "run")))
    model = Path(shutil.copytree(small_model, tmp_path / "model"))
    card = json.loads((run.path / "run.json").read_text())
    card["config"]["model"]["path"] = str(model)
    (run.path / "run.json").write_text(json.dumps(card))
    forked("train", "--resume", "run", cwd=tmp_path, death=("in a step", 2))
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] += 1e-3
    save_file(tensors, model / "model.safetensors", metadata={"format": "pt"})
    ended = forked("train", "--resume", "run", cwd=tmp_path)
    assert ended.code == 2
    assert "has changed since this run began" in ended.err
