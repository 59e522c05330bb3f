"""Precision and gradient checkpointing: what they may change, what they may not, and resuming with them."""

import json

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy
from train_fixtures import fresh, new_run, some_tokens, tune, weights

from sordino.config import MethodConfig, ModelConfig, TrainConfig, load
from sordino.errors import ConfigError, TrainingError
from sordino.model import Model, attach
from sordino.train import loop
from sordino.train.collate import collate
from sordino.train.loop import train
from sordino.train.objective import Objective, check_precision, recomputed

FULL, LORA = MethodConfig(kind="full"), MethodConfig(rank=2, dropout=0.1)
CPU = torch.device("cpu")


def long_way(module, tokens):
    """The summed loss of records, one at a time, unpadded, from whole logits."""
    total = 0.0
    for item in tokens:
        ids = torch.tensor(item.ids[None].astype(np.int64))
        wanted = torch.where(torch.tensor(item.target)[None], ids, -100)
        logits = module(input_ids=ids).logits
        total += float(cross_entropy(logits[0, :-1], wanted[0, 1:], reduction="sum").detach())
    return total


@pytest.mark.parametrize("prompt", [False, True])
def test_the_shortcuts_are_taken_and_change_nothing(model, prompt):
    tokens = some_tokens(6, prompt=prompt)
    objective = Objective(model)
    assert objective.causal and objective.picks
    found = float(objective(collate(tokens, 2, CPU)).detach())
    assert found == pytest.approx(long_way(model.module, tokens), rel=1e-5)
    assert not objective.head._forward_pre_hooks


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt", "ia3", "bitfit", "head", "adapters", "full"])
def test_the_objective_of_every_method_is_the_long_way(make_model, kind):
    # More records than a probe has tokens, so that positions outnumber the places of a record.
    model, tokens = attach(fresh(make_model("llama")), MethodConfig(kind=kind), 0), some_tokens(12)
    found = Objective(model)(collate(tokens, 2, CPU))
    found.backward()
    assert any(p.grad is not None for p in model.module.parameters() if p.requires_grad)
    with model.active():
        assert float(found.detach()) == pytest.approx(long_way(model.module, tokens), rel=1e-5)


def test_logits_that_are_changed_after_the_head_are_changed_here_too(tokenizer):
    config = transformers.Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, final_logit_softcapping=0.5, initializer_range=0.5, pad_token_id=2,
    )  # fmt: skip
    module = transformers.Gemma2ForCausalLM(config).eval()
    model, tokens = Model(module=module, tokenizer=tokenizer, config=ModelConfig()), some_tokens(4)
    objective = Objective(model)
    assert objective.picks
    found = float(objective(collate(tokens, 2, CPU)).detach())
    assert found == pytest.approx(long_way(module, tokens), rel=1e-5)


def test_a_model_that_looks_ahead_gets_its_mask(tokenizer):
    config = transformers.BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3,
    )  # fmt: skip
    module = transformers.BertLMHeadModel(config).eval()
    model, tokens = Model(module=module, tokenizer=tokenizer, config=ModelConfig()), some_tokens(5)
    objective = Objective(model)
    assert not objective.causal
    found = float(objective(collate(tokens, 2, CPU)).detach())
    assert found == pytest.approx(long_way(module, tokens), rel=1e-5)


def test_a_head_that_cannot_be_given_some_positions_gets_all(make_model, monkeypatch):
    model, tokens = make_model("llama"), some_tokens(4, prompt=True)
    forward = model.module.forward
    expected = long_way(model.module, tokens)
    monkeypatch.setattr(model.module, "forward", lambda **arguments: _refuse_picked(forward, arguments))
    objective = Objective(model)
    assert not objective.picks
    assert float(objective(collate(tokens, 2, CPU)).detach()) == pytest.approx(expected, rel=1e-5)


def _refuse_picked(forward, arguments):
    output = forward(**arguments)
    if output.logits.shape[:2] != arguments["input_ids"].shape:
        raise RuntimeError("shape mismatch")
    return output


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_changes_no_loss_and_no_weight(make_model, tmp_path, shape, method):
    ends = []
    for on in (False, True):
        model = attach(fresh(make_model(shape)), method, 0)
        config = TrainConfig(epochs=1, batch_size=8, learning_rate=1e-2, accumulation=2, gradient_checkpointing=on)
        _, losses = tune(tmp_path, model, some_tokens(24), config, some_tokens(4, 1))
        ends.append((losses, weights(model)))
    assert ends[0][0] == ends[1][0]
    assert len(set(ends[0][0])) == 3
    for name, value in ends[0][1].items():
        assert torch.equal(ends[1][1][name], value), name


