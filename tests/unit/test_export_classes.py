"""Exported classifiers: the code on their card loads them, and they tell classes as the run does."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
import transformers
from classifier_fixtures import CLASSES, bert_tokenizer, write_bert, write_corpus, write_decoder
from report_fixture import report as audit_report

from sordino import export as export_module
from sordino.classifier import Classes, class_logits
from sordino.config import load
from sordino.errors import ConfigError, ModelError
from sordino.export import export
from sordino.model import restore
from sordino.run import Run
from sordino.train.flow import fine_tune

# PEFT uses names that transformers renames.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
IDS = torch.arange(5, 17)[None]


@pytest.fixture(scope="module")
def make_run(make_model, tmp_path_factory):
    """`(trunk, **method)` -> a run of a small classifier trained by that method."""

    def make(trunk: str, /, **method) -> Run:
        folder = tmp_path_factory.mktemp("export")
        if trunk == "bare":
            shape = transformers.AutoConfig.from_pretrained(write_bert(folder / "base"))
            transformers.BertModel(shape, add_pooling_layer=False).save_pretrained(folder / "base")
            bert_tokenizer().save_pretrained(folder / "base")
        elif trunk == "bert":
            write_bert(folder / "base")
        else:
            write_decoder(folder / "base", make_model, trunk)
        write_corpus(folder / "tickets.csv", 60)
        values = {
            "task": "classification", "out": str(folder / "runs"), "seed": 3, "method": method,
            "data": {"path": str(folder / "tickets.csv"), "text": "body", "label": "category"},
            "model": {"path": str(folder / "base"), "device": "cpu"}, "split": {"near_duplicates": 0},
            "train": {"epochs": 1, "learning_rate": 0.02},
        }  # fmt: skip
        return fine_tune(load(values=values, environment={}))

    return make


@pytest.fixture(scope="module")
def lora(make_run) -> Run:
    return make_run("llama", rank=4)


def wanted(run: Run) -> torch.Tensor:
    config = load(values=json.loads((run.path / "run.json").read_text())["config"], environment={})
    model = restore(config.model, config.method, run.weights, Classes(labels=CLASSES, seed=3))
    with model.active() as module:
        return class_logits(module, IDS, torch.ones_like(IDS)).clone()


def run_card(out: Path) -> torch.Tensor:
    """The class logits of the model that the code on the card in `out` loads."""
    text = (out / "README.md").read_text()
    code = text.partition("```python\n")[2].partition("```")[0].replace("FOLDER", str(out))
    names: dict = {}
    exec(code, names)
    assert names["tokenizer"]("kana")["input_ids"]
    assert names["model"].config.id2label == dict(enumerate(CLASSES))
    with torch.no_grad():
        return names["model"].eval()(input_ids=IDS, attention_mask=torch.ones_like(IDS)).logits


@pytest.mark.parametrize(
    ("kind", "method"),
    [
        ("llama", {"rank": 4}),
        ("bert", {"rank": 4}),
        ("bert", {"kind": "full"}),
        ("bert", {"kind": "head"}),
        ("gpt2", {"kind": "bitfit"}),
        ("bert", {"kind": "ia3"}),
        ("gpt2", {"kind": "prefix", "virtual_tokens": 4}),
        ("bert", {"kind": "prompt", "virtual_tokens": 4}),
    ],
)
def test_the_code_on_the_card_loads_the_same_classifier(make_run, tmp_path, kind, method):
    run = make_run(kind, **method)
    out = export(run, tmp_path / "out")
    found = run_card(out)
    torch.testing.assert_close(found, wanted(run), rtol=1e-5, atol=1e-6)
    text = (out / "README.md").read_text()
    assert "pipeline_tag: text-classification" in text
    assert f"| Accuracy on validation records | {run.card.training['accuracy']:.3f} |" in text
    assert "Target tokens" not in text and "CausalLM" not in text


@pytest.mark.parametrize("kind", ["lora", "ia3"])
def test_a_merged_classifier_is_a_whole_one_with_the_tuned_head(lora, make_run, tmp_path, kind):
    run = lora if kind == "lora" else make_run("bert", kind="ia3")
    out = export(run, tmp_path / "out", merge=True)
    assert not (out / "adapter_config.json").exists()
    torch.testing.assert_close(run_card(out), wanted(run), rtol=1e-4, atol=1e-5)


def test_prompts_cannot_be_merged_and_adapters_are_no_known_architecture(make_run, tmp_path):
    with pytest.raises(ConfigError, match="The adapter is prefix tuning"):
        export(make_run("llama", kind="prefix", virtual_tokens=4), tmp_path / "out", merge=True)
    with pytest.raises(ModelError, match="Leaving out what the method added"):
        export(make_run("bert", kind="adapters", bottleneck=8), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["bert", "bare"])
def test_on_a_hub_model_the_base_goes_along_only_where_layers_were_drawn(make_run, tmp_path, monkeypatch, kind):
    run = make_run(kind, rank=2)
    monkeypatch.setattr(export_module, "_is_hub", lambda config: True)
    out = export(run, tmp_path / "out")
    # What lacks its pooling layer would be given another one by everybody who loads it.
    assert (out / "base").exists() == (kind == "bare")
    torch.testing.assert_close(run_card(out), wanted(run), rtol=1e-5, atol=1e-6)


def test_the_card_of_an_audited_classifier_speaks_of_no_text(lora, tmp_path):
    found = audit_report("leaks")
    provenance = {**found.provenance, "model.weights": lora.card.model["weights"]}
    lora.write_audit(dataclasses.replace(found, provenance=provenance, metrics={}, canaries=(), task="classification"))
    text = (export(lora, tmp_path / "out") / "README.md").read_text()
    (lora.path / "audit.json").unlink()
    assert "erplexity" not in text and "reading it back" not in text and "### Planted canaries" not in text
    assert "**Leaks.**" in text
