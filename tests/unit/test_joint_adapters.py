"""Stacked adapters: drawn as PEFT draws them, taken off without a trace, saved as PEFT saves them."""

import copy

import numpy as np
import pytest
import torch
from peft import get_peft_model_state_dict
from train_fixtures import fresh, some_tokens

from sordino.collect import collect
from sordino.config import MethodConfig
from sordino.errors import ModelError
from sordino.model import attach, restore, save
from sordino.train.adapters import Adapters

FAMILIES = ("llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "opt", "gemma", "gemma2")
LORA = MethodConfig(rank=4, alpha=8.0)


def shuffled(adapters):
    """Values that are not the first ones: B begins at 0."""
    generator = torch.Generator().manual_seed(1)
    adapters.flat.copy_(0.1 * torch.randn(adapters.flat.shape, generator=generator))
    return adapters


@pytest.mark.parametrize("family", FAMILIES)
def test_each_begins_with_what_its_seed_draws_alone(family, make_model):
    model = make_model(family)
    state = torch.get_rng_state()
    adapters = Adapters(model, LORA, (4, 9))
    assert torch.equal(torch.get_rng_state(), state)
    for k, seed in enumerate((4, 9)):
        wanted = get_peft_model_state_dict(attach(fresh(model), LORA, seed).module)
        found = adapters.state(k)
        assert found.keys() == wanted.keys() and all(torch.equal(found[n], wanted[n]) for n in wanted)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_base_is_left_as_it_was(family, make_model):
    model = make_model(family)
    kept = copy.deepcopy(model.module.state_dict())
    before = {n: (type(m), set(m.__dict__)) for n, m in model.module.named_modules()}
    flags = [p.requires_grad for p in model.module.parameters()]
    ids = torch.arange(3, 15).view(2, 6)
    logits = model.module(ids).logits
    adapters = shuffled(Adapters(model, LORA, (4, 9)))
    adapters.check()
    with adapters.alone(1):
        assert (model.module(ids).logits - logits).abs().max() > 1e-3
        assert not any(p.requires_grad for p in model.module.parameters())
    with adapters.wrapped(0):
        pass
    with pytest.raises(ValueError, match="on purpose"), adapters.alone(0):
        raise ValueError("on purpose")
    assert torch.equal(model.module(ids).logits, logits)
    assert {n: (type(m), set(m.__dict__)) for n, m in model.module.named_modules()} == before
    assert [p.requires_grad for p in model.module.parameters()] == flags
    assert all(torch.equal(t, kept[n]) for n, t in model.module.state_dict().items())


def test_groups_of_rows_are_under_their_adapters_and_may_repeat(model):
    adapters = shuffled(Adapters(model, LORA, (4, 9, 2)))
    ids = torch.arange(3, 3 + 8 * 5).view(8, 5)
    with torch.inference_mode():
        with adapters.attached():
            adapters.select([2, 0, 2, 1], 8, 5)
            found = model.module(ids).logits
        for group, k in enumerate([2, 0, 2, 1]):
            with adapters.alone(k):
                wanted = model.module(ids[2 * group : 2 * group + 2]).logits
            assert torch.allclose(found[2 * group : 2 * group + 2], wanted, rtol=1e-4, atol=1e-5)


def test_one_alone_is_an_ordinary_adapter_that_can_be_saved_and_put_back(make_model, tmp_path):
    model, tokens = make_model("llama"), some_tokens(6)
    adapters = shuffled(Adapters(model, LORA, (4, 9)))
    model.module.save_pretrained(tmp_path / "base")
    model.tokenizer.save_pretrained(tmp_path / "base")
    with adapters.alone(1):
        wanted = collect(model, tokens).logprob
    with adapters.wrapped(1) as tuned:
        assert np.allclose(collect(tuned, tokens).logprob, wanted, atol=1e-5)
        save(tuned, tmp_path / "saved")
    back = restore(type(model.config)(path=str(tmp_path / "base"), device="cpu"), LORA, tmp_path / "saved")
    assert np.allclose(collect(back, tokens).logprob, wanted, atol=1e-5)
    other = Adapters(model, LORA, (4, 9))
    other.load_state(0, get_peft_model_state_dict(back.module))
    assert torch.equal(other.flat[0], adapters.flat[1])
    with pytest.raises(ModelError, match="does not fit"):
        Adapters(model, MethodConfig(rank=2), (4,)).load_state(0, adapters.state(0))


def test_rows_that_cannot_be_told_apart_are_refused(make_model):
    model = make_model("llama")
    adapters = Adapters(model, LORA, (4, 9))
    with adapters.attached():
        adapters.select([0, 1], 4, 6)
        with pytest.raises(ModelError, match="which row is whose"):
            adapters.layers[0].forward(torch.zeros(6, 4, 32))
        with pytest.raises(ModelError, match="no 2 equal groups"):
            adapters.select([0, 1], 3, 6)


def test_a_model_that_mixes_rows_is_found(make_model):
    model = make_model("llama")
    first = model.module.model.layers[0]
    forward = first.forward
    first.forward = lambda x, *args, **kwargs: forward(x, *args, **kwargs) + x.mean(dim=0)
    with pytest.raises(ModelError, match="differ by"):
        Adapters(model, LORA, (4, 9)).check()
