"""A classifier from its file of records to its report: one configuration key away from a language model."""

import io
import json
import re

import pytest
from classifier_fixtures import CLASSES, write_bert, write_corpus, write_decoder

from sordino.audit.flow import audit
from sordino.cli import _run
from sordino.config import load
from sordino.errors import AuditError, ConfigError, DataError
from sordino.report import render_table, write_report
from sordino.run import Run
from sordino.train.flow import create, fine_tune, plan_of, prepare, train_run


@pytest.fixture(scope="module")
def models(tmp_path_factory, make_model):
    root = tmp_path_factory.mktemp("models")
    return {"bert": write_bert(root / "bert"), "llama": write_decoder(root / "llama", make_model, "llama")}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("data") / "tickets.csv"
    write_corpus(path, noise=0.4)
    return path


def config_for(path, out, model, **sections):
    values = {
        "task": "classification", "out": str(out),
        "data": {"path": str(path), "text": "body", "label": "category"},
        "model": {"path": str(model), "device": "cpu"},
        "split": {"candidates": 0.8, "validation": 0.1, "near_duplicates": 0},
        "audit": {"shuffles": 199},
    }  # fmt: skip
    return load(values={**values, **sections}, environment={})


@pytest.fixture(scope="module", params=["bert", "llama"])
def overfitted(request, models, corpus, tmp_path_factory):
    """A run that has learned its noisy labels by heart, and its audit."""
    train = {"epochs": 25, "batch_size": 16, "learning_rate": 5e-3, "validate_every": 20, "checkpoint_every": 1000}
    config = config_for(
        corpus, tmp_path_factory.mktemp("runs"), models[request.param], method={"kind": "full"}, train=train
    )
    run = fine_tune(config)
    return run, audit(run)


