"""Scores under all adapters at once against one adapter at a time."""

import numpy as np
import pytest
import torch
from train_fixtures import some_tokens

from sordino.collect import collect
from sordino.config import MethodConfig
from sordino.serialize import Tokens
from sordino.train import joint_scores
from sordino.train.adapters import Adapters
from sordino.train.joint_scores import score_all

FAMILIES = ("llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "opt", "gemma", "gemma2")
UPPER = {"llama": "layers.1.self_attn.q_proj", "gpt2": "h.1.mlp.c_fc", "gpt_neox": "layers.1.attention.dense"}


def adapted(model, targets="all-linear", count=3):
    adapters = Adapters(model, MethodConfig(rank=4, targets=targets), range(count))
    generator = torch.Generator().manual_seed(1)
    adapters.flat.copy_(0.05 * torch.randn(adapters.flat.shape, generator=generator))
    return adapters


def records():
    """Of many lengths; one without a target, one that fills three windows of 64."""
    tokens = some_tokens(12, prompt=True)
    tokens.insert(3, Tokens(ids=tokens[0].ids, target=np.zeros(len(tokens[0]), dtype=bool), text=""))
    ids = np.random.default_rng(2).integers(3, 2048, 130).astype(np.int32)
    return [*tokens, Tokens(ids=ids, target=np.arange(130) > 2, text="…")]


def apart(model, adapters, tokens):
    rows = []
    for k in range(len(adapters)):
        with adapters.alone(k):
            found = collect(model, tokens)
        parts = np.split(found.logprob.astype(np.float64), found.offsets[1:-1])
        rows.append([-part.mean() if len(part) else np.nan for part in parts])
    return np.array(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_all_at_once_are_what_each_is_alone(family, make_model):
    model, tokens, done = make_model(family), records(), []
    adapters = adapted(model)
    found = score_all(model, adapters, tokens, tick=done.append)
    wanted = apart(model, adapters, tokens)
    assert found.shape == (3, 14) and found.dtype == np.float64
    assert np.isnan(found[:, 3]).all() and np.isfinite(np.delete(found, 3, axis=1)).all()
    assert np.allclose(found, wanted, rtol=0, atol=1e-5, equal_nan=True)
    assert np.ptp(found, axis=0)[0] > 1e-3
    assert sum(done) == 14


@pytest.mark.parametrize("family", UPPER)
def test_blocks_below_all_adapters_are_computed_once(family, make_model, monkeypatch):
    model, tokens = make_model(family), records()
    adapters = adapted(model, (UPPER[family],), count=5)
    lower = next(m for n, m in model.module.named_modules() if n.endswith("0.mlp"))
    tokens_seen = []
    with_lower = lower.register_forward_hook(lambda _, args, out: tokens_seen.append(args[0].shape[0]))
    found = score_all(model, adapters, tokens)
    once = sum(tokens_seen)
    assert np.allclose(found, apart(model, adapters, tokens), rtol=0, atol=1e-5, equal_nan=True)
    tokens_seen.clear()
    monkeypatch.setattr(joint_scores, "find_trunk", lambda *_, **__: "not today")
    assert np.allclose(score_all(model, adapters, tokens), found, rtol=0, atol=1e-6, equal_nan=True)
    with_lower.remove()
    # Rows through the first block: 16 windows once, and a few tokens on which shortcuts are tried.
    assert once < sum(tokens_seen) / 2


def test_few_tokens_at_a_time_are_the_same(make_model, monkeypatch):
    model, tokens = make_model("llama"), records()
    adapters = adapted(model)
    wanted = score_all(model, adapters, tokens)
    monkeypatch.setitem(joint_scores.BATCH_TOKENS, "cpu", 70)
    assert np.allclose(score_all(model, adapters, tokens), wanted, rtol=0, atol=1e-5, equal_nan=True)
