"""Adapters trained together against each trained alone by the ordinary loop."""

import json
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch
from train_fixtures import fresh, new_run, some_tokens

from sordino.config import MethodConfig, TrainConfig
from sordino.errors import ConfigError, RunError, TrainingError
from sordino.model import attach
from sordino.train.adapters import Adapters
from sordino.train.dropout import set_dropout
from sordino.train.joint import JointOptions, train_joint
from sordino.train.loop import train

MORE = ("gpt_neox", "qwen2", "qwen3", "mistral", "opt", "gemma")
FAMILIES = ("llama", "gpt2", "gemma2", *(pytest.param(f, marks=pytest.mark.slow) for f in MORE))
LORA = MethodConfig(rank=4, alpha=8.0)
SEEDS = (3, 8, 21)
# The gradients are longer than `clip`, and the warm-up ends within the steps. Ten times the usual rate: norms are in
# float32 whatever the weights are, and AdamW makes steps of the whole rate out of gradients that are hardly more.
CONFIG = TrainConfig(
    epochs=2, batch_size=3, learning_rate=2e-3, warmup=0.4, schedule="cosine", clip=0.05, weight_decay=0.01
)


def double(make_model, shape):
    model = make_model(shape)
    model.module.double()
    set_dropout(model.module, 0.0)
    return model


def subsets(count=14):
    """Of unequal size, overlapping; the last batch of an epoch is shorter."""
    rng = np.random.default_rng(5)
    return [sorted(rng.choice(count, size, replace=False).tolist()) for size in (3, 7, 10)]


def alone(folder, model, records, seed, *, config=CONFIG, method=LORA):
    tuned = attach(fresh(model), method, seed)
    train(new_run(folder, f"s{seed}"), tuned, (records, []), config, seed=seed)
    return {n.replace(".default", ""): p.detach() for n, p in tuned.module.named_parameters() if ".lora_" in n}


def differs(adapters, k, wanted):
    state = adapters.state(k)
    assert state.keys() == wanted.keys()
    return max(float((state[n] - wanted[n]).abs().max()) for n in state)


@pytest.mark.parametrize("family", FAMILIES)
def test_together_each_becomes_what_it_becomes_alone(family, make_model, tmp_path):
    model, tokens, parts = double(make_model, family), some_tokens(14, prompt=True), subsets()
    adapters = Adapters(model, LORA, SEEDS)
    before = adapters.flat.clone()
    result = train_joint(tmp_path / "joint", adapters, tokens, parts, CONFIG)
    assert result.steps == (2, 6, 8) and result.progress.step == 8
    for k, seed in enumerate(SEEDS):
        assert (adapters.flat[k] - before[k]).abs().max() > 1e-4
        assert differs(adapters, k, alone(tmp_path, model, [tokens[i] for i in parts[k]], seed)) <= 1e-6


@pytest.mark.parametrize("variant", ["rslora", "ffa"])
def test_variants_become_what_they_become_alone(variant, make_model, tmp_path):
    method = MethodConfig(rank=4, alpha=8.0, variant=variant, targets=("q_proj", "down_proj"))
    model, tokens, parts = double(make_model, "llama"), some_tokens(14), subsets()
    adapters = Adapters(model, method, SEEDS)
    train_joint(tmp_path / "joint", adapters, tokens, parts, CONFIG)
    wanted = alone(tmp_path, model, [tokens[i] for i in parts[1]], SEEDS[1], method=method)
    assert differs(adapters, 1, wanted) <= 1e-6


@pytest.mark.parametrize("at_once", [1, 60, pytest.param(200, marks=pytest.mark.slow)])
def test_how_much_is_computed_at_once_changes_nothing_beyond_rounding(at_once, make_model, tmp_path):
    model, tokens, parts = double(make_model, "llama"), some_tokens(14), subsets()
    found = []
    for options in (JointOptions(), JointOptions(tokens_at_once=at_once)):
        adapters = Adapters(model, LORA, SEEDS)
        train_joint(tmp_path / str(options.tokens_at_once), adapters, tokens, parts, CONFIG, options=options)
        found.append(adapters.flat)
    assert (found[0] - found[1]).abs().max() <= 1e-9


