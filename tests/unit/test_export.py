"""Exported folders: what they hold, that they compute the same, and what their card may say."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from report_fixture import report as audit_report
from train_fixtures import fresh
from transformers import AutoModelForCausalLM, AutoTokenizer

from sordino import export as export_module
from sordino.config import RunConfig, load
from sordino.errors import ConfigError, ModelError, RunError
from sordino.export import export
from sordino.model import restore
from sordino.results import AuditReport, Notice
from sordino.run import Run
from sordino.train.flow import fine_tune

# PEFT uses names that transformers renames.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in v6:FutureWarning")
SECRET = "zibeline-04417"


def settings(folder: Path, **method) -> RunConfig:
    records = folder / "private-clients" / "tickets.jsonl"
    records.parent.mkdir()
    rows = [
        {"text": f"{SECRET} number {i} asks about {'abcdefgh'[i % 8] * (3 + i)}", "id": f"client-{i}"}
        for i in range(60)
    ]
    records.write_text("\n".join(map(json.dumps, rows)))
    return load(
        values={
            "data": {"path": str(records), "text": "text", "id": "id"}, "out": str(folder / "runs"),
            "model": {"path": str(folder / "secret-base"), "device": "cpu"},
            "split": {"near_duplicates": 0}, "canaries": {"per_level": 0}, "seed": 918273645,
            "method": method, "train": {"epochs": 1, "learning_rate": 0.01, "max_length": 32},
        },
        environment={},
    )  # fmt: skip


@pytest.fixture(scope="module")
def make_run(make_model, tmp_path_factory):
    """`(**method)` -> a run of a small Llama trained by that method."""

    def make(**method) -> Run:
        folder = tmp_path_factory.mktemp("export")
        model = make_model("llama")
        model.module.save_pretrained(folder / "secret-base")
        model.tokenizer.save_pretrained(folder / "secret-base")
        return fine_tune(settings(folder, **method))

    return make


@pytest.fixture(scope="module")
def lora(make_run) -> Run:
    return make_run(kind="lora", rank=4)


@pytest.fixture(scope="module")
def full(make_run) -> Run:
    return make_run(kind="full")


def logits(module) -> torch.Tensor:
    with torch.no_grad():
        return module.eval()(input_ids=torch.arange(3, 23)[None]).logits


def wanted(run: Run) -> torch.Tensor:
    config = load(values=json.loads((run.path / "run.json").read_text())["config"], environment={})
    return logits(restore(config.model, config.method, run.weights).module)


def with_audit(run: Run, state: str = "leaks") -> AuditReport:
    found = audit_report(state)
    provenance = {**found.provenance, "model.weights": run.card.model["weights"]}
    made = replace(found, provenance=provenance, metrics={})
    run.write_audit(made)
    return made


def test_a_full_model_is_the_same_from_its_folder_alone(full, tmp_path):
    export(full, tmp_path / "out")
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "out")), wanted(full))
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    assert tokenizer("a ticket")["input_ids"]


def test_an_adapter_stays_one_and_finds_its_base_in_the_folder(lora, tmp_path, monkeypatch):
    export(lora, tmp_path / "out")
    (tmp_path / "out").rename(tmp_path / "elsewhere")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "elsewhere" / "base")
    untuned = logits(base)
    found = logits(PeftModel.from_pretrained(base, str(tmp_path / "elsewhere")))
    assert torch.equal(found, wanted(lora)) and not torch.equal(found, untuned)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merged_adapter_is_a_whole_model(lora, tmp_path, dtype):
    export(lora, tmp_path / "out", merge=True, dtype=dtype)
    assert not (tmp_path / "out" / "adapter_config.json").exists()
    module = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert module.dtype == getattr(torch, dtype)
    close = 1e-5 if dtype == "float32" else 0.05
    worst = (logits(module).float() - wanted(lora)).abs().max() / wanted(lora).abs().max()
    assert worst <= close
    assert json.loads((tmp_path / "out" / "config.json").read_text())["dtype"] == dtype


@pytest.mark.parametrize("settings", [{"use_rslora": True}, {"use_dora": True}, {}])
def test_every_kind_of_lora_and_ia3_can_be_merged(make_model, settings):
    from peft import IA3Config, LoraConfig, get_peft_model

    model = fresh(make_model("llama"))
    config = (
        LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", init_lora_weights=False, **settings)
        if settings
        else IA3Config(
            task_type="CAUSAL_LM", target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"],
            init_ia3_weights=False,
        )
    )  # fmt: skip
    tuned = replace(model, module=get_peft_model(model.module, config))
    before = logits(tuned.module)
    merged = export_module._merged(tuned)
    assert not hasattr(merged.module, "peft_config")
    assert (logits(merged.module) - before).abs().max() <= 1e-5 * before.abs().max()


def test_prompts_cannot_be_merged(make_model):
    from peft import PromptTuningConfig, get_peft_model

    model = fresh(make_model("llama"))
    tuned = replace(
        model, module=get_peft_model(model.module, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))
    )
    with pytest.raises(ConfigError, match="prompt tuning, which adds to what the model reads") as error:
        export_module._merged(tuned)
    assert "without --merge" in error.value.hint


def test_what_is_not_the_same_after_merging_is_refused(make_model):
    # Tied weights: folding into the head would change the embedding too.
    from peft import LoraConfig, get_peft_model

    model = fresh(make_model("gpt2"))
    config = LoraConfig(
        task_type="CAUSAL_LM", r=4, target_modules=["lm_head"], init_lora_weights=False, ensure_weight_tying=False
    )
    with pytest.warns(UserWarning, match="tied"):
        tuned = replace(model, module=get_peft_model(model.module, config))
    with (
        pytest.raises(ModelError, match=r"Folding the adapter into the weights changes the logits by"),
        pytest.warns(UserWarning),
    ):
        export_module._merged(tuned)


@pytest.mark.parametrize("added", [False, True])
def test_weights_tuned_in_place_are_a_whole_model_where_nothing_was_added(make_model, monkeypatch, added):
    model = fresh(make_model("gpt2"))
    monkeypatch.setattr(export_module, "load", lambda config, classes: fresh(make_model("gpt2")))
    with torch.no_grad():
        model.module.transformer.h[0].attn.c_attn.bias.add_(0.5)
    model.module.add_module("_own", torch.nn.Linear(2, 2))
    if added:
        model.module.transformer.h[0].mlp.register_forward_hook(lambda m, a, output: output * 1.01)
        with pytest.raises(ModelError, match="Leaving out what the method added"):
            export_module._plain(model)
        return
    plain = export_module._plain(model)
    assert torch.equal(logits(plain.module), logits(model.module))
    assert not torch.equal(logits(plain.module), logits(make_model("gpt2").module))


@pytest.mark.parametrize("state", ["leaks", "no leak found", "inconclusive", "invalid split", None])
@pytest.mark.parametrize("merge", [False, True])
def test_nothing_private_is_in_the_folder(lora, tmp_path, state, merge):
    (lora.path / "audit.json").unlink(missing_ok=True)
    if state:
        with_audit(lora, state)
    notice = Notice(kind="no-target", count=1, message="1 record has nothing to predict, e.g. client-17.")
    lora.write_card(replace(lora.card, notices=(notice,)))
    export(lora, tmp_path / "out", merge=merge)
    files = [p for p in (tmp_path / "out").rglob("*") if p.is_file()]
    assert {p.suffix for p in files} <= {".json", ".md", ".safetensors"}
    words = (SECRET, "client-", "private-clients", "tickets.jsonl", str(lora.path.parents[1]), "918273645")
    for path in files:
        for word in words:
            assert word.encode() not in path.read_bytes(), (path.name, word)


def test_the_card_has_the_findings(lora, tmp_path):
    found = with_audit(lora)
    export(lora, tmp_path / "out")
    text = re.sub(r"\\(.)", r"\1", (tmp_path / "out" / "README.md").read_text())
    assert text.startswith("---\nlibrary_name: peft\n")
    assert f"**Leaks.** {found.verdict.headline}" in text
    for attempt in found.attempts:
        assert f"| {attempt.name} |" in text
    auc = found.attempts[0].estimates["auc"]
    assert f"{auc.value:.3f} [{auc.low:.3f}, {auc.high:.3f}]" in text
    for words in (*found.untested, "16×", "### Controls", "Method | kind lora", "10,000 non-members"):
        assert words in text
    assert "These very numbers" not in text
    export(lora, tmp_path / "merged", merge=True)
    assert "These very numbers" in (tmp_path / "merged" / "README.md").read_text()


def test_an_invalid_split_withholds_its_figures(lora, tmp_path):
    found = with_audit(lora, "invalid split")
    export(lora, tmp_path / "out")
    text = re.sub(r"\\(.)", r"\1", (tmp_path / "out" / "README.md").read_text())
    assert "**Invalid split.**" in text and "| prefix |" in text
    assert not any(f"| {a.name} |" in text for a in found.attempts if a.family == "membership")


def test_names_cannot_become_markup(lora, tmp_path):
    found = with_audit(lora)
    evil = replace(found.attempts[0], name="a|b<script>alert(1)</script>\n# x")
    lora.write_card(replace(lora.card, data={**lora.card.data, "unit": "<img src=x>|`y`"}))
    (lora.path / "audit.json").write_bytes(export_module_encode(replace(found, attempts=(evil,))))
    export(lora, tmp_path / "out")
    text = (tmp_path / "out" / "README.md").read_text()
    assert "<script" not in text.replace("\\<", "") and "<img" not in text.replace("\\<", "")
    assert "\n# x" not in text


def export_module_encode(report: AuditReport) -> bytes:
    from sordino.results import encode

    return encode(report)


def test_without_an_audit_the_card_says_so(full, tmp_path):
    export(full, tmp_path / "out")
    assert "not audited" in (tmp_path / "out" / "README.md").read_text()


def test_an_audit_of_other_weights_is_refused(full, tmp_path):
    with_audit(full)
    changed = replace(full.audit, provenance={"model.weights": "other"})
    full.write_audit(changed)
    with pytest.raises(RunError, match="is not of the weights"):
        export(full, tmp_path / "out")
    (full.path / "audit.json").unlink()


def test_a_folder_that_is_taken_is_refused_and_replaced_only_if_it_is_a_model(full, tmp_path):
    out = tmp_path / "out"
    export(full, out)
    (out / "mark").write_text("old")
    with pytest.raises(RunError, match="exists already") as error:
        export(full, out)
    assert "--force" in error.value.hint
    export(full, out, force=True)
    assert not (out / "mark").exists()
    other = tmp_path / "thesis"
    other.mkdir()
    (other / "chapter.txt").write_text("years of work")
    with pytest.raises(RunError, match="holds something else than a model"):
        export(full, other, force=True)
    assert (other / "chapter.txt").exists()
    for place in (full.path, full.path / "out", full.path.parent):
        with pytest.raises(RunError, match="are in one another"):
            export(full, place, force=True)


def test_a_failed_export_leaves_nothing(full, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "render_card", lambda *a: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        export(full, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_run_that_is_not_trained_or_was_edited_is_refused(full, tmp_path):
    card = full.card
    full.write_card(replace(card, status="training"))
    with pytest.raises(RunError, match="is not trained to its end"):
        export(full, tmp_path / "out")
    full.write_card(replace(card, model={**card.model, "weights": "0"}))
    with pytest.raises(RunError, match="are not those that training wrote"):
        export(full, tmp_path / "out")
    full.write_card(card)


def test_an_adapter_on_a_hub_model_names_it(lora, tmp_path, monkeypatch):
    monkeypatch.setattr(export_module, "_is_hub", lambda config: True)
    card = lora.card
    (lora.path / "audit.json").unlink(missing_ok=True)
    export(lora, tmp_path / "out")
    assert not (tmp_path / "out" / "base").exists()
    settings = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == card.config["model"]["path"]
    assert f"base_model: {card.config['model']['path']}" in (tmp_path / "out" / "README.md").read_text()
