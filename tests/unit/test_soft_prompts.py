"""Soft prompts: trained with the model frozen, and the same likelihoods as concatenated embeddings give."""

import dataclasses

import numpy as np
import pytest
import torch

from sordino.attacks.soft_prompts import SoftPrompt, continue_after, logprobs_after, suffix_loss, train_soft_prompt
from sordino.config import MethodConfig
from sordino.errors import AuditError, ConfigError, ModelError
from sordino.model import attach

WIDTH = 32


def ids(*numbers):
    return np.array(numbers, dtype=np.int32)


PREFIXES = [ids(0, 5, 6, 7), ids(0, 5, 6, 7), ids(0, 9), ids(), ids(0, 9), ids(0, 5, 6, 7)]
SUFFIXES = [ids(8, 9), ids(10), ids(11, 12, 13), ids(14, 15), ids(16, 17, 18, 19, 20), ids(8, 9, 10)]


@pytest.fixture(scope="module")
def soft():
    return SoftPrompt(vectors=np.random.default_rng(0).normal(0, 0.2, (3, WIDTH)).astype(np.float32))


def brute(model, vectors, prefix, suffix, *, whole=False):
    """The ln p of each token of a suffix, one row at a time: embeddings put together by hand."""
    both = torch.from_numpy(np.concatenate([prefix, suffix]).astype(np.int64))
    with torch.set_grad_enabled(whole):
        after = model.module.get_input_embeddings()(both)
        logits = model.module(inputs_embeds=torch.cat([vectors, after])[None]).logits[0]
        table = torch.log_softmax(logits.double() if not whole else logits, dim=-1)
    at = len(vectors) - 1 + len(prefix)
    return torch.stack([table[at + i, int(token)] for i, token in enumerate(suffix)])


