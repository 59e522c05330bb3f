"""Runs for tests of deletions: records and cards as training leaves them, and weights that are any bytes."""

import dataclasses
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.config import RunConfig, load
from sordino.records import Example
from sordino.records import load as load_split
from sordino.records.store import save
from sordino.run import Run
from sordino.train.flow import create, prepare

WORDS = ("amber", "birch", "cedar", "delta", "ember", "fjord", "grove", "heath", "inlet", "jetty")


def text_of(number: int) -> str:
    """A text that is nearly like no other."""
    return " ".join(f"{WORDS[(number * k + k * k) % 10]}{(number * 7 + k) % 97}" for k in range(1, 13)) + f" n{number}"


def rows_of(units: int = 60, each: int = 2) -> list[dict[str, str]]:
    """`each` records for each of some customers."""
    return [
        {"text": text_of(number), "id": f"r{number}", "customer": f"c{number // each}"}
        for number in range(units * each)
    ]


def config_for(folder: Path, rows: list[dict[str, str]], **changes: Any) -> RunConfig:
    """A configuration to train on `rows`, in the runs folder `folder/runs`."""
    path = folder / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    values: dict[str, Any] = {
        "data": {"path": str(path), "text": "text", "id": "id", "unit": "customer"},
        "out": str(folder / "runs"),
        "split": {"candidates": 0.5, "validation": 0.1},
        "canaries": {"per_level": 8, "levels": [1], "share": 0.1},
        "seed": 5,
    }
    return load(values={**values, **changes}, environment={})


def finished(config: RunConfig, change: Callable[[Path], None] = lambda weights: None) -> Run:
    """A run as training would leave it, but for its weights, which are a few bytes."""
    run = create(config, prepare(config))
    run.weights.mkdir()
    (run.weights / "adapter_model.safetensors").write_bytes(b"weights")
    change(run.weights)
    card = run.card
    run.write_card(dataclasses.replace(card, status="trained", model={**card.model, "weights": "w0", "base": "b0"}))
    return run


def sides(run: Run) -> Mapping[str, list[str]]:
    """The customers of `run` by what their records are: trained on, held out by coin, validation."""
    split = load_split(run.records)
    found: dict[str, list[str]] = {}
    for name, examples in (
        ("trained", [e for e in split.training if e.role != "canary"]),
        ("never", split.nonmembers),
        ("validation", split.validation),
    ):
        found[name] = list(dict.fromkeys(e.record.unit for e in examples))
    return found


def rewrite(run: Run, examples: Sequence[Example]) -> None:
    """Put `examples` into the file of records of `run`, which may be the one they are read from."""
    other = run.records.with_name("other")
    save(dataclasses.replace(load_split(run.records), examples=tuple(examples)), other)
    other.replace(run.records)