def test_training_lowers_the_loss_and_says_how_many_are_right(overfitted):
    run, _ = overfitted
    lines = [json.loads(line) for line in (run.private / "losses.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    assert losses[0] == pytest.approx(1.1, abs=0.5)  # ln 3: the head has not learned anything yet
    validated = [line for line in lines if "validation" in line]
    assert all(0 <= line["accuracy"] <= 1 for line in validated)
    assert run.card.training["accuracy"] == validated[-1]["accuracy"]
    assert run.card.data["labels"] == list(CLASSES)


def test_what_is_known_by_heart_is_found_and_the_untuned_model_tells_nothing(overfitted):
    _, report = overfitted
    names = {a.name for a in report.attempts}
    assert names == {"correctness", "dataset_inference", "loss", "modified_entropy", "reference", "reference_ratio"}
    for attempt in report.attempts:
        if attempt.name in ("loss", "modified_entropy"):
            assert attempt.estimates["auc"].value > 0.6
            assert attempt.p_value < 0.05
        control = attempt.control["auc"]
        assert control.low <= 0.5 <= control.high
    assert report.verdict.state == "leaks"


def test_the_gap_attack_is_the_gap(overfitted):
    run, report = overfitted
    scores = json.loads((run.private / "scores.json").read_text())
    right = scores["scores"]["correctness"]
    inside = [r for r, m in zip(right, scores["member"], strict=True) if m]
    outside = [r for r, m in zip(right, scores["member"], strict=True) if not m]
    gap = sum(inside) / len(inside) - sum(outside) / len(outside)
    [found] = [a for a in report.attempts if a.name == "correctness"]
    assert found.estimates["auc"].value == pytest.approx(0.5 + gap / 2)


def test_utility_is_accuracy_and_loss_of_both_models(overfitted):
    run, report = overfitted
    assert set(report.utility) == {"accuracy", "loss", "base_accuracy", "base_loss"}
    # Measured in another pass, by other code, at the end of training.
    assert report.utility["accuracy"].value == pytest.approx(run.card.training["accuracy"])
    assert report.utility["loss"].value == pytest.approx(run.card.training["validation"], rel=1e-4)
    assert report.utility["base_loss"].value == pytest.approx(1.1, abs=0.5)
    assert {f"utility.{name}" for name in report.utility} <= set(report.metrics)
    assert "accuracy" in " ".join(claim.evidence for claim in report.claims)


def test_the_canary_gate_is_not_judged(overfitted):
    run, report = overfitted
    [gate] = [g for g in report.gates if g.name == "canaries"]
    assert gate.passed is None
    assert run.card.data["counts"]["canaries"] == 0
    assert "no-canaries" in {n.kind for n in report.notices}


def test_the_report_speaks_of_a_classifier(overfitted):
    from rich.console import Console

    run, report = overfitted
    page = write_report(run).read_text(encoding="utf-8")
    output = io.StringIO()
    Console(width=200, file=output).print(render_table(report))
    shown = output.getvalue()
    for text in (page.partition("</style>")[2], shown):
        for wrong in ("erplexity", "word for word", "generated text", "read them back", "reading it back", "exposure"):
            assert wrong not in text
    assert "Held-out accuracy" in page
    assert "modified_entropy" in shown
    [left_out] = re.findall(r"Scores over the tokens of a text \(([^)]*)\)", " ".join(shown.split()))
    assert {"error_zone", "lowercase", "min_k"} <= set(left_out.split(", "))
    assert "loss" not in left_out.split(", ")


def test_a_second_audit_runs_no_model(overfitted):
    run, report = overfitted
    again = audit(run)
    assert again.metrics == report.metrics
    assert json.loads((run.path / "events.jsonl").read_text().splitlines()[-1])["forwards"] == 0


def test_attacks_that_read_tokens_are_refused(overfitted):
    run, _ = overfitted
    with pytest.raises(AuditError, match=r"'zlib' means nothing for a model of the task classification\. .*loss"):
        audit(run, attacks=["zlib"])
    with pytest.raises(ConfigError, match=r"No audit figure is called 'utility\.perplexity'"):
        audit(run, require=["utility.perplexity <= 10"])
    report = audit(run, require=["utility.accuracy >= 0.01"], attacks=["loss"])
    assert report.requirements[0].status == "met"


def test_an_interrupted_run_goes_on_bit_for_bit(models, corpus, tmp_path):
    train = {"epochs": 2, "batch_size": 16, "accumulation": 2, "checkpoint_every": 3, "learning_rate": 1e-3}
    config = config_for(corpus, tmp_path, models["bert"], method={"kind": "lora", "dropout": 0.1}, train=train)
    whole = fine_tune(config)

    def stop(progress, steps):
        if progress.step == 8:
            raise KeyboardInterrupt

    broken = create(config, prepare(config))
    with pytest.raises(KeyboardInterrupt):
        train_run(broken, monitor=stop)
    resumed = train_run(Run.open(broken.path))
    assert resumed.card.model["weights"] == whole.card.model["weights"]
    logs = [(run.private / "losses.jsonl").read_bytes() for run in (whole, resumed)]
    assert logs[0] == logs[1]
    # The untuned model is the adapter and the tuned head switched off: the audit checks its digest.
    report = audit(resumed, attacks=["loss"])
    assert set(report.utility) == {"accuracy", "loss", "base_accuracy", "base_loss"}


def test_classes_do_not_depend_on_the_coins(models, tmp_path):
    path = tmp_path / "x.csv"
    write_corpus(path, 90)
    with path.open("a") as file:
        file.write("a text of its own,rare\n")
    found = set()
    for seed in range(8):
        prepared = prepare(config_for(path, tmp_path, models["bert"], seed=seed))
        assert prepared.labels == (*CLASSES, "rare")
        found |= {n.message for n in prepared.notices if n.kind == "unseen-labels"}
    assert found == {"1 of 4 classes have no record that is trained on, e.g. 'rare'."}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([f"text number {i},same" for i in range(60)], "has one label only, 'same', in all 60 records"),
        ([f"text number {i},{i}" for i in range(60)], "has 60 different labels in 60 records"),
    ],
)
def test_columns_that_cannot_be_classes_are_refused(models, tmp_path, rows, says):
    path = tmp_path / "x.csv"
    path.write_text("\n".join(["body,category", *rows]))
    with pytest.raises(DataError, match=f"Column 'category' {says}"):
        prepare(config_for(path, tmp_path, models["bert"]))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"task": "classification", "data": {"path": "x.csv"}}, "no label column is named"),
        ({"data": {"path": "x.csv", "label": "c"}}, "data.label is 'c', but the task is causal-lm"),
        (
            {"task": "classification", "data": {"path": "x.csv", "label": "c"}, "train": {"too_long": "split"}},
            "the pieces of a text have no class of their own",
        ),
    ],
)
def test_configurations_that_cannot_be_meant(values, says):
    with pytest.raises(ConfigError, match=says):
        load(values=values, environment={})


def test_init_and_a_dry_run(models, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_corpus(tmp_path / "data.csv", 120)
    assert _run(["init", "data.csv", "--task", "classification"]) == 0
    assert "label: column 'category'" in capsys.readouterr().err
    config = load("run.yaml", environment={})
    assert (config.task, config.data.label, config.data.text) == ("classification", "category", "body")
    assert _run(["train", "run.yaml", "--model.path", str(models["bert"]), "--dry-run", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    assert (plan["classes"], plan["canaries"], plan["records"]) == (3, 0, 120)
    assert plan["tokens an epoch"] == 13 * plan["trained"]
    assert _run(["train", "run.yaml", "--audit.headline", "min_k", "--dry-run"]) == 2
    assert "means nothing for a model of the task classification" in capsys.readouterr().err


def test_init_without_a_usual_label_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data.csv").write_text("text,kind\nhello,a\nworld,b\n")
    assert _run(["init", "data.csv", "--task", "classification"]) == 0
    assert "label: no column is called label, category or intent" in capsys.readouterr().err


def test_a_plan_without_classes_has_none(corpus, tmp_path):
    config = load(values={"data": {"path": str(corpus), "text": "body"}, "out": str(tmp_path)}, environment={})
    prepared = prepare(config)
    assert prepared.labels == ()
    assert "classes" not in plan_of(config, prepared)