def test_likelihoods_are_those_of_concatenated_embeddings(model, soft):
    found = logprobs_after(model, soft, PREFIXES, SUFFIXES)
    vectors = torch.from_numpy(soft.vectors)
    expected = [float(brute(model, vectors, *pair).sum()) for pair in zip(PREFIXES, SUFFIXES, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_a_window_on_attention_is_read_whole(make_model, soft):
    windowed = make_model("mistral")
    windowed.module.config.sliding_window = 4
    prefixes = [np.arange(0, 12, dtype=np.int32)] * 3
    found = logprobs_after(windowed, soft, prefixes, SUFFIXES[:3])
    expected = [float(brute(windowed, torch.from_numpy(soft.vectors), prefixes[0], s).sum()) for s in SUFFIXES[:3]]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_greedy_decoding_takes_the_likeliest_token_each_time(model, soft):
    lengths = [4, 2, 5, 3, 0, 1]
    made = continue_after(model, soft, PREFIXES, lengths)
    vectors = torch.from_numpy(soft.vectors)
    for prefix, length, row in zip(PREFIXES, lengths, made, strict=True):
        said = list(prefix)
        for _ in range(length):
            with torch.no_grad():
                after = model.module.get_input_embeddings()(torch.tensor(said, dtype=torch.int64))
                said.append(int(model.module(inputs_embeds=torch.cat([vectors, after])[None]).logits[0, -1].argmax()))
        assert row.tolist() == said[len(prefix) :]


@pytest.mark.parametrize(("alpha", "count"), [(0.0, 5), (0.7, 2), (0.7, 50)])
def test_the_smoothing_loss_is_its_formula(alpha, count):
    rows = [[3.0, 1.0, 2.0], [0.5], [4.0, 4.0, 0.25, 1.0]]
    plain = sum(sum(row) / len(row) for row in rows) / len(rows)
    top = [sorted(row, reverse=True)[:count] for row in rows]
    extra = sum(sum(row) / len(row) for row in top) / len(rows)
    found = suffix_loss([torch.tensor(row, dtype=torch.float64) for row in rows], alpha, count)
    assert float(found) == pytest.approx(plain + alpha * extra)


@pytest.mark.parametrize("smoothing", [0.0, 0.7])
def test_one_step_is_a_step_of_adam_on_the_gradient_by_hand(llama, smoothing):
    pairs = list(zip(PREFIXES, SUFFIXES, strict=True))
    settings = {"tokens": 3, "learning_rate": 0.01, "batch_size": 6, "smoothing": smoothing, "smoothing_tokens": 2}
    one, two = (train_soft_prompt(llama, pairs, steps=n, seed=4, **settings) for n in (1, 2))
    # Adam's first step is the rate, against the sign of the gradient, which is that of the loss at the start.
    known = np.concatenate([part for pair in pairs for part in pair])
    drawn = train_soft_prompt(llama, pairs, steps=1, seed=4, **settings | {"learning_rate": 1e-30})
    start = torch.from_numpy(drawn.vectors)
    rows = llama.module.get_input_embeddings().weight.detach()
    assert all((rows[known.astype(np.int64)] == vector).all(dim=1).any() for vector in start)
    start.requires_grad_(True)
    loss = torch.zeros(())
    for prefix, suffix in pairs:
        each = -brute(llama, start, prefix, suffix, whole=True)
        top = torch.stack(sorted(each, reverse=True)[:2])
        loss = loss + (each.mean() + smoothing * top.mean()) / len(pairs)
    loss.backward()
    assert one.losses[0] == pytest.approx(float(loss.detach()), rel=1e-5)
    moved = torch.from_numpy(one.vectors) - start.detach()
    clear = start.grad.abs() > 1e-5
    assert clear.float().mean() > 0.9
    torch.testing.assert_close(moved[clear], -0.01 * start.grad.sign()[clear], rtol=0.05, atol=1e-5)
    assert two.losses[0] == one.losses[0] > two.losses[1]


def test_a_prompt_learns_what_the_frozen_model_does_not_say(make_model):
    model = make_model("llama", seed=2)
    model.module.requires_grad_(True)
    before, pairs = model.digest(), list(zip(PREFIXES, SUFFIXES, strict=True))
    done = []
    made = train_soft_prompt(model, pairs, tokens=8, steps=40, learning_rate=0.1, batch_size=4, tick=done.append)
    again = train_soft_prompt(model, pairs, tokens=8, steps=40, learning_rate=0.1, batch_size=4)
    np.testing.assert_array_equal(made.vectors, again.vectors)
    assert model.digest() == before and sum(done) == len(made.losses) == 40
    assert all(p.requires_grad and p.grad is None for p in model.module.parameters())
    first = SoftPrompt(vectors=np.zeros((8, WIDTH), dtype=np.float32))
    told, untold = (logprobs_after(model, one, PREFIXES, SUFFIXES).sum() for one in (made, first))
    assert told > untold + 10
    other = train_soft_prompt(model, pairs, tokens=8, steps=2, seed=1)
    assert not np.array_equal(other.vectors, train_soft_prompt(model, pairs, tokens=8, steps=2, seed=2).vectors)


METHODS = {
    "lora": MethodConfig(), "bitfit": MethodConfig(kind="bitfit"), "adapters": MethodConfig(kind="adapters"),
    "prompt": MethodConfig(kind="prompt", virtual_tokens=4), "prefix": MethodConfig(kind="prefix", virtual_tokens=4),
}  # fmt: skip


@pytest.mark.parametrize("kind", METHODS)
def test_tuned_or_not_is_heeded_whatever_the_method(make_model, soft, kind):
    plain = make_model("gpt2", seed=5)  # which has biases
    wanted = logprobs_after(plain, soft, PREFIXES, SUFFIXES)
    said = continue_after(plain, soft, PREFIXES[:3], [4, 4, 4])
    pairs = list(zip(PREFIXES, SUFFIXES, strict=True))
    trained = train_soft_prompt(plain, pairs, tokens=2, steps=3)
    model = attach(make_model("gpt2", seed=5), METHODS[kind], seed=0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))
    assert np.abs(logprobs_after(model, soft, PREFIXES, SUFFIXES) - wanted).min() > 1e-3
    asking = [p.requires_grad for p in model.module.parameters()]
    train_soft_prompt(model, pairs, tokens=2, steps=2)
    base = dataclasses.replace(model, tuned=False)
    np.testing.assert_allclose(logprobs_after(base, soft, PREFIXES, SUFFIXES), wanted, rtol=1e-5, atol=1e-4)
    assert [row.tolist() for row in continue_after(base, soft, PREFIXES[:3], [4, 4, 4])] == [r.tolist() for r in said]
    np.testing.assert_allclose(train_soft_prompt(base, pairs, tokens=2, steps=3).vectors, trained.vectors, atol=1e-5)
    assert [p.requires_grad for p in model.module.parameters()] == asking
    # Virtual tokens stand before the soft prompt, in a cache as in a whole row.
    some = [i for i in range(6) if i != 3]
    each = [logprobs_after(model, soft, [PREFIXES[i]], [SUFFIXES[i]])[0] for i in some]
    together = logprobs_after(model, soft, [PREFIXES[i] for i in some], [SUFFIXES[i] for i in some])
    np.testing.assert_allclose(together, each, rtol=1e-4, atol=1e-3)


class Deaf(torch.nn.Module):
    """A model that reads token ids alone."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.config = inner, inner.config

    def forward(self, input_ids=None, attention_mask=None):
        return self.inner(input_ids=input_ids, attention_mask=attention_mask)


def test_what_cannot_be_meant_is_refused(llama, soft, make_model):
    pairs = [(ids(0, 5), ids(6, 7))]
    deaf = dataclasses.replace(llama, module=Deaf(llama.module))
    with pytest.raises(ModelError, match=r"Deaf takes no embeddings \(inputs_embeds\)"):
        train_soft_prompt(deaf, pairs)
    with pytest.raises(ModelError, match="takes no embeddings"):
        continue_after(deaf, soft, [ids(0)], [1])
    for name, value in [("tokens", 0), ("steps", 0), ("learning_rate", 0.0), ("batch_size", 0), ("smoothing", -0.1),
                        ("smoothing_tokens", 0)]:  # fmt: skip
        with pytest.raises(ConfigError, match=f"{name} of a soft prompt is {value}"):
            train_soft_prompt(llama, pairs, **{name: value})
    with pytest.raises(ConfigError, match="no pairs"):
        train_soft_prompt(llama, [])
    with pytest.raises(ConfigError, match="1 of 1 suffixes are empty"):
        train_soft_prompt(llama, [(ids(0), ids())])
    with pytest.raises(ConfigError, match="A soft prompt of 20 tokens and 45 more do not fit into 64"):
        train_soft_prompt(llama, [(ids(*range(40)), ids(*range(5)))])
    with pytest.raises(ConfigError, match="3 tokens and 62 more do not fit"):
        continue_after(llama, soft, [ids(0, 1)], [60])
    with pytest.raises(ConfigError, match="1 suffixes were given after 2 prefixes"):
        logprobs_after(llama, soft, [ids(0), ids(0)], [ids(1)])
    broken = make_model("llama")
    with torch.no_grad():
        broken.module.lm_head.weight[6] = float("nan")
    with pytest.raises(AuditError, match=r"The loss of the soft prompt is nan at step 1 of 9\."):
        train_soft_prompt(broken, pairs, steps=9)
    assert logprobs_after(llama, soft, [], []).shape == (0,)