def test_activations_computed_twice_change_nothing(make_model, tmp_path):
    model, tokens, parts = double(make_model, "llama"), some_tokens(14), subsets()
    found = []
    for again in (False, True):
        adapters = Adapters(model, LORA, SEEDS)
        config = replace(CONFIG, gradient_checkpointing=again)
        train_joint(tmp_path / str(again), adapters, tokens, parts, config)
        found.append(adapters.flat)
    assert (found[0] - found[1]).abs().max() <= 1e-9


UPPER = {
    "llama": ("layers.1.self_attn.q_proj", "layers.1.mlp.down_proj"),
    "gpt2": ("h.1.attn.c_attn",),
    "gpt_neox": ("layers.1.attention.query_key_value",),
    "gemma2": ("layers.1.self_attn.v_proj",),
}


@pytest.mark.parametrize("family", UPPER)
@pytest.mark.parametrize("memory", [1 << 30, 0])
def test_the_trunk_is_skipped_exactly(family, memory, make_model, tmp_path):
    model, tokens, parts = double(make_model, family), some_tokens(14), subsets()
    method = MethodConfig(rank=4, targets=UPPER[family])
    calls, lower = [], next(m for n, m in model.module.named_modules() if n.endswith((".0.mlp", "layers.0.mlp")))
    lower.register_forward_hook(lambda *_: calls.append(torch.is_grad_enabled()))
    found = []
    for options in (JointOptions(trunk="off"), JointOptions(trunk_bytes=memory)):
        adapters = Adapters(model, method, SEEDS)
        calls.clear()
        result = train_joint(tmp_path / options.trunk, adapters, tokens, parts, CONFIG, options=options)
        found.append(adapters.flat)
        # A pass with gradients is a step's.
        assert any(calls) == (options.trunk == "off")
    assert [n.count for n in result.notices] == [len({i for part in parts for i in part})]
    assert ("on disk" if not memory else "in memory") in result.notices[0].message
    assert (found[0] - found[1]).abs().max() <= 1e-6


def test_a_trunk_with_dropout_is_not_skipped_and_it_is_said(make_model, tmp_path):
    model, tokens = make_model("gpt2"), some_tokens(6)
    adapters = Adapters(model, MethodConfig(rank=2, targets=UPPER["gpt2"]), (1,))
    result = train_joint(tmp_path / "joint", adapters, tokens, [range(6)], TrainConfig(epochs=1))
    assert [n.kind for n in result.notices] == ["trunk"] and "cannot be skipped" in result.notices[0].message


class Stop(Exception):
    pass


@pytest.mark.parametrize("targets", ["all-linear", ("layers.1.self_attn.q_proj",)])
def test_a_killed_training_goes_on_bit_for_bit(targets, make_model, tmp_path):
    model, tokens, parts = make_model("llama"), some_tokens(14), subsets()
    config = TrainConfig(epochs=3, batch_size=3, learning_rate=0.01, checkpoint_every=2)
    method = MethodConfig(rank=4, targets=targets)

    def run(folder, stop_at=None):
        def monitor(progress, steps):
            if progress.step == stop_at:
                raise Stop

        adapters = Adapters(model, method, SEEDS)
        result = train_joint(folder, adapters, tokens, parts, config, monitor=monitor)
        return adapters.flat.clone(), result.progress.step

    wanted, steps = run(tmp_path / "whole")
    for stop in (1, 3, steps - 1):
        with pytest.raises(Stop):
            run(tmp_path / f"cut{stop}", stop)
        found, _ = run(tmp_path / f"cut{stop}")
        assert torch.equal(found, wanted)
        logs = [(tmp_path / name / "losses.jsonl").read_text() for name in ("whole", f"cut{stop}")]
        assert logs[0] == logs[1] and len(logs[0].splitlines()) == steps
    assert torch.equal(run(tmp_path / "whole")[0], wanted)  # nothing is left to do
    assert (
        len(json.loads(logs[0].splitlines()[0])["losses"]) == 3
        and len(json.loads(logs[0].splitlines()[-1])["losses"]) == 1
    )


