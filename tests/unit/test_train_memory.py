"""The memory planner against what the allocator saw in a real training, and what it says on a terminal."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from torch.profiler import ProfilerActivity, profile
from train_fixtures import new_run, saved, some_tokens

from sordino import commands
from sordino.config import MethodConfig, ModelConfig, RunConfig, TrainConfig
from sordino.model import attach, load
from sordino.records import DataConfig
from sordino.train import memory
from sordino.train.loop import train
from sordino.train.memory import advice, capacity, estimate, plan_memory

COMMON = {"vocab_size": 2048, "bos_token_id": 0, "eos_token_id": 1}
SHAPES = {
    "llama": lambda: transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=256, **COMMON,
        )
    ),
    "gpt2": lambda: transformers.GPT2LMHeadModel(
        transformers.GPT2Config(n_embd=96, n_layer=6, n_head=4, n_positions=256, **COMMON)
    ),
    "gpt_neox": lambda: transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            hidden_size=160, intermediate_size=640, num_hidden_layers=3, num_attention_heads=4,
            max_position_embeddings=256, **COMMON,
        )
    ),
}  # fmt: skip
RECORDS, LENGTH = 8, 96


@pytest.fixture(scope="module")
def folders(tokenizer, tmp_path_factory):
    """A folder with a model of each shape."""
    return saved(SHAPES, tokenizer, tmp_path_factory)


def config_for(folder, **train):
    method = train.pop("method", MethodConfig(kind="full"))
    values = {"epochs": 2, "batch_size": RECORDS, "checkpoint_every": 10**6, **train}
    return RunConfig(
        data=DataConfig(path="x"), model=ModelConfig(path=str(folder), device="cpu"), method=method,
        train=TrainConfig(**values),
    )  # fmt: skip


def measured_peak(config, run):
    """The largest number of bytes that torch's allocator held in two training steps, with the weights."""
    model = attach(load(config.model), config.method, 0)
    weights = sum(4 * p.numel() for p in model.module.parameters())
    target = np.arange(LENGTH) > 0
    tokens = [replace(t, ids=np.resize(t.ids, LENGTH), target=target) for t in some_tokens(RECORDS)]
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        train(run, model, (tokens, []), config.train, seed=0)
    events = sorted(
        (e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"), key=lambda e: e.start_ns()
    )
    held = peak = 0
    for event in events:
        held += event.nbytes()
        peak = max(peak, held)
    return weights + peak


CASES = {
    "llama": ("llama", {}), "gpt2": ("gpt2", {}), "gpt_neox": ("gpt_neox", {}),
    "checkpointing": ("gpt2", {"gradient_checkpointing": True}), "bf16": ("llama", {"precision": "bf16"}),
    "lora": ("gpt_neox", {"method": MethodConfig(rank=8)}), "parts": ("llama", {"accumulation": 4}),
}  # fmt: skip


@pytest.mark.parametrize(
    ("shape", "case"),
    [
        pytest.param(*c, id=n, marks=pytest.mark.slow if n in ("gpt2", "gpt_neox", "parts") else ())
        for n, c in CASES.items()
    ],
)
def test_the_estimate_is_near_the_measured_peak(folders, tmp_path, shape, case):
    config = config_for(folders[shape], **case)
    found = estimate(config, RECORDS // config.train.accumulation, LENGTH)
    assert found.traced
    peak = measured_peak(config, new_run(tmp_path))
    print(f"RATIO {shape} {case} {found.total / peak:.2f}")
    assert peak / 1.3 <= found.total <= 1.3 * peak


def test_optimizer_and_gradients_are_exact(folders):
    full = estimate(config_for(folders["llama"]), 1, 8)
    lora = estimate(config_for(folders["llama"], method=MethodConfig(rank=8)), 1, 8)
    assert full.gradients == full.weights and full.optimizer == 2 * full.weights
    assert lora.gradients * 2 == lora.optimizer < full.optimizer / 5
    assert lora.weights - full.weights == lora.gradients


def test_no_weights_are_read(folders, tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_bytes((folders["llama"] / "config.json").read_bytes())
    (folder / "model.safetensors").write_bytes(b"poison")
    assert estimate(config_for(folder), 2, 16).traced


def test_what_cannot_be_traced_is_estimated_by_a_formula_and_said(folders, monkeypatch):
    config = config_for(folders["llama"])
    traced = estimate(config, RECORDS, LENGTH)
    monkeypatch.setattr(memory, "_traced", _fail)
    by_formula = estimate(config, RECORDS, LENGTH)
    assert not by_formula.traced
    assert 0.5 < by_formula.activations / traced.activations < 2
    checkpointed = estimate(config_for(folders["llama"], gradient_checkpointing=True), RECORDS, LENGTH)
    assert checkpointed.activations < by_formula.activations
    assert "formula" in plan_memory(config, 16, LENGTH)["activations"]


def _fail(*args):
    raise RuntimeError("data-dependent")


def test_advice_names_the_least_that_fits(folders):
    config = config_for(folders["llama"])
    whole, half = (estimate(config, n, LENGTH).total for n in (RECORDS, RECORDS // 2))
    assert advice(config, half, 100, LENGTH) == "It would fit with train.accumulation: 2."
    single = estimate(config, 1, LENGTH).total
    assert "gradient_checkpointing: true" in advice(config, single - 1, 100, LENGTH)
    assert advice(config, 1000, 100, LENGTH).startswith("Not even one sequence")
    assert whole > half > single
    rows = plan_memory(config, 100, LENGTH)
    assert rows["fits"] and "advice" not in rows and rows["bytes in all"] == whole


def test_advice_is_given_where_it_does_not_fit(folders, monkeypatch):
    monkeypatch.setattr(memory, "capacity", lambda device: 1000)
    rows = plan_memory(config_for(folders["llama"]), 100, LENGTH)
    assert not rows["fits"] and rows["bytes of memory"] == 1000 and "max_length" in rows["advice"]


def test_capacity_is_the_ram_or_less():
    assert 2**28 < capacity(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("bytes of weights", 1000, "1,000 bytes"), ("bytes of weights", 4 * 2**20, "4.0 MiB"),
        ("bytes in all", 3 * 2**39, "1.5 TiB"), ("steps", 12345, "12,345"), ("fits", True, "yes"),
        ("fits", False, "no"), ("unit", "customer", "customer"),
    ],
)  # fmt: skip
def test_sizes_are_readable_on_a_terminal(key, value, text):
    assert commands._readable(key, value) == text
