"""The fused pass against brute force: a record at a time, whole logits, float64."""

import json
import math
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sordino import collect as collecting
from sordino.collect import collect, token_statistics
from sordino.config import MethodConfig, ModelConfig
from sordino.model import Model, attach
from sordino.serialize import Tokens
from sordino.signals import Statistics

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "membership_scores.json").read_text(encoding="utf-8"))
NAMES = ("logprob", "mean", "variance", "rank", "top")


def brute(logits, targets):
    """The definitions, in float64, a row at a time."""
    rows = []
    for row, target in zip(logits.double(), targets.tolist(), strict=True):
        finite = row[row > -math.inf]
        logp = finite - torch.logsumexp(finite, 0)
        mean = (logp.exp() * logp).sum()
        variance = (logp.exp() * (logp - mean) ** 2).sum()
        own = row[target] - torch.logsumexp(finite, 0)
        rows.append((float(own), float(mean), float(variance), int((row > row[target]).sum()), int(row.argmax())))
    return [np.array(column) for column in zip(*rows, strict=True)]


def near(found, expected, tolerance, names=NAMES):
    for name, a, b in zip(names, found, expected, strict=True):
        if name in ("rank", "top"):
            np.testing.assert_array_equal(np.asarray(a), b, err_msg=name)
        else:
            np.testing.assert_allclose(np.asarray(a), b, rtol=tolerance, atol=tolerance, err_msg=name)


@pytest.fixture
def logits():
    generator = torch.Generator().manual_seed(5)
    return torch.randn(40, 97, generator=generator, dtype=torch.float64) * 4


@pytest.fixture
def targets():
    return torch.randint(0, 97, (40,), generator=torch.Generator().manual_seed(6))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_statistics_are_their_definitions(logits, targets, dtype, tolerance):
    near(token_statistics(logits.clone().to(dtype), targets), brute(logits, targets), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-5)])
@pytest.mark.parametrize("which", ["target", "reference"])
def test_statistics_are_the_golden_ones(dtype, tolerance, which):
    inputs = GOLDEN["inputs"]
    mask, ids = np.array(inputs["attention_mask"]), torch.tensor(inputs["ids"])
    for row, expected in enumerate(GOLDEN["token_stats"][which]):
        scored = np.flatnonzero(mask[row, :-1] & mask[row, 1:])
        logits = torch.tensor(inputs[f"{which}_logits"][row], dtype=dtype)[scored]
        names = ("logprob", "mean_logprob", "var_logprob", "rank", "top1_id")
        near(token_statistics(logits, ids[row, scored + 1]), [np.array(expected[n]) for n in names], tolerance)


@pytest.mark.parametrize("constant", [512.0, -4096.0])
def test_a_constant_added_to_the_logits_changes_nothing(logits, targets, constant):
    # Logits on a grid of 1/64 hold the constant exactly, even in float32.
    grid = (logits * 64).round() / 64
    for dtype in (torch.float32, torch.float64):
        plain = token_statistics(grid.to(dtype), targets)
        for a, b in zip(token_statistics((grid + constant).to(dtype), targets), plain, strict=True):
            assert torch.equal(a, b)


def test_a_large_constant_in_float64(logits, targets):
    near(token_statistics(logits + 1e5, targets), brute(logits, targets), 1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_logits_have_no_weight(logits, targets, dtype):
    # Tokens a model never says, such as the padding of its vocabulary.
    logits[:20, 60:] = -math.inf
    logits[torch.arange(40), targets] = logits[torch.arange(40), targets].clamp_min(-9)
    near(token_statistics(logits.clone().to(dtype), targets), brute(logits, targets), 2e-5)


def test_an_impossible_target_is_very_surprising_but_finite_and_nothing_else(logits, targets):
    logits[0, targets[0]] = -math.inf
    found = token_statistics(logits.clone(), targets)
    expected = brute(logits, targets)
    near([c[1:] for c in found], [c[1:] for c in expected], 1e-9)
    near([c[:1] for c in found[1:]], [c[:1] for c in expected[1:]], 1e-9, names=NAMES[1:])
    assert -2e4 < float(found[0][0]) < -9e3
    assert int(found[3][0]) == 96


def test_a_certain_token_has_no_variance():
    logits = torch.full((1, 10), -80.0)
    logits[0, 3] = 80.0
    logprob, mean, variance, rank, top = token_statistics(logits, torch.tensor([3]))
    assert [float(x) for x in (logprob, mean, variance)] == [0.0, 0.0, 0.0]
    assert (int(rank), int(top)) == (0, 3)


def test_of_likeliest_tokens_that_tie_the_first_is_named_and_none_is_above(logits, targets):
    for dtype in (torch.float32, torch.float64):
        tied = logits.clone().to(dtype)
        tied[:, [20, 50, 90]] = tied.max() + 1
        found = token_statistics(tied.clone(), torch.full((40,), 50))
        near(found, brute(tied, torch.full((40,), 50)), 2e-5)
        assert set(found[3].tolist()) == {0}
        assert set(found[4].tolist()) == {20}


def test_half_precision_is_reduced_in_float32(logits, targets):
    half = logits.to(torch.bfloat16)
    near(token_statistics(half.clone(), targets), brute(half, targets), 2e-5)


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
        monkeypatch.setitem(collecting._BATCH_TOKENS, "cpu", budget)
        assert_close(collect(model, tokens), whole)
    monkeypatch.setitem(collecting._CHUNK_BYTES, "cpu", 1)
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
    monkeypatch.setitem(collecting._CHUNK_BYTES, "cpu", 64 * 4 * 2048)
    tokens = some_tokens((60,) * 8, prompts=False)
    with Largest(2048) as seen:
        made = collect(model, tokens)
    assert len(made.logprob) == 8 * 59
    assert 0 < seen.rows <= 64
