"""A small run whose model is to forget, and loops over single records that batched figures are held against."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sordino.config import load
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.train.flow import create, prepare, train_run
from sordino.unlearn.base import Deletion


def tuned_run(folder: Path, model: Any, rows: Sequence[Mapping[str, str]], **more: Mapping[str, Any]) -> Run:
    """A run that tuned a copy of `model` on `rows`, two consecutive ones a unit."""
    save(model, folder / "model")
    (folder / "x.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    values: dict[str, Any] = {
        "data": {"path": str(folder / "x.jsonl"), "unit_rows": 2}, "out": str(folder / "runs"),
        "model": {"path": str(folder / "model"), "device": "cpu"}, "canaries": {"per_level": 0},
        "split": {"candidates": 0.6, "near_duplicates": 0}, "method": {},
        "train": {"epochs": 1, "batch_size": 16, "learning_rate": 0.01},
    }  # fmt: skip
    for name, some in more.items():
        values[name] = {**values[name], **some}
    config = load(values=values, environment={})
    return train_run(create(config, prepare(config)))


def deletion_of(run: Run, units: int = 2, request: str = "request-1") -> Deletion:
    """The first `units` units that were trained on are to go."""
    split = load_split(run.records)
    names = tuple(dict.fromkeys(e.record.unit for e in split.examples if e.included))[:units]
    left = [e for e in split.examples if e.record.unit not in names]
    return Deletion(
        run=run,
        request=DeletionRequest(id=request, created="now", run=run.path.name, kind="subject", names=names),
        forget=[e for e in split.training if e.record.unit in names],
        others=[],
        retain=[e for e in left if e.included],
        never=[e for e in left if e.role == "candidate" and not e.included],
        validation=[e for e in left if e.role == "validation"],
        left=replace(split, examples=left),
    )


@torch.no_grad()
def alone(model: Any, ids: np.ndarray, target: np.ndarray) -> tuple[float, np.ndarray]:
    """The mean loss of the targets of one record, and whether each is the likeliest: no batch, no window."""
    with model.active() as module:
        logits = module(input_ids=torch.from_numpy(ids.astype(np.int64))[None]).logits[0].double()
    log_p = torch.log_softmax(logits[:-1], -1)
    after = torch.from_numpy(ids[1:].astype(np.int64))
    scored = torch.from_numpy(target[1:].copy())
    loss = -log_p.gather(1, after[:, None])[:, 0][scored].mean().item()
    return loss, (log_p.argmax(1) == after)[scored].numpy()


@torch.no_grad()
def greedily(model: Any, prefix: np.ndarray, length: int, end: int | None) -> np.ndarray:
    """The tokens that one forward pass after the other puts after `prefix`, up to the end token."""
    ids = torch.from_numpy(prefix.astype(np.int64))[None]
    made: list[int] = []
    with model.active() as module:
        while len(made) < length and not (made and made[-1] == end):
            made.append(int(module(input_ids=ids).logits[0, -1].argmax()))
            ids = torch.cat([ids, torch.tensor([[made[-1]]])], dim=1)
    return np.array(made, dtype=np.int32)


def rouge_recall(made: str, true: str) -> float:
    """The share of the words of `true` that come in their order in `made`, by the textbook table."""
    import re

    a, b = (re.findall(r"[a-z0-9]+", text.lower()) for text in (made, true))
    table = [[0] * (len(b) + 1) for _ in range(len(a) + 1)]
    for i, x in enumerate(a):
        for j, y in enumerate(b):
            table[i + 1][j + 1] = table[i][j] + 1 if x == y else max(table[i][j + 1], table[i + 1][j])
    return table[-1][-1] / len(b) if b else 0.0
