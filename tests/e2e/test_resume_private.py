"""A private run that is killed, again and again: no step is forgotten, none is taken twice, and ε stays the plan's."""

import random
import shutil
import signal
from pathlib import Path

import pytest
from cli_worker import WITNESS

from sordino.config import load
from sordino.dp.accounting import decode_event, repeated, spend
from sordino.ledger import read_ledger, started_in
from sordino.run import Run
from sordino.train.flow import create, prepare


@pytest.fixture(scope="module")
def prepared(small_model, tickets, tmp_path_factory) -> Path:
    """A run folder of a short private training with its coins drawn and nothing trained."""
    folder = tmp_path_factory.mktemp("private")
    few = folder / "tickets.csv"
    few.write_text("".join(tickets.read_text().splitlines(keepends=True)[:81]))
    values = {
        "data": {"path": str(few), "unit": "customer"}, "out": str(folder / "runs"),
        "model": {"path": str(small_model), "device": "cpu"},
        "split": {"candidates": 0, "validation": 0.1, "near_duplicates": 0},
        "method": {"rank": 2}, "dp": {"noise_multiplier": 1.0},
        "train": {"epochs": 2, "batch_size": 8, "accumulation": 2, "max_length": 16, "checkpoint_every": 3,
            "per_sample": "book-keeping",
        },
    }  # fmt: skip
    config = load(values=values, environment={})
    return create(config, prepare(config)).path


def taken(folder: Path) -> set[tuple[int, int]]:
    """(process, step) of all private steps that have seen records."""
    return {(int(pid), int(step)) for pid, step in map(str.split, (folder / WITNESS).read_text().splitlines())}


DEATHS = {
    "in and around steps": [("before gradients are clipped", 2), ("before noise is added", 1), ("in a step", 2)],
    "in writing": [("before data is flushed", 12), ("before the promise ends", 1)],
}
POINTS = [
    *(("before data is flushed", passage) for passage in range(1, 16, 2)),
    *(("before units are sampled", passage) for passage in (1, 4)),
    *(("before a step is in the journal", passage) for passage in (1, 3)), ("in a half-written checkpoint", 1),
    *(("before its losses are written", passage) for passage in (1, 4)),
    ("before a folder is renamed", 2), ("before a folder is renamed", 4), ("before a checkpoint", 2),
]  # fmt: skip


@pytest.mark.parametrize(
    "deaths",
    [
        *(pytest.param(deaths, id=name) for name, deaths in DEATHS.items()),
        *(pytest.param([point], marks=pytest.mark.slow, id=f"{point[0]}, {point[1]}") for point in POINTS),
        *(
            pytest.param(random.Random(seed).sample(POINTS, 4), marks=pytest.mark.slow, id=f"four deaths, {seed}")
            for seed in range(4)
        ),
    ],
)
def test_epsilon_never_exceeds_the_plan_whatever_dies(deaths, prepared, forked, tmp_path):
    run = Run(Path(shutil.copytree(prepared, tmp_path / "run")))
    (tmp_path / WITNESS).touch()
    journal = run.private / "dp_steps"
    killed = 0
    for death in deaths:
        ended = forked("train", "--resume", "run", cwd=tmp_path, death=death)
        killed += ended.code == -signal.SIGKILL
        steps = [step for _, step in taken(tmp_path)]
        # The journal knows of whatever has seen records, also where nothing else was written down.
        assert started_in(journal) > max(steps, default=-1)
        if ended.code == 0:
            break
    # Late points come to pass only in long lives.
    assert killed
    if run.card.status != "trained":
        ended = forked("train", "--resume", "run", cwd=tmp_path)
        assert ended.code == 0, ended.err
    [entry] = read_ledger(run.path / "ledger.json")
    privacy = run.card.privacy
    assert entry.started == started_in(journal) == entry.planned == privacy["steps"]
    begun = repeated(decode_event(entry.step_event), started_in(journal))
    spent = spend(begun, delta=entry.delta, relation=entry.relation)
    assert entry.status == "finished" and round(spent.epsilon, 4) == privacy["epsilon"]
    steps = [step for _, step in taken(tmp_path)]
    # No sample was drawn, and no noise spent, twice.
    assert len(steps) == len(set(steps)) and set(steps) <= set(range(entry.planned))
    assert not (run.private / "dp_secret").exists()
