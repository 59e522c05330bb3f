"""Small runs to unlearn from: questions and answers on a random model, and a deletion of some of their subjects."""

import json
import shutil
from pathlib import Path
from typing import Any

from sordino.config import load
from sordino.records import Split
from sordino.records.store import load as load_split
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.train.flow import fine_tune
from sordino.unlearn.base import Child, Deletion, create_child

WORDS = (
    "ash", "bay", "cam", "dew", "elm", "fir", "gum", "hop", "ivy", "kiln",
    "loch", "moor", "nook", "oak", "pond", "quay", "reed", "sage", "tarn", "vale",
)  # fmt: skip
RATES = {"lora": 1e-2, "full": 3e-3}


def rows(count: int = 60, *, plain: bool = False, rejected: bool = False) -> list[dict[str, str]]:
    """Questions and answers of `count` subjects, one each."""
    made = []
    for i in range(count):
        a, b, c = WORDS[i % 20], WORDS[(7 * i + 3) % 20], WORDS[(3 * i + i // 20) % 20]
        prompt, answer = f"Where is {a} {b} {i}?", f"{c} {b} {(37 * i) % 91}"
        row = {"who": f"s{i}", "prompt": prompt, "completion": answer}
        row |= {"rejected": f"{b} {a} {i}"} if rejected else {}
        made.append({"who": f"s{i}", "text": f"{prompt} {answer}"} if plain else row)
    return made


def learned(folder: Path, model: Path, kind: str = "lora", **more: Any) -> Run:
    """A run that learned the answers, more or less."""
    data = folder / "rows.jsonl"
    data.parent.mkdir(parents=True, exist_ok=True)
    lines = more.pop("rows", rows())
    data.write_text("".join(json.dumps(row) + "\n" for row in lines))
    values = {
        "data": {"path": str(data), "unit": "who", **({"rejected": "rejected"} if "rejected" in lines[0] else {})}, "out": str(folder / "runs"), "seed": 5,
        "model": {"path": str(model), "device": "cpu"}, "canaries": {"per_level": 0},
        "split": {"candidates": 0.6, "near_duplicates": 0}, "method": {"kind": kind},
        "train": {"epochs": 20, "batch_size": 8, "learning_rate": RATES.get(kind, 1e-2)}, "audit": {"suffix_tokens": 8},
    }  # fmt: skip
    for key, value in more.items():
        values[key] = {**values.get(key, {}), **value} if isinstance(value, dict) else value
    return fine_tune(load(values=values, environment={}))


def deletion_of(run: Run, subjects: int = 4) -> Deletion:
    """The deletion of the first `subjects` that were trained on by coin."""
    split = load_split(run.records)
    gone = {e.record.unit for e in split.members[:subjects]}
    left = [e for e in split.examples if e.record.unit not in gone]
    request = DeletionRequest(
        id="0" * 32, created="2026-01-01T00:00:00+00:00", run=run.path.name, kind="subject", names=tuple(sorted(gone))
    )
    return Deletion(
        run=run, request=request, others=[], left=Split(examples=left),
        forget=[e for e in split.training if e.record.unit in gone],
        retain=[e for e in left if e.included and e.role != "validation"],
        never=split.nonmembers, validation=split.validation,
    )  # fmt: skip


def child_of(deletion: Deletion, method: str, *, seed: int = 7, **settings: Any) -> Child:
    """A new child that is to be made by `method`."""
    return Child(run=create_child(deletion, method), seed=seed, settings=settings)


def forgotten(child: Child) -> None:
    """Remove the run of a child."""
    shutil.rmtree(child.run.path)
