"""Changes that must not change a score, and changes that must: every attack, on a real model, through a whole audit.

One small run is audited by every attack there is, some of whose records are written down twice; then again with
everything stored thrown away and another batch size. What an attack has declared is what it gets, so a new
attack needs no new test here.
"""

import json
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from attack_checks import STATISTICS, given, synthetic

from sordino import collect as collecting
from sordino.attacks.base import discover
from sordino.audit.flow import audit
from sordino.config import load
from sordino.model import save
from sordino.reduction import token_statistics
from sordino.results import InputPlan
from sordino.stats import auc, bootstrap, delong
from sordino.train.flow import fine_tune

ATTACKS = {n: a for n, a in discover("membership").items() if a.run.__module__.startswith("sordino.")}
INPUTS = InputPlan(shadows=2, known=40, neighbours=2, shots=2, samples=2)
WORDS = (
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "juniper", "kelp", "larch",
    "maple", "nutmeg", "onyx", "poplar", "quartz", "reed", "sorrel", "thyme", "umber", "violet", "willow", "yarrow",
)  # fmt: skip


def rows() -> list[dict[str, str]]:
    """Records of different lengths, by units of two; some are also somebody else's, word for word."""
    rng, made = np.random.default_rng(3), []
    for unit in range(64):
        texts = [" ".join(rng.choice(WORDS, rng.integers(6, 16))).capitalize() + "." for _ in range(2)]
        made += [{"id": f"r{unit}-{k}", "text": text, "who": f"u{unit}"} for k, text in enumerate(texts)]
        if unit % 5 == 0:
            made.append({"id": f"r{unit}-2", "text": texts[0], "who": f"other{unit}"})
    return [row | {"less": row["text"][::-1]} for row in made]


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A small model that has learned half of the records."""
    folder = tmp_path_factory.mktemp("metamorphic")
    save(make_model("llama", seed=3, context=128), folder / "base")
    (folder / "data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows()))
    values = {
        "model": {"path": str(folder / "base"), "device": "cpu"},
        "data": {"path": str(folder / "data.jsonl"), "text": "text", "id": "id", "unit": "who", "rejected": "less"},
        "out": str(folder / "runs"),
        "method": {"rank": 4},
        "split": {"candidates": 0.6, "validation": 0.25},
        "train": {"epochs": 4, "learning_rate": 2e-2, "batch_size": 8, "max_length": 64},
        "canaries": {"per_level": 0},
        "audit": {
            "shuffles": 99,
            "generated": {"texts": 2, "tokens": 8},
            "soft_prompt": {"steps": 4, "records": 8},
            "near_bound": {"records": 4, "beam": 2},
        },
    }
    return fine_tune(load(values=values, environment={}))


def audited(run) -> tuple[dict[str, np.ndarray], np.ndarray, object]:
    """Every attack's score of each record, who is a member, and the report."""
    report = audit(run, suite="all", inputs=INPUTS)
    rows = json.loads((run.private / "scores.json").read_text())
    scores = {name: np.array(values, dtype=float) for name, values in rows["scores"].items()}
    return scores, np.array(rows["member"], dtype=bool), report


@pytest.fixture(scope="module")
def first(run):
    """The first audit."""
    return audited(run)


@pytest.fixture(scope="module")
def second(run, first):
    """The same audit from nothing, in batches of another size."""
    for name in ("signals", "shadows"):
        shutil.rmtree(run.private / name, ignore_errors=True)
    before = dict(collecting.BATCH_TOKENS)
    collecting.BATCH_TOKENS["cpu"] = 96
    try:
        return audited(run)
    finally:
        collecting.BATCH_TOKENS.update(before)


def scored(first, name):
    """The scores of an attack, or a skip that says what it lacked."""
    scores, member, report = first
    if name not in scores:
        lacked = [text for text in report.untested if text.startswith(f"The attack {name}:")]
        # Nothing is left out in silence; what is left out here is what this run cannot have.
        on_the_set = ATTACKS[name].level == "dataset"
        assert lacked or on_the_set or "causal-lm" not in ATTACKS[name].tasks
        pytest.skip("; ".join(lacked) or "scores the whole set, or classifiers")
    return scores[name], member


@pytest.mark.parametrize("name", ATTACKS)
def test_batches_and_padding_change_nothing(first, second, name):
    found, _ = scored(first, name)
    again, _ = scored(second, name)
    np.testing.assert_allclose(again, found, rtol=1e-4, atol=1e-5 * max(1.0, float(np.abs(found).max())))


