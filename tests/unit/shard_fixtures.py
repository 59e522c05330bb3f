"""A small run in shards, deletions from it, and its tensors, for tests of the exact tier."""

import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

from sordino.config import load
from sordino.records import Split
from sordino.records.store import load as load_split
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.train.shard_plan import shards_folder
from sordino.unlearn.base import Child, Deletion, create_child

WORDS = ("amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "kelp", "larch", "maple")


def settings(folder: Path, base: Path, **more: Any) -> Any:
    """The configuration of a run in three shards of two slices, on short texts of which each unit has two."""
    rng = np.random.default_rng(5)
    rows = [f"u{i // 2},{' '.join(rng.choice(WORDS, 6))}" for i in range(56)]
    folder.mkdir(exist_ok=True)
    (folder / "data.csv").write_text("\n".join(["who,text", *rows]) + "\n")
    values = {
        "model": {"path": str(base), "device": "cpu"},
        "data": {"path": str(folder / "data.csv"), "unit": "who"},
        "out": str(folder / "runs"),
        "method": {"rank": 4, "alpha": 8.0, "dropout": 0.1},
        "split": {"candidates": 0.0, "validation": 0.1, "near_duplicates": 0},
        "train": {"epochs": 2, "learning_rate": 1e-2, "batch_size": 4, "checkpoint_every": 1},
        "canaries": {"per_level": 0},
        "shards": {"count": 3, "slices": 2},
    }
    for section, given in more.items():
        values[section] = {**values[section], **given} if isinstance(given, dict) else given
    return load(values=values, environment={})


def deletion_of(run: Run, names: Sequence[str]) -> Deletion:
    """The deletion of the units `names` from `run`."""
    split = load_split(run.records)
    left = Split(examples=tuple(e for e in split.examples if e.record.unit not in names), notices=split.notices)
    gone = [e for e in split.examples if e.record.unit in names]
    return Deletion(
        run=run,
        request=DeletionRequest(id=uuid.uuid4().hex, created="", run=run.path.name, kind="subject", names=tuple(names)),
        forget=[e for e in gone if e.included],
        others=[e for e in gone if not e.included],
        retain=left.training,
        never=left.nonmembers,
        validation=left.validation,
        left=left,
    )  # fmt: skip


def child_of(deletion: Deletion, **given: Any) -> Child:
    """The child of `deletion`, yet without weights; `given` are settings of the method."""
    return Child(run=create_child(deletion, "shards"), seed=1, settings={"repair": False, **given})


def snapshots(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """The tensors of every snapshot, by the name of its folder."""
    root = shards_folder(run)
    return {
        str(path.parent.relative_to(root)): load_file(path) for path in sorted(root.rglob("adapter_model.safetensors"))
    }


def same(one: dict[str, dict[str, np.ndarray]], two: dict[str, dict[str, np.ndarray]]) -> bool:
    """Whether two runs have the same snapshots, bit for bit."""
    return one.keys() == two.keys() and all(
        one[place].keys() == two[place].keys()
        and all(np.array_equal(one[place][name], two[place][name]) for name in one[place])
        for place in one
    )
