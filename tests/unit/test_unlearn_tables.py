"""The tables of benchmarks/unlearning.py, from results made up."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from audit_fixtures import figure

from sordino.results import Robustness, Scores
from sordino.unlearn.measuring.measures import auc_against, leak_against
from sordino.unlearn.measuring.tofu import TOFU_SETS, Tofu


@pytest.fixture
def rows(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "benchmarks"))
    import unlearning_rows

    yield unlearning_rows
    for name in ("unlearning_rows", "page"):
        sys.modules.pop(name, None)


def result(seed, shift):
    rng = np.random.default_rng([seed, shift < 0])

    def columns(first, mean):
        subject = tuple(float(first + i // 5) for i in range(20))
        named = {name: tuple(rng.uniform(size=20)) for name in ("extraction_strength", "exact_memorisation")}
        loss, base = tuple(rng.normal(mean, 0.3, 20)), tuple(rng.normal(3, 0.3, 20))
        return {"subject": subject, "loss": loss, "base_loss": base, "tokens": (9.0,) * 20, **named}

    scores = Scores(
        model="m",
        forget=columns(0, 2 + shift),
        never=columns(4, 2.0),
        retain=columns(8, 1.0),
        validation=columns(12, 2.0),
    )
    tofu = Tofu(
        model="m",
        sets={
            of: {
                "subject": tuple(float(i // 2) for i in range(8)),
                **{f: tuple(rng.uniform(size=8)) for f in ("probability", "rouge_l", "truth_ratio")},
            }
            for of in TOFU_SETS
        },
    )
    found = {"relearning": asdict(Robustness(name="relearning", what="-", estimate=figure(0.2, 0.1, 0.3)))}
    muse = {f"{n}_{s}": asdict(figure(0.25, 0.2, 0.3)) for n in ("verbatim", "knowledge") for s in ("forget", "retain")}
    found |= {"quantised": {"missing": "torchao is not installed."}, "two_checkpoints": {"missing": "-"}}
    made = {
        "tofu": asdict(tofu), "scores": asdict(scores), "settings": {"learning_rate": 0.5},
        "muse": muse, "robustness": found,
        "cost": {"tokens": 45 if shift else 120, "forwards": 45 if shift else 0, "share": None},
        "cpu_seconds": {"forgetting": 10.0 * (1 + seed)},
        "counts": {"forget": 20, "never": 20, "retain": 20, "validation": 20},
    }  # fmt: skip
    return json.loads(json.dumps(made))


def test_a_line_a_method_against_training_anew_of_the_same_seed(rows):
    made = {
        ("forget01", "lora", m, s): result(s, 0.0 if m == "retrain" else -1.0)
        for m in ("retrain", "npo")
        for s in (0, 1)
    }
    del made["forget01", "lora", "npo", 1]
    text = rows.tables(made, {"lora": ("retrain", "npo", "rmu"), "full": ("retrain",)}, [0, 1])
    [npo, *_] = [line for line in text.splitlines() if line.startswith("| npo (1 of 2 seeds) |")]
    judged = rows.Judged(made["forget01", "lora", "npo", 0], rows.Judged(made["forget01", "lora", "retrain", 0], None))
    leak = leak_against(judged.scores, judged.retrained.scores)
    area = auc_against(judged.scores)
    assert f"{area.value:.3g} [{area.low:.3g}, {area.high:.3g}]" in npo and f"{leak.value:.3g} [" in npo
    assert f"{judged.quality:.2g} (" in npo and judged.quality < 1 and leak.value < 0
    assert text.count("| rmu | not run |") == 2 and text.count("Not run.") == 3
    assert "- quantised: torchao is not installed." in text and "npo: learning_rate 0.5" in text
    kept = [line for line in text.splitlines() if line.startswith("| npo")][1]
    assert kept.endswith("| 0.2 [0.1, 0.3] | – | – | 50 | 100 |")
    blocks = [line.count("|") for line in text.splitlines() if line.startswith("|")]
    assert set(blocks) == {len(rows.FORGETTING) + 2, len(rows.KEEPING) + 2}