@pytest.mark.parametrize("name", ATTACKS)
def test_the_same_text_has_the_same_score(run, first, name):
    from sordino.records.store import load as load_split

    found, _ = scored(first, name)
    if ATTACKS[name].level == "unit":
        pytest.skip("scores units, and these texts belong to two")
    texts: dict[str, list[int]] = {}
    for place, example in enumerate(load_split(run.records).candidates):
        texts.setdefault(example.record.messages[0].content, []).append(place)
    twins = [places for places in texts.values() if len(places) > 1]
    assert len(twins) > 3
    for a, *others in twins:
        np.testing.assert_allclose(found[others], found[a], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ATTACKS)
def test_swapped_labels_turn_the_auc_around_and_intervals_hold_the_estimate(first, name):
    found, member = scored(first, name)
    assert auc(found, ~member) == pytest.approx(1 - auc(found, member), abs=1e-12)
    interval = delong(found, member, scale="logit")
    assert interval.low <= interval.value <= interval.high
    resampled = bootstrap(
        np.arange(len(found)), lambda i: auc(found[i.astype(int)], member[i.astype(int)]), resamples=199
    )
    assert resampled.low <= resampled.value <= resampled.high
    assert resampled.value == pytest.approx(auc(found, member), abs=1e-12)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_untuned_model_gives_nothing_away(first, name):
    scored(first, name)
    attempt = next(a for a in first[2].attempts if a.name == name)
    control = attempt.control["auc"]
    # Four standard errors of coins that tell nothing, half of them in.
    assert abs(control.value - 0.5) < 4 * np.sqrt((attempt.coins + 1) / (3 * attempt.coins**2))


@cache
def with_logits_moved(by: float):
    """Signals whose statistics are what our reduction finds in logits that give them, with a constant added."""
    signals = synthetic(1.0)

    def moved(statistics):
        rng = np.random.default_rng(0)
        n = len(statistics.token)
        logits = torch.from_numpy(rng.normal(size=(n, 24))) + by
        found = token_statistics(logits, torch.from_numpy(statistics.token.astype(np.int64)))
        columns = {k: v.numpy() for k, v in zip(STATISTICS, found, strict=True)}
        whole = {k: columns[k].astype(np.int32) for k in ("rank", "top")}
        return replace(statistics, **{**columns, **whole})

    views = {k: replace(v, statistics=moved(v.statistics)) for k, v in signals.views.items()}
    return replace(signals, statistics=moved(signals.statistics), views=views)


@pytest.mark.parametrize(
    "name", [n for n, a in ATTACKS.items() if not a.inputs or a.inputs <= {"units", "shadows", "known"}]
)
def test_a_constant_added_to_the_logits_changes_nothing(name):
    moved, kept = (ATTACKS[name](given(with_logits_moved(by), ATTACKS[name])) for by in (3.7, 0.0))
    np.testing.assert_allclose(moved, kept, rtol=1e-5, atol=1e-5)


@pytest.fixture(scope="module")
def head_only(tmp_path_factory, run):
    """A run whose only adapter is on the language-model head."""
    folder = tmp_path_factory.mktemp("head")
    source = Path(run.card.config["data"]["path"])
    values = {
        "model": dict(run.card.config["model"]),
        "data": {"path": str(source), "text": "text", "id": "id", "unit": "who"},
        "out": str(folder / "runs"),
        "method": {"rank": 4, "targets": ["lm_head"]},
        "split": {"candidates": 0.6, "validation": 0.25},
        "train": {"epochs": 2, "learning_rate": 1e-2, "batch_size": 8, "max_length": 64},
        "canaries": {"per_level": 0},
        "audit": {"shuffles": 99},
    }
    return _made(fine_tune(load(values=values, environment={})))


def _made(trained):
    """Attempts of attacks that need one pass at most."""
    names = [n for n, a in ATTACKS.items() if a.suite == "quick" and "causal-lm" in a.tasks and a.level == "record"]
    report = audit(trained, attacks=[n for n in names if not a_text(n)])
    return {a.name: a for a in report.attempts}


def a_text(name: str) -> bool:
    """Whether an attack needs text that a server writes."""
    return "samples" in ATTACKS[name].needs | ATTACKS[name].inputs


@pytest.mark.parametrize("name", [n for n, a in ATTACKS.items() if a.suite == "quick" and a.level == "record"])
def test_an_adapter_on_the_head_is_seen(head_only, name):
    if name not in head_only:
        pytest.skip("scores classifiers, or text")
    attempt = head_only[name]
    # The scores of the tuned and of the untuned model have the same curve only where they are the same.
    assert attempt.roc != attempt.control_roc


def test_every_attack_was_tried(first):
    made = {a.name for a in first[2].attempts}
    lacked = {text.split()[2].rstrip(":") for text in first[2].untested if text.startswith("The attack ")}
    for name, attack in ATTACKS.items():
        if "causal-lm" in attack.tasks:
            assert name in made | lacked, f"{name} was left out in silence"