def test_a_base_with_dropout_goes_on_bit_for_bit_too(make_model, tmp_path):
    model, tokens, flats = make_model("gpt2"), some_tokens(8), {}
    config = TrainConfig(epochs=2, batch_size=2, learning_rate=0.01, checkpoint_every=2)

    def stop(progress, steps):
        if progress.step == 3:
            raise Stop

    for name in ("whole", "cut"):
        for monitor in (stop, lambda *_: None) if name == "cut" else (lambda *_: None,):
            adapters = Adapters(model, MethodConfig(rank=2, targets=UPPER["gpt2"]), (1, 2))
            with nullcontext() if monitor is not stop else pytest.raises(Stop):
                train_joint(tmp_path / name, adapters, tokens, [range(8)] * 2, config, monitor=monitor)
        flats[name] = adapters.flat
    assert torch.equal(flats["whole"], flats["cut"])


def test_a_folder_of_another_training_is_refused(make_model, tmp_path):
    model, tokens, parts = make_model("llama"), some_tokens(14), subsets()
    train_joint(tmp_path / "j", Adapters(model, LORA, SEEDS), tokens, parts, TrainConfig(epochs=1))
    for seeds, shares, config in (
        ((3, 8, 22), parts, TrainConfig(epochs=1)),
        (SEEDS, [parts[0], parts[1], parts[1]], TrainConfig(epochs=1)),
        (SEEDS, parts, TrainConfig(epochs=1, learning_rate=1e-3)),
    ):
        with pytest.raises(RunError, match="another joint training"):
            train_joint(tmp_path / "j", Adapters(model, LORA, seeds), tokens, shares, config)
    assert (tmp_path / "j").stat().st_mode & 0o777 == 0o700


def test_a_loss_that_is_no_number_names_the_adapter(make_model, tmp_path):
    model, tokens = make_model("llama"), some_tokens(14)
    adapters = Adapters(model, LORA, SEEDS)
    adapters.load_state(1, {n: torch.full_like(t, torch.nan) for n, t in adapters.state(1).items()})
    kept = adapters.flat.clone()
    with pytest.raises(TrainingError, match=r"adapter 1 \(seed 8\) is nan"):
        train_joint(tmp_path / "j", adapters, tokens, subsets(), TrainConfig())
    assert torch.equal(adapters.flat[[0, 2]], kept[[0, 2]])


def test_what_cannot_be_trained_together_is_refused_by_name(make_model, tmp_path):
    model, tokens = make_model("llama"), some_tokens(4)
    for method, what in (
        (MethodConfig(kind="full"), "method.kind"),
        (MethodConfig(variant="dora"), "method.variant"),
        (MethodConfig(dropout=0.1), "method.dropout"),
        (MethodConfig(targets=("q_proj", "lm_head")), "method.targets"),
        (MethodConfig(targets=("embed_tokens",)), "method.targets"),
        (MethodConfig(targets=("q_prj",)), "method.targets"),
    ):
        with pytest.raises(ConfigError, match=what):
            Adapters(model, method, (0, 1))
    adapters = Adapters(model, LORA, (0, 1))
    for config, what in (
        (TrainConfig(precision="bf16"), "train.precision"),
        (TrainConfig(select="best"), "train.select"),
        (TrainConfig(stop_loss=1.0), "train.stop_loss"),
    ):
        with pytest.raises(ConfigError, match=what):
            train_joint(tmp_path / "j", adapters, tokens, [[0], [1]], config)
    with pytest.raises(ConfigError, match="3 subsets for 2 adapters"):
        train_joint(tmp_path / "j", adapters, tokens, [[0], [1], [2]], TrainConfig())
    with pytest.raises(ConfigError, match="not there"):
        train_joint(tmp_path / "j", adapters, tokens, [[0], [4]], TrainConfig())
    with pytest.raises(TrainingError, match="adapter 1 has a token"):
        train_joint(tmp_path / "j", adapters, tokens, [[0], []], TrainConfig())
