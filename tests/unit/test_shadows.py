"""Shadow models: fair coins, training as the target's, nothing computed twice, and what they are good for."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from scipy.stats import binomtest

from sordino.audit.flow import audit
from sordino.config import DPConfig, load
from sordino.errors import AuditError
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.results import InputPlan
from sordino.signals import Shadows
from sordino.train import shadows
from sordino.train.flow import fine_tune
from sordino.train.shadows import ShadowPlan, draw, together, train_shadows

SILENT = lambda name, total: lambda done: None  # noqa: E731 - a named default reads better than a def
PLAN = ShadowPlan(count=4, kind="same", seed=9)
WORDS = (
    "amber", "basil", "cedar", "delta", "ember", "fjord", "grove", "hazel", "inlet", "juniper", "kelp", "larch",
    "maple", "nutmeg", "onyx", "poplar",
)  # fmt: skip


def records(count=70):
    """Short texts that share words but no sentence."""
    rng = np.random.default_rng(5)
    return ["text"] + [" ".join(rng.choice(WORDS, 8)) for _ in range(count)]


@pytest.fixture(scope="module", params=["full", "lora"])
def target(request, make_model, tmp_path_factory):
    """A run of a random model on made-up texts, tuned by heart."""
    folder = tmp_path_factory.mktemp(request.param)
    save(make_model("llama", seed=3), folder / "base")
    (folder / "data.csv").write_text("\n".join(records()) + "\n")
    values = {
        "model": {"path": str(folder / "base"), "device": "cpu"},
        "data": {"path": str(folder / "data.csv")},
        "out": str(folder / "runs"),
        "method": {"kind": request.param},
        "split": {"candidates": 0.6, "validation": 0.3, "near_duplicates": 0},
        "train": {"epochs": 8, "learning_rate": 1e-2 if request.param == "full" else 2e-2, "batch_size": 8},
        "canaries": {"per_level": 0},
        "audit": {"shuffles": 99},
    }
    return fine_tune(load(values=values, environment={}))


def test_coins_are_fair_one_a_group_and_follow_from_the_seed():
    groups = [f"g{i // 2}" for i in range(2000)]
    drawn = draw(groups, 16, 3)
    assert drawn.shape == (16, 2000)
    np.testing.assert_array_equal(drawn[:, ::2], drawn[:, 1::2])
    assert binomtest(int(drawn[:, ::2].sum()), 16000).pvalue > 1e-3
    assert binomtest(int((drawn[0, ::2] == drawn[1, ::2]).sum()), 1000).pvalue > 1e-3
    np.testing.assert_array_equal(draw(groups, 16, 3), drawn)
    assert (draw(groups, 16, 4) != drawn).any()


def tokens_of(run):
    """The candidates of a run as the audit reads them."""
    from sordino.audit.subjects import Trained

    split = load_split(run.records)
    return split, [Trained(run).load_serializer().encode(e.record) for e in split.candidates]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Made:
    """Four shadows of a target, the order in which single ones were trained (-1: broken off), and their task."""

    shadows: Shadows
    order: list[int]
    task: Any


@pytest.fixture(scope="module")
def made(target):
    """Shadows whose training is broken off after two and taken up again, where they are trained one by one."""
    split, tokens = tokens_of(target)
    config = load(values=dict(target.card.config), environment={})
    order, tasks, real = [], [], shadows._alone

    def counted(task, folder, number):
        if order == [0, 1]:
            order.append(-1)
            raise KeyboardInterrupt
        order.append(number)
        tasks.append(task)
        return real(task, folder, number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shadows, "_alone", counted)
        if together(config):
            return Made(shadows=train_shadows(target, config, split, tokens, PLAN, SILENT), order=order, task=None)
        with pytest.raises(KeyboardInterrupt):
            train_shadows(target, config, split, tokens, PLAN, SILENT)
        return Made(shadows=train_shadows(target, config, split, tokens, PLAN, SILENT), order=order, task=tasks[-1])


def test_shadows_know_what_they_were_trained_on_and_are_asked_once(target, made):
    split, tokens = tokens_of(target)
    config = load(values=dict(target.card.config), environment={})
    found = made.shadows
    assert found.nll.shape == found.included.shape == (4, len(tokens))
    # What a shadow was trained on it knows better than the others do, record by record.
    told = found.included.any(axis=0) & ~found.included.all(axis=0)
    inside = np.array([found.nll[found.included[:, i], i].mean() for i in np.flatnonzero(told)])
    outside = np.array([found.nll[~found.included[:, i], i].mean() for i in np.flatnonzero(told)])
    assert np.mean(inside < outside) > 0.9
    asked = []
    again = train_shadows(target, config, split, tokens, PLAN, lambda name, total: asked.append(name) or print)
    np.testing.assert_array_equal(again.nll, found.nll)
    assert asked == []
    assert not list((target.private / "shadows").glob("*/*"))
    assert not list(target.private.glob("shadows/*/runs"))


def test_a_queue_that_is_interrupted_goes_on_and_ends_the_same(target, made, monkeypatch, tmp_path):
    if target.card.config["method"]["kind"] != "full":
        pytest.skip("adapters are trained together: their resumption is tested with the joint trainer")
    assert made.order == [0, 1, -1, 2, 3]
    np.testing.assert_array_equal(shadows._alone(made.task, tmp_path, 2), made.shadows.nll[2])
    # Another seed is another queue, of which nothing has been trained yet.
    split, tokens = tokens_of(target)
    config, trained = load(values=dict(target.card.config), environment={}), []
    monkeypatch.setattr(shadows, "_alone", lambda *a: trained.append(a[2]) or np.zeros(len(tokens)))
    other = train_shadows(target, config, split, tokens, dataclasses.replace(PLAN, seed=11), SILENT)
    assert trained == [0, 1, 2, 3] and (other.included != made.shadows.included).any()


def test_adapters_in_place_of_full_weights_are_called_an_approximation(target):
    config = load(values=dict(target.card.config), environment={})
    same, lora = (ShadowPlan(count=2, kind=kind, seed=0) for kind in ("same", "lora"))
    full = config.method.kind == "full"
    assert ("approximation" in lora.how(config)) == full
    assert "approximation" not in same.how(config)
    assert together(lora.configured(config))
    assert together(same.configured(config)) == (not full)
    assert (lora.configured(config).train.learning_rate > config.train.learning_rate) == full


def test_an_audit_with_shadows_finds_more_than_one_without(target):
    if target.card.config["method"]["kind"] == "full":
        pytest.skip("the attacks read the same numbers, and a queue of shadows takes longer")
    names = ["lira", "lira_offline", "rmia", "rmia_offline", "rmia_ratio", "loss"]
    report = audit(target, attacks=names, inputs=InputPlan(shadows=8))
    found = {a.name: a.estimates["auc"].value for a in report.attempts if a.name in names}
    assert set(found) == set(names)
    assert max(found["lira"], found["rmia_ratio"]) > max(0.8, found["loss"] - 0.02)
    assert not any("shadow" in text for text in report.untested)
    lira = next(a for a in report.attempts if a.name == "lira")
    assert 0.2 < lira.control["auc"].value < 0.8
    assert any("8 models trained as the target was" in note for note in lira.notes)
    forwards = [e for e in (target.path / "events.jsonl").read_text().splitlines() if '"audited"' in e]
    audit(target, attacks=names, inputs=InputPlan(shadows=8))
    again = [e for e in (target.path / "events.jsonl").read_text().splitlines() if '"audited"' in e]
    assert '"forwards": 0' in again[len(forwards)]


def test_what_cannot_be_made_is_refused_by_name(target):
    with pytest.raises(AuditError, match=r"'user_inference' cannot be carried out here: it needs units of several"):
        audit(target, attacks=["user_inference"])
    with pytest.raises(AuditError, match="at least 2 shadow models, not 1"):
        audit(target, attacks=["lira"], inputs=InputPlan(shadows=1))
    with pytest.raises(AuditError, match="at least 20 records known not to be trained on, not 3"):
        audit(target, attacks=["rmia"], inputs=InputPlan(known=3))


def test_shadows_of_a_private_run_are_private(target):
    config = load(values=dict(target.card.config), environment={})
    if config.method.kind == "full":
        pytest.skip("a queue trains private shadows as any private run is trained")
    split, tokens = tokens_of(target)
    private = dataclasses.replace(config, dp=DPConfig(noise_multiplier=20.0, unit="record"))
    assert together(private)
    made = train_shadows(target, private, split, tokens, ShadowPlan(count=4, kind="same", seed=9), SILENT)
    assert np.isfinite(made.nll).all()
    told = np.flatnonzero(made.included.any(axis=0) & ~made.included.all(axis=0))
    better = [made.nll[made.included[:, i], i].mean() < made.nll[~made.included[:, i], i].mean() for i in told]
    # Without noise more than 90 of 100 records are known better by the shadows that were trained on them.
    assert 0.25 < np.mean(better) < 0.75
