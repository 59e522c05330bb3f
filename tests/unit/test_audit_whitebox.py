"""Gradient norms and one-step losses against autograd, one record at a time, whatever the model and its tuning."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_collect import some_tokens

from sordino.audit.whitebox import gradient_norms, one_step, weights_of
from sordino.collect import collect
from sordino.config import MethodConfig
from sordino.dp.engine import Clipper, Clipping
from sordino.errors import AuditError, DPError
from sordino.model import attach
from sordino.serialize import Tokens
from sordino.signals import Ragged
from sordino.stats import auc

KINDS = ("lora", "bitfit", "adapters", "ia3", "prefix", "prompt", "head")


def mean_loss(model, item):
    ids, width = torch.from_numpy(item.ids.astype(np.int64))[None], len(item)
    logits = model.module(input_ids=ids, use_cache=False).logits[0][-width:]
    each = torch.nn.functional.cross_entropy(logits[:-1], ids[0, 1:], reduction="none")
    return each[torch.from_numpy(item.target[1:])].mean()


def plain_norm(model, item, weights):
    """The norm by autograd, of one record."""
    for p in weights.values():
        p.requires_grad_(True)
    found = torch.autograd.grad(mean_loss(model, item), list(weights.values()), allow_unused=True)
    return float(torch.cat([g.flatten() for g in found if g is not None]).double().norm())


def moved(model, seed=0, by=0.05):
    """The model with what it tunes away from its first values, without dropout."""
    model.module.eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in weights_of(model, "tuned").values():
            p.add_(by * torch.randn(p.shape, generator=generator))
    return model


def some(lengths=(30, 3, 17, 40, 8, 1, 17)):
    return some_tokens(lengths)


@pytest.mark.parametrize("shape", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("part", ["own", "tuned"])
def test_norms_of_every_shape_are_those_of_one_record_at_a_time(make_model, shape, part):
    model = make_model(shape) if part == "own" else moved(attach(make_model(shape), MethodConfig(rank=3), 0))
    tokens = some()
    found = gradient_norms(model, tokens, part)
    wanted = [plain_norm(model, t, weights_of(model, part)) if t.target.any() else np.nan for t in tokens]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.isnan(found[5]) and np.isfinite(np.delete(found, 5)).all()


@pytest.mark.parametrize("kind", KINDS)
def test_norms_over_what_each_method_tunes(make_model, kind):
    model = moved(attach(make_model("llama"), MethodConfig(kind=kind), 0))
    before = {n: p.requires_grad for n, p in model.module.named_parameters()}
    tuned = weights_of(model, "tuned")
    assert set(tuned) == {n for n, on in before.items() if on}
    tokens = some((12, 5, 20))
    found = {part: gradient_norms(model, tokens, part) for part in ("own", "tuned")}
    # Whatever was looked at, the model is left as it was found.
    assert {n: p.requires_grad for n, p in model.module.named_parameters()} == before
    assert all(p.grad is None for p in model.module.parameters())
    for part in ("own", "tuned"):
        weights = weights_of(model, part)
        np.testing.assert_allclose(found[part], [plain_norm(model, t, weights) for t in tokens], rtol=1e-5)


def test_the_untuned_side_of_a_tuned_model_is_the_model_before(make_model):
    plain = make_model("llama")
    tokens = some()
    wanted = gradient_norms(plain, tokens, "own")
    tuned = moved(attach(make_model("llama"), MethodConfig(rank=3), 0), by=0.3)
    np.testing.assert_allclose(gradient_norms(tuned.base(), tokens, "own"), wanted, rtol=1e-5)
    assert not np.allclose(gradient_norms(tuned, tokens, "own")[0], wanted[0], rtol=1e-3)
    # The adapter is on again afterwards.
    assert not np.allclose(collect(tuned, tokens).logprob, collect(plain, tokens).logprob, rtol=1e-3)


def test_at_its_first_values_only_b_has_gradients(make_model):
    model = attach(make_model("llama"), MethodConfig(rank=3), 0)
    tokens = some((12, 9))
    b = {n: p for n, p in weights_of(model, "tuned").items() if ".lora_B." in n}
    found = gradient_norms(model, tokens, "tuned")
    np.testing.assert_allclose(found, [plain_norm(model, t, b) for t in tokens], rtol=1e-5)
    assert (found > 0).all()


def test_norms_do_not_depend_on_company_order_or_padding(llama):
    tokens = some()
    found = gradient_norms(llama, tokens, "own")
    order = np.random.default_rng(0).permutation(len(tokens))
    np.testing.assert_allclose(gradient_norms(llama, [tokens[i] for i in order], "own"), found[order], rtol=1e-5)
    for i in (0, 1, 3):
        np.testing.assert_allclose(gradient_norms(llama, [tokens[i]], "own"), found[i : i + 1], rtol=1e-5)
    twice = gradient_norms(llama, [tokens[0], tokens[3], tokens[0]], "own")
    np.testing.assert_allclose(twice[0], twice[2], rtol=1e-6)


def test_a_record_longer_than_the_context_is_the_mean_over_its_pieces(make_model):
    model = make_model("llama", context=16)
    [long] = some_tokens((40,))
    weights = weights_of(model, "own")
    for p in weights.values():
        p.requires_grad_(True)
    pieces = list(long.pieces(16))
    total = sum(mean_loss(model, p) * int(p.target.sum()) for p in pieces) / int(long.target.sum())
    wanted = torch.cat([g.flatten() for g in torch.autograd.grad(total, list(weights.values()))]).norm()
    # Gradients of the pieces cancel in part, which norms from products of positions feel in the fifth digit.
    np.testing.assert_allclose(gradient_norms(model, [long, *some((9, 20))], "own")[0], float(wanted), rtol=1e-4)


def test_where_no_rule_fits_it_goes_one_at_a_time(llama, monkeypatch):
    tokens = some((12, 5, 20))
    wanted = gradient_norms(llama, tokens, "own")

    def refuse(*args, **kwargs):
        raise DPError("A module that no rule fits.", "")

    monkeypatch.setattr("sordino.dp.patched.Patched.forwards", refuse)
    np.testing.assert_allclose(gradient_norms(llama, tokens, "own"), wanted, rtol=1e-5)
    with pytest.raises(DPError), Clipper(llama.module, Clipping()):
        pass


def test_norms_of_the_engine_leave_no_sum_behind(make_model):
    model = make_model("llama")
    ids = torch.arange(3, 27).view(2, 12)

    def losses():
        logits = model.module(input_ids=ids, use_cache=False).logits[:, :-1]
        return torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none").mean(1)

    for mode in ("book-keeping", "two-backward", "one-by-one"):
        with Clipper(model.module, Clipping(), mode=mode) as clipper:
            norms = clipper.norms(losses, units=2)
            clipper.finish(None, 1.0)
            assert all(not p.grad.any() for p in clipper.parameters.values())
            torch.testing.assert_close(clipper.add(losses, units=2), norms)


# One step.


def stepped_by_hand(model, item, weights, rate):
    """Before and after, by changing the weights themselves and putting them back."""
    for p in weights.values():
        p.requires_grad_(True)
    before = mean_loss(model, item)
    found = torch.autograd.grad(before, list(weights.values()), allow_unused=True)
    kept = [p.detach().clone() for p in weights.values()]
    with torch.no_grad():
        for p, g in zip(weights.values(), found, strict=True):
            if g is not None:
                p.sub_(rate * g)
        after = mean_loss(model, item)
        for p, old in zip(weights.values(), kept, strict=True):
            p.copy_(old)
    return [float(before.detach()), float(after)]


@pytest.mark.parametrize("shape", ["llama", "gpt2"])
@pytest.mark.parametrize("kind", ["lora", "full"])
def test_the_step_is_a_real_one(make_model, shape, kind):
    method = MethodConfig(rank=3) if kind == "lora" else MethodConfig(kind="full")
    model = moved(attach(make_model(shape), method, 0))
    tokens = some()
    found = one_step(model, tokens, 0.05)
    weights = weights_of(model, "tuned")
    wanted = [stepped_by_hand(model, t, weights, 0.05) if t.target.any() else [np.nan] * 2 for t in tokens]
    np.testing.assert_allclose(found, wanted, rtol=2e-5, atol=1e-6)
    # Far enough that the first order would be seen to be wrong.
    norms = gradient_norms(model, tokens, "tuned")
    first_order = found[:, 0] - 0.05 * norms**2
    assert (np.nan_to_num(np.abs(found[:, 1] - first_order)) > 1e-3).any()


@pytest.mark.parametrize("kind", ["prefix", "bitfit", "adapters"])
def test_a_step_of_what_other_methods_tune(make_model, kind):
    model = moved(attach(make_model("llama"), MethodConfig(kind=kind), 0))
    tokens = some((12, 5, 20))
    weights = weights_of(model, "tuned")
    wanted = [stepped_by_hand(model, t, weights, 0.05) for t in tokens]
    np.testing.assert_allclose(one_step(model, tokens, 0.05), wanted, rtol=2e-5)


def test_a_model_that_cannot_be_many_at_once_steps_one_by_one(make_model, monkeypatch):
    model = moved(attach(make_model("llama"), MethodConfig(rank=3), 0))
    tokens = some((12, 5, 20))
    wanted = one_step(model, tokens, 0.05)

    def fail(*args, **kwargs):
        raise RuntimeError("no batching rule")

    monkeypatch.setattr("sordino.audit.whitebox.vmap", fail)
    np.testing.assert_allclose(one_step(model, tokens, 0.05), wanted, rtol=2e-5)
    np.testing.assert_allclose(one_step(model, tokens[::-1], 0.05), wanted[::-1], rtol=2e-5)


def test_a_step_on_many_that_is_wrong_is_not_believed(make_model, monkeypatch):
    import sordino.audit.whitebox as module

    model = moved(attach(make_model("llama"), MethodConfig(rank=3), 0))
    tokens = some((12, 5, 20))
    wanted, true = one_step(model, tokens, 0.05), module.vmap

    def wrong(function, dims=0, **kwargs):
        made = true(function, dims, **kwargs)
        # As an architecture would that looks at its batch: the loss after comes out a little off.
        return made if dims == (None, 0, 0) else lambda *args: made(*args) * 1.01

    monkeypatch.setattr(module, "vmap", wrong)
    np.testing.assert_allclose(one_step(model, tokens, 0.05), wanted, rtol=2e-5)


def test_memorised_records_have_small_gradients_and_little_to_learn(make_model):
    model = attach(make_model("llama"), MethodConfig(rank=8), 0)
    tokens = some_tokens((20,) * 40, prompts=False)
    member = np.arange(40) % 2 == 0
    start = gradient_norms(model, tokens, "own"), one_step(model, tokens, 1e-3)
    learn(model, [t for t, inside in zip(tokens, member, strict=True) if inside])
    for part in ("own", "tuned"):
        assert auc(-gradient_norms(model, tokens, part), member) > 0.8
    before, after = one_step(model, tokens, 1e-3).T
    assert auc(after / before, member) > 0.8
    # And nothing is there before training, or with the adapter off.
    assert abs(auc(-start[0], member) - 0.5) < 0.3
    np.testing.assert_allclose(gradient_norms(model.base(), tokens, "own"), start[0], rtol=1e-4)


def learn(model, tokens, steps=60):
    ids = torch.from_numpy(np.stack([t.ids for t in tokens]).astype(np.int64))
    own = list(weights_of(model, "tuned").values())
    optimizer = torch.optim.AdamW(own, lr=1e-2)
    for _ in range(steps):
        logits = model.module(input_ids=ids, use_cache=False).logits[:, :-1]
        loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), ids[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def test_a_model_of_whole_numbers_has_no_gradients(make_model):
    model = make_model("llama")
    bare = torch.nn.Module()
    bare.register_parameter("weight", torch.nn.Parameter(torch.ones(2, dtype=torch.int8), requires_grad=False))
    with pytest.raises(AuditError, match="no weights that a gradient"):
        weights_of(replace(model, module=bare), "own")


def test_losses_before_the_step_are_those_of_the_signals(llama):
    tokens = some()
    made = collect(llama, tokens)
    wanted = -Ragged(made.logprob, made.offsets).mean()
    np.testing.assert_allclose(one_step(llama, tokens, 1e-3)[:, 0], wanted, rtol=1e-5)


def test_an_empty_list_is_no_error(llama):
    nothing = Tokens(ids=np.array([3], np.int32), target=np.array([False]), text="")
    assert gradient_norms(llama, [], "own").shape == (0,)
    assert np.isnan(one_step(llama, [nothing], 1e-3)).all()
