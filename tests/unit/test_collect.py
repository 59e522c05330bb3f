"""The fused pass against brute force: a record at a time, whole logits, float64."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from brute_statistics import NAMES, brute, near
from torch.utils._python_dispatch import TorchDispatchMode

from sordino import collect as collecting
from sordino import reduction
from sordino.collect import collect, collect_drawn, drawn, likeliest
from sordino.config import MethodConfig, ModelConfig
from sordino.decoding import Decoding, decoding_logprob
from sordino.model import Model, attach
from sordino.serialize import Tokens
from sordino.signals import Statistics


def some_tokens(lengths=(30, 3, 17, 60, 8, 1, 45, 17, 2, 33), seed=0, prompts=True):
    rng = np.random.default_rng(seed)
    made = []
    for number, length in enumerate(lengths):
        target = np.ones(length, dtype=bool)
        target[: max(1, length // 3) if prompts and number % 2 else 1] = False
        ids = rng.integers(3, 2048, length).astype(np.int32)
        made.append(Tokens(ids=ids, target=target, text=f"text {number}"))
    return made


def brute_collect(model, tokens):
    columns = []
    with torch.no_grad():
        for item in tokens:
            where = np.flatnonzero(item.target)
            if len(where):
                ids = torch.from_numpy(item.ids.astype(np.int64))
                logits = model.module(input_ids=ids[None]).logits[0]
                columns.append(brute(logits[where - 1], ids[where]))
    return [np.concatenate(column) for column in zip(*columns, strict=True)]


def columns_of(statistics):
    return [getattr(statistics, name) for name in NAMES]


def record_of(statistics, number):
    return columns_of(statistics.select([number]))


def assert_close(a, b, tolerance=1e-5):
    for field in fields(Statistics):
        x, y = getattr(a, field.name), getattr(b, field.name)
        if field.name in ("logprob", "mean", "variance"):
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance, err_msg=field.name)
        else:
            np.testing.assert_array_equal(x, y, err_msg=field.name)


def test_every_shape_of_model_equals_a_record_at_a_time(model):
    tokens = some_tokens()
    done = []
    made = collect(model, tokens, tick=done.append)
    near(columns_of(made), brute_collect(model, tokens), 2e-5)
    assert np.diff(made.offsets).tolist() == [int(t.target.sum()) for t in tokens]
    assert made.position.tolist() == [i for t in tokens for i in np.flatnonzero(t.target)]
    assert made.token.tolist() == [i for t in tokens for i in t.ids[t.target]]
    assert sum(done) == len(tokens)
    assert made.logprob.dtype == np.float32


def test_padding_order_and_company_change_nothing(model, monkeypatch):
    tokens = some_tokens()
    whole = collect(model, tokens)
    for number, item in enumerate(tokens):
        assert_close(collect(model, [item]), whole.select([number]))
    order = np.random.default_rng(1).permutation(len(tokens)).tolist()
    assert_close(collect(model, [tokens[i] for i in order]), whole.select(order))
    for budget in (1, 100):
        monkeypatch.setitem(collecting.BATCH_TOKENS, "cpu", budget)
        assert_close(collect(model, tokens), whole)
    monkeypatch.setitem(reduction._PIECE_BYTES, "cpu", 1)
    assert_close(collect(model, tokens), whole)


def test_duplicates_score_the_same(llama):
    tokens = some_tokens(lengths=(20, 41, 7))
    made = collect(llama, [*tokens, *some_tokens(seed=3), *tokens])
    count = len(made.offsets) - 1
    assert_close(made.select([0, 1, 2]), made.select([count - 3, count - 2, count - 1]))


@pytest.mark.parametrize("lengths", [(), (0,), (1,), (0, 12, 1, 0), (5, 0, 0)])
def test_records_without_anything_to_score_have_no_rows(llama, lengths):
    tokens, done = some_tokens(lengths, prompts=False), []
    made = collect(llama, tokens, tick=done.append)
    assert sum(done) == len(lengths)
    assert np.diff(made.offsets).tolist() == [max(0, n - 1) for n in lengths]
    full = [t for t in tokens if len(t) > 1]
    assert_close(replace(made, offsets=collect(llama, full).offsets), collect(llama, full))


def test_only_targets_are_scored(llama):
    item = some_tokens((30,))[0]
    target = np.zeros(30, dtype=bool)
    target[[4, 5, 17, 29]] = True
    made = collect(llama, [replace(item, target=target)])
    everything = collect(llama, [item])
    assert made.position.tolist() == [4, 5, 17, 29]
    np.testing.assert_allclose(made.logprob, everything.logprob[[3, 4, 16, 28]], atol=1e-5)


@pytest.mark.parametrize("length", [65, 97, 160, 200])
def test_long_documents_score_each_token_once_with_half_a_context_before_it(make_model, length):
    context = 64
    model = make_model("gpt2", context=context)
    item = some_tokens((length,))[0]
    made = collect(model, [item])
    assert made.position.tolist() == list(range(1, length))
    # What every window of a whole context would say about each of its tokens.
    ids = torch.from_numpy(item.ids.astype(np.int64))
    starts = range(length - context + 1)
    with torch.no_grad():
        logits = model.module(input_ids=torch.stack([ids[a : a + context] for a in starts])).logits
    logp = torch.log_softmax(logits.double(), -1)
    for position, found in zip(made.position.tolist(), made.logprob.tolist(), strict=True):
        fair = [a for a in starts if a < position < a + context and (a == 0 or position - a >= context // 2)]
        said = [float(logp[a, position - a - 1, ids[position]]) for a in fair]
        assert min(abs(found - value) for value in said) < 1e-5, position


def test_long_documents_do_not_disturb_short_ones(llama):
    short = some_tokens((20, 33))
    long = some_tokens((300,), seed=2)
    assert_close(collect(llama, [short[0], long[0], short[1]]).select([0, 2]), collect(llama, short))


def adapted(model, targets, seed=3):
    tuned = attach(model, MethodConfig(rank=4, targets=targets), seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in tuned.module.named_parameters():
            if "lora_B" in name:
                weight.copy_(torch.randn(weight.shape, generator=generator) * 0.1)
    return tuned


@pytest.mark.parametrize("targets", ["lm_head", "q_proj", "all-linear"])
def test_an_adapter_changes_results_and_switched_off_changes_none(make_model, targets):
    model, tokens = make_model("llama"), some_tokens()
    before = collect(model, tokens)
    tuned = adapted(model, targets)
    after = collect(tuned, tokens)
    assert np.abs(after.logprob - before.logprob).max() > 0.05
    near(columns_of(after), brute_collect(tuned, tokens), 2e-5)
    base = collect(tuned.base(), tokens)
    for field in fields(Statistics):
        np.testing.assert_array_equal(getattr(base, field.name), getattr(before, field.name))


def odd_model(kind, tokenizer):
    import transformers

    common = {
        "vocab_size": 2048, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "initializer_range": 0.5,
    }  # fmt: skip
    torch.manual_seed(0)
    if kind == "gemma2":
        config = transformers.Gemma2Config(
            **common, head_dim=8, final_logit_softcapping=3.0, attn_implementation="eager"
        )
        module = transformers.Gemma2ForCausalLM(config)
    else:
        config = transformers.GraniteConfig(**common, logits_scaling=8.0)
        module = transformers.GraniteForCausalLM(config)
    return Model(module=module.eval(), tokenizer=tokenizer, config=ModelConfig(device="cpu"))


@pytest.mark.parametrize("kind", ["gemma2", "granite"])
def test_logits_changed_behind_the_head_are_the_ones_that_count(kind, tokenizer):
    model, tokens = odd_model(kind, tokenizer), some_tokens()
    made = collect(model, tokens)
    near(columns_of(made), brute_collect(model, tokens), 2e-5)
    # The head alone would say something else: the fallback was needed, and taken.
    with torch.no_grad():
        ids = torch.from_numpy(tokens[0].ids.astype(np.int64))
        raw = model.module.get_output_embeddings()(model.module.model(input_ids=ids[None]).last_hidden_state)[0]
    bare = brute(raw[:-1], ids[1:])[0]
    assert np.abs(made.select([0]).logprob - bare).max() > 0.5


class Largest(TorchDispatchMode):
    """Remembers the most rows that any result as wide as the vocabulary had."""

    def __init__(self, vocabulary):
        super().__init__()
        self.vocabulary, self.rows = vocabulary, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if isinstance(out, torch.Tensor) and out.ndim and out.shape[-1] == self.vocabulary:
            self.rows = max(self.rows, out.numel() // self.vocabulary)
        return out


def test_logits_are_never_all_there_at_once(model, monkeypatch):
    monkeypatch.setitem(reduction._PIECE_BYTES, "cpu", 64 * 4 * 2048)
    tokens = some_tokens((60,) * 8, prompts=False)
    with Largest(2048) as seen:
        made = collect(model, tokens)
    assert len(made.logprob) == 8 * 59
    assert 0 < seen.rows <= 64


# Records after a prefix, and the likeliest tokens.

FAMILIES = ("llama", "gpt2", "gpt_neox", "qwen2", "qwen3", "mistral", "opt", "gemma", "gemma2")


def joined(prefix, tokens):
    """Each record with the prefix in front, nothing of which is scored."""
    return [
        replace(
            t, ids=np.concatenate([prefix, t.ids]), target=np.concatenate([np.zeros(len(prefix), dtype=bool), t.target])
        )
        for t in tokens
    ]


def same_numbers(model, prefix, tokens):
    found, plain = collect(model, tokens, after=prefix), collect(model, joined(prefix, tokens))
    for name in ("logprob", "mean", "variance"):
        np.testing.assert_allclose(getattr(found, name), getattr(plain, name), rtol=1e-5, atol=1e-5)
    for name in ("token", "position", "top", "offsets"):
        shift = len(prefix) if name == "position" else 0
        np.testing.assert_array_equal(getattr(found, name) + shift, getattr(plain, name))
    # Of tokens that are equally likely to the last bit, either may be first.
    assert np.abs(found.rank - plain.rank).max() <= 1


@pytest.mark.parametrize("shape", FAMILIES)
def test_after_a_prefix_is_plain_concatenation(make_model, shape, monkeypatch):
    model = make_model(shape)
    kept = []
    follow = collecting.Head.follow
    monkeypatch.setattr(collecting.Head, "follow", lambda *args: kept.append(follow(*args)) or kept[-1])
    same_numbers(model, np.arange(5, 25, dtype=np.int32), some_tokens((30, 3, 17, 9, 1, 44)))
    assert kept == [True], "the prefix was read again for every record"


@pytest.mark.parametrize("kind", ["lora", "prefix", "prompt", "bitfit"])
def test_after_a_prefix_with_every_kind_of_tuning(make_model, kind):
    more = {"virtual_tokens": 4} if kind in ("prefix", "prompt") else {}
    model = attach(make_model("llama", seed=2), MethodConfig(kind=kind, **more), 0)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    same_numbers(model, np.arange(5, 15, dtype=np.int32), some_tokens((20, 3, 17, 9)))
    same_numbers(model.base(), np.arange(5, 15, dtype=np.int32), some_tokens((20, 3, 17, 9)))


def test_where_no_cache_gives_the_same_the_prefix_is_read_again(llama, monkeypatch):
    prefix, tokens = np.arange(5, 25, dtype=np.int32), some_tokens((30, 3, 17))
    plain = collect(llama, joined(prefix, tokens))

    def wrong(self, ids, mask, _forward=collecting.Head._forward):
        made = _forward(self, ids, mask)
        return made if self.past is None else made + torch.arange(made.shape[-1])

    monkeypatch.setattr(collecting.Head, "_forward", wrong)
    found = collect(llama, tokens, after=prefix)
    np.testing.assert_allclose(found.logprob, plain.logprob, rtol=1e-5, atol=1e-5)


def test_a_window_on_attention_is_kept(make_model):
    model = make_model("mistral", seed=5)
    model.module.config.sliding_window = 16
    same_numbers(model, np.arange(5, 25, dtype=np.int32), some_tokens((30, 3, 17)))


def test_the_likeliest_tokens_are_those_of_whole_logits(model):
    tokens = some_tokens((20, 1, 7, 80))
    ids, logs = likeliest(model, tokens, 4)
    row = 0
    with torch.no_grad():
        for item in tokens[:3]:
            whole = model.module(input_ids=torch.from_numpy(item.ids.astype(np.int64))[None]).logits[0]
            logp = torch.log_softmax(whole, dim=-1)
            for place in np.flatnonzero(item.target):
                best = logp[place - 1].topk(4)
                np.testing.assert_array_equal(ids[row], best.indices)
                np.testing.assert_allclose(logs[row], best.values, rtol=1e-4, atol=1e-4)
                row += 1
    assert len(ids) == sum(int(t.target.sum()) for t in tokens)


def test_what_a_sampler_draws_is_told_for_every_target(model):
    tokens = some_tokens()
    grid = [Decoding(temperature=0), Decoding(temperature=0.7, top_k=40), Decoding(top_p=0.9), Decoding()]
    found, wanted = drawn(model, tokens, grid), []
    with torch.no_grad():
        for item in tokens:
            where, ids = np.flatnonzero(item.target), torch.from_numpy(item.ids.astype(np.int64))
            logits = model.module(input_ids=ids[None]).logits[0][where - 1]
            wanted.append(decoding_logprob(logits, ids[where], grid).numpy())
    np.testing.assert_allclose(found, np.concatenate(wanted), atol=1e-4)
    # Drawn from all tokens at temperature 1, a token is as likely as the model says.
    np.testing.assert_allclose(found[:, 3], collect(model, tokens).logprob, atol=1e-4)
    assert 0 < np.isfinite(found[:, 1]).sum() < len(found)


def test_one_pass_gives_statistics_and_what_is_drawn_as_two_do(model):
    tokens, grid = some_tokens(), [Decoding(temperature=0.7, top_k=40), Decoding(top_p=0.9)]
    statistics, found = collect_drawn(model, tokens, grid)
    np.testing.assert_array_equal(found, drawn(model, tokens, grid))
    for name, column in collect(model, tokens).present().items():
        np.testing.assert_array_equal(statistics.present()[name], column, err_msg=name)
