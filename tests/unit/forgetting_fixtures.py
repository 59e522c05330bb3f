"""Small runs to unlearn from: questions and answers on a random model, and a deletion of some of their subjects."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from sordino.config import load, recorded
from sordino.errors import UnlearningError
from sordino.model import restore, save
from sordino.records import Split
from sordino.records.store import load as load_split
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.train.flow import fine_tune
from sordino.train.reading import serializer_for
from sordino.train.validation import validation_loss
from sordino.unlearn.base import Child, Deletion, create_child
from sordino.unlearn.methods import named

WORDS = (
    "ash", "bay", "cam", "dew", "elm", "fir", "gum", "hop", "ivy", "kiln",
    "loch", "moor", "nook", "oak", "pond", "quay", "reed", "sage", "tarn", "vale",
)  # fmt: skip
RATES = {"lora": 1e-2, "full": 3e-3}
_UNLEARNING = {"lora": 2e-3, "full": 5e-4}
# What a random model of two blocks takes.
_OWN = {"rmu": {"steering": 40.0, "alpha": 1.0, "epochs": 8}}


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
    more_columns = {"rejected": "rejected"} if "rejected" in lines[0] else {}
    values = {
        "data": {"path": str(data), "unit": "who", **more_columns}, "out": str(folder / "runs"), "seed": 5,
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


def both(make_model: Any, folder: Path) -> dict[str, Deletion]:
    """Four subjects ask a LoRA run and one tuned whole; to each question there is an answer that was liked less."""
    save(make_model("llama", seed=3), folder / "model")
    runs = {kind: learned(folder / kind, folder / "model", kind, rows=rows(rejected=True)) for kind in RATES}
    return {kind: deletion_of(run) for kind, run in runs.items()}


def losses(run: Run, deletion: Deletion) -> list[float | None]:
    """Mean NLL a token of what is to be forgotten, of what stays, and of validation records."""
    config = recorded(run.card.config, "-")
    model = restore(config.model, config.method, run.weights)
    serializer = serializer_for(config, model.tokenizer, model.context)
    parts = (deletion.forget, deletion.retain, deletion.validation)
    return [validation_loss(model, [serializer.encode(e.record) for e in part], 32) for part in parts]


def quick(kind: str, name: str) -> dict[str, Any]:
    """Settings with which a method does something soon."""
    settings = {"learning_rate": _UNLEARNING[kind], "epochs": 3, "batch_size": 4, "schedule": "constant", "warmup": 0.0}
    return settings | {"tolerance": None} | _OWN.get(name, {})


def files(child: Child) -> dict[str, Any]:
    """The tensors of a run."""
    found = {}
    for path in sorted(child.run.weights.glob("*.safetensors")):
        found |= load_file(path)
    return found


def refuses(deletion: Deletion, name: str, match: str, **settings: Any) -> UnlearningError:
    """The error with which a method refuses, after which no weights are there."""
    child = child_of(deletion, name, **settings)
    with pytest.raises(UnlearningError, match=match) as caught:
        named(name).run(deletion, child)
    assert caught.value.hint and not child.run.weights.exists()
    forgotten(child)
    return caught.value


def changed(deletion: Deletion, **record: Any) -> Deletion:
    """The deletion with the first record to forget changed."""
    first, *rest = deletion.forget
    return dataclasses.replace(
        deletion, forget=[dataclasses.replace(first, record=dataclasses.replace(first.record, **record)), *rest]
    )