def saved_bytes(model, on):
    """What autograd keeps of one forward pass besides parameters."""
    kept, known = {}, {p.untyped_storage().data_ptr() for p in model.module.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    model.module.train()
    objective, batch = Objective(model), collate(some_tokens(8), 2, CPU)
    with recomputed(model.module, on=on), torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = objective(batch)
    assert loss.requires_grad
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_gradient_checkpointing_keeps_less_and_is_off_afterwards(make_model, method):
    model = attach(fresh(make_model("llama")), method, 0)
    before = saved_bytes(model, False)
    assert saved_bytes(model, True) < 0.8 * before
    assert saved_bytes(model, False) == before


def test_an_architecture_without_gradient_checkpointing_says_so(make_model, monkeypatch):
    model = fresh(make_model("llama"))
    monkeypatch.setattr(type(model.module), "supports_gradient_checkpointing", False)
    with (
        pytest.raises(ConfigError, match=r"gradient_checkpointing is true, and llama does not"),
        recomputed(model.module, on=True),
    ):
        pass


def test_bf16_is_near_fp32_and_weights_stay_fp32(make_model, tmp_path):
    found = {}
    for precision in ("fp32", "bf16"):
        model = attach(fresh(make_model("llama")), FULL, 0)
        config = TrainConfig(epochs=2, batch_size=8, learning_rate=1e-3, precision=precision)
        run, found[precision] = tune(tmp_path, model, some_tokens(24), config, some_tokens(4, 1))
        state = load_file(run.checkpoints / "last" / "state.safetensors")
        kinds = {t.dtype for name, t in state.items() if not name.startswith(("rng", "scaler"))}
        assert kinds == {torch.float32}
    assert found["bf16"] == pytest.approx(found["fp32"], rel=0.03)
    assert found["bf16"] != found["fp32"]


def test_fp16_needs_cuda():
    with pytest.raises(
        ConfigError, match=r"train.precision is fp16, which needs CUDA, and model.device is cpu"
    ) as error:
        check_precision("fp16", CPU)
    assert "bf16" in error.value.hint
    check_precision("fp16", torch.device("cuda"))
    check_precision("bf16", CPU)
    values = {"data": {"path": "x"}, "model": {"device": "cpu"}, "train": {"precision": "fp16"}}
    with pytest.raises(ConfigError, match=r"train.precision is 'fp16'"):
        load(values=values, environment={})
    values["model"]["device"] = "cuda"
    assert load(values=values, environment={}).train.precision == "fp16"


def interrupted(run, make, config, tokens, at):
    """Train until step `at`, die there, and resume with a model made anew."""

    class Died(Exception):
        pass

    def die(progress, steps):
        if progress.step == at:
            raise Died

    with pytest.raises(Died):
        train(run, make(), tokens, config, seed=5, monitor=die)
    model = make()
    return train(run, model, tokens, config, seed=5), model


OPTIONS = [
    {"gradient_checkpointing": True}, {"precision": "bf16"}, {"gradient_checkpointing": True, "precision": "bf16"},
    {"precision": "fp16"},
]  # fmt: skip


@pytest.mark.parametrize("options", OPTIONS, ids=lambda o: "-".join(map(str, o.values())))
@pytest.mark.parametrize("method", [FULL, LORA], ids=["full", "lora"])
def test_resumed_is_uninterrupted_bit_for_bit(make_model, tmp_path, monkeypatch, options, method):
    # The CPU can do float16 too, only slowly; this is how the scaler is tested without a GPU.
    monkeypatch.setattr(loop, "check_precision", lambda *args: None)
    config = TrainConfig(
        epochs=2, batch_size=4, accumulation=2, learning_rate=1e-2, clip=0.5, checkpoint_every=3, **options
    )
    tokens = (some_tokens(16), some_tokens(4, 1))

    def make():
        return attach(fresh(make_model("llama")), method, 0)

    whole, model = new_run(tmp_path, "whole"), make()
    expected = train(whole, model, tokens, config, seed=5)
    broken = new_run(tmp_path, "broken")
    progress, again = interrupted(broken, make, config, tokens, 5)
    for name, value in weights(model).items():
        assert torch.equal(weights(again)[name], value), name
    files = ("private/losses.jsonl", "private/checkpoints/last/state.safetensors")
    for name in files:
        assert (whole.path / name).read_bytes() == (broken.path / name).read_bytes(), name
    assert (progress.step, progress.loss, progress.skipped) == (8, expected.loss, expected.skipped)


def fp16(make_model, run, monkeypatch, *, poison=False):
    monkeypatch.setattr(loop, "check_precision", lambda *args: None)
    model = attach(fresh(make_model("llama")), FULL, 0)
    config = TrainConfig(epochs=2, batch_size=4, precision="fp16", checkpoint_every=1)
    seen = []

    def monitor(progress, steps):
        seen.append((progress, weights(model)))
        if poison and progress.step == 2:
            with torch.no_grad():
                next(iter(model.module.parameters())).fill_(torch.nan)

    return train(run, model, (some_tokens(16), []), config, seed=0, monitor=monitor), seen, weights(model)


def test_an_overflow_skips_the_step_lowers_the_scale_and_is_counted(make_model, tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, init_scale=2.0**22, **k))
    run = new_run(tmp_path)
    progress, seen, _ = fp16(make_model, run, monkeypatch)
    assert progress.step == 8
    assert [p.skipped for p, _ in seen][:2] == [1, 2] and 2 < progress.skipped < 8
    for name, value in weights(make_model("llama")).items():
        assert torch.equal(seen[1][1][name], value), "a skipped step must change nothing"
    state = load_file(run.checkpoints / "last" / "state.safetensors")
    assert float(state["scaler.scale"]) == 2.0 ** (22 - progress.skipped)
    assert json.loads((run.checkpoints / "last" / "progress.json").read_text())["skipped"] == progress.skipped


def test_a_loss_that_is_no_number_is_no_overflow(make_model, tmp_path, monkeypatch):
    run = new_run(tmp_path)
    with pytest.raises(TrainingError, match=r"loss is nan .* at step 3 of 8"):
        fp16(make_model, run, monkeypatch, poison=True)


def test_gradients_that_overflow_at_any_scale_are_an_error(make_model, tmp_path, monkeypatch):
    scaler = torch.amp.GradScaler
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *a, **k: scaler(*a, init_scale=2.0, **k))
    monkeypatch.setattr(loop, "get_total_norm", lambda grads: torch.tensor(torch.inf))

    def lower(self):
        self.load_state_dict({**self.state_dict(), "scale": 0.5})
        self._per_optimizer_states.clear()

    monkeypatch.setattr(scaler, "update", lower)
    with pytest.raises(TrainingError, match="gradient norm inf at step 2"):
        fp16(make_model, new_run(tmp_path), monkeypatch)
