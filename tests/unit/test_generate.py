"""Generation against transformers and plain forward passes: families, methods, company, seeds, and what ends it."""

import copy
import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dp_models import METHODS, prepared
from generate_fixtures import FAMILIES, STUBBORN, by_forwards, family, some_requests

from sordino.classifier import Classes
from sordino.decoding import Decoding
from sordino.errors import ConfigError, ModelError
from sordino.generate import Request, decaying, generate, greedy, sampled
from sordino.generate.probe import Probe
from sordino.generate.slots import Slots

FILTERED = Decoding(temperature=1.3, top_k=40, top_p=0.9)


@pytest.fixture(scope="module", params=FAMILIES)
def case(request, make_model, tokenizer):
    return request.param, family(make_model, tokenizer, request.param)


def by_transformers(model, request):
    ids = torch.from_numpy(request.prefix.astype(np.int64))[None]
    with torch.inference_mode():
        made = model.module.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=request.length,
            pad_token_id=2,
        )  # fmt: skip
    return made[0, ids.shape[1] :].tolist()


def test_greedy_decoding_is_that_of_transformers_and_the_logs_those_of_the_whole_text(case):
    name, model = case
    requests = some_requests(5, end=True)
    ticks = []
    made = generate(model, requests, rows=2, tick=ticks.append)
    assert sum(ticks) == 5
    for request, one in zip(requests, made, strict=True):
        assert one.ids.tolist() == by_transformers(model, request)
        told = np.concatenate([request.prefix, one.ids]).astype(np.int64)
        with model.active() as module:
            logs = torch.log_softmax(module(input_ids=torch.from_numpy(told)[None]).logits[0].double(), -1)
        own = logs[len(request.prefix) - 1 : -1].gather(1, torch.from_numpy(told[len(request.prefix) :])[:, None])
        np.testing.assert_allclose(one.logprob, own[:, 0], rtol=0, atol=1e-4)
        assert one.ids.dtype == np.int32 and one.logprob.dtype == np.float32
    with model.active() as module:
        probe = Probe(module, 31, 2048, model.device)
        for common in (False, True):
            assert (probe.slots(common=common) is None) == (name in STUBBORN)
        # Mamba has states, but not under the name of a cache: it reads everything again.
        assert probe.own_cache() == (name != "mamba")


def test_company_changes_nothing(case):
    _, model = case
    requests = [*some_requests(2), *some_requests(3, 1, decoding=FILTERED), *some_requests(1, 2, decoding=decaying())]
    together = generate(model, requests, seed=5, rows=3)
    for request, one in zip(requests, together, strict=True):
        [alone] = generate(model, [request], seed=5)
        assert one.ids.tolist() == alone.ids.tolist() and one.text == alone.text and one.finished == alone.finished
        np.testing.assert_allclose(one.logprob, alone.logprob, rtol=0, atol=1e-4)


# Where attention has a window, it matters whether a method puts keys and values before the text, or not.
@pytest.mark.parametrize(
    ("shape", "method"),
    [
        pytest.param(s, m, marks=pytest.mark.slow if s == "windowed" and m in ("dora", "ia3", "bitfit") else ())
        for s in ("gpt2", "llama", "windowed")
        for m in ("lora", "dora", "prefix", "prompt", "ia3", "bitfit", "adapters")
    ],
)
def test_every_method_writes_what_plain_forward_passes_give(make_model, tokenizer, shape, method):
    untuned = family(make_model, tokenizer, shape)
    module = prepared(untuned, method, torch.float32)
    model = dataclasses.replace(untuned, module=module, method=METHODS[method])
    requests = [*some_requests(2), *some_requests(2, 1, decoding=FILTERED)]
    base = {"windowed": by_forwards(untuned, requests[0])}
    for which in (model, model.base()) if method in ("prefix", "prompt", "lora") else (model,):
        made = generate(which, requests, seed=3, rows=2)
        for request, one in zip(requests, made, strict=True):
            ids, logs = by_forwards(which, request, 3)
            assert one.ids.tolist() == ids
            np.testing.assert_allclose(one.logprob, logs, rtol=0, atol=1e-4)
    assert base["windowed"][0] == generate(model.base(), requests[:1])[0].ids.tolist()


def test_draws_are_the_inverse_of_the_cumulated_probability_and_have_seeds_of_their_own(llama):
    requests = [dataclasses.replace(r, decoding=Decoding()) for r in some_requests(6)]
    seeds = [7, 7, 2**40, 0, 3, 11]
    made = sampled(llama, [r.prefix for r in requests], [r.length for r in requests], seed=9, seeds=seeds)
    for request, seed, ids in zip(requests, seeds, made, strict=True):
        assert ids.tolist() == by_forwards(llama, dataclasses.replace(request, seed=seed), 9)[0]
    same = [Request(prefix=requests[0].prefix, length=12, decoding=Decoding(), seed=s) for s in (1, 1, 2)]
    first, again, other = (one.ids.tolist() for one in generate(llama, same, seed=4))
    assert first == again != other
    assert generate(llama, same[:1], seed=5)[0].ids.tolist() != first
    # Asked for fewer, it is the beginning of the same.
    assert generate(llama, [dataclasses.replace(same[0], length=5)], seed=4)[0].ids.tolist() == first[:5]


def test_a_decoding_for_each_token(llama):
    assert [d.temperature for d in decaying(10, 1, steps=3)] == [10, 7, 4, 1]
    assert len(decaying(top_k=40)) == 21 and decaying(top_k=40)[-1] == Decoding(top_k=40)
    cold = (Decoding(temperature=5.0), Decoding(temperature=0), Decoding(temperature=0.7, top_k=3))
    requests = [*some_requests(3, decoding=cold), *some_requests(3, 1, decoding=decaying(steps=4))]
    for request, one in zip(requests, generate(llama, requests, seed=1, rows=4), strict=True):
        assert one.ids.tolist() == by_forwards(llama, request, 1)[0]


def test_what_a_prefix_adds_is_decoded_and_a_stop_string_ends_it_wherever_tokens_begin(llama, tokenizer):
    prefix = np.array(tokenizer("Once upon a time there was a customer who")["input_ids"], dtype=np.int32)
    [whole] = generate(llama, [Request(prefix=prefix, length=40)])
    before = tokenizer.decode(prefix, skip_special_tokens=True)
    texts = [tokenizer.decode([*prefix, *whole.ids[:n]], skip_special_tokens=True)[len(before) :] for n in range(41)]
    assert whole.text == texts[-1] and whole.finished == "length"
    rng, requests, spans = np.random.default_rng(0), [], 0
    for _ in range(40):
        start = int(rng.integers(0, len(whole.text) - 6))
        stop = whole.text[start : start + int(rng.integers(1, 7))]
        requests.append(Request(prefix=prefix, length=40, stop=("never there", stop)))
    for request, one in zip(requests, generate(llama, requests, rows=7), strict=True):
        stop = request.stop[1]
        size = next(n for n in range(41) if stop in texts[n])
        assert one.ids.tolist() == whole.ids[:size].tolist() and one.finished == "stop"
        assert one.text == texts[size][: texts[size].find(stop)]
        spans += stop not in tokenizer.decode(whole.ids[size - 1 : size])
    assert spans > 5  # of them, so many stand in no single token


def test_of_several_stop_strings_the_first_in_the_text_counts(llama):
    prefix = np.arange(3, 20, dtype=np.int32)
    [whole] = generate(llama, [Request(prefix=prefix, length=30)])
    late, early = whole.text[12:14], whole.text[5:8]
    [one] = generate(llama, [Request(prefix=prefix, length=30, stop=(late, early))])
    assert one.text == whole.text[: min(whole.text.find(late), whole.text.find(early))]


def test_the_end_token_ends_only_those_who_asked(llama, tokenizer):
    prefix = np.arange(3, 9, dtype=np.int32)
    [whole] = generate(llama, [Request(prefix=prefix, length=20)])
    end = int(whole.ids[7])
    first = whole.ids.tolist().index(end)
    other = dataclasses.replace(llama, tokenizer=SimpleNamespace(eos_token_id=end, decode=tokenizer.decode))
    ended, not_ended = generate(other, [Request(prefix=prefix, length=20, end=e) for e in (True, False)])
    assert ended.ids.tolist() == whole.ids[: first + 1].tolist() and ended.finished == "end"
    assert not_ended.ids.tolist() == whole.ids.tolist() and not_ended.finished == "length"


def test_a_row_is_given_away_at_once_and_prefixes_are_read_once(llama, monkeypatch):
    from sordino.generate import refill

    beginning = np.arange(100, 130, dtype=np.int64)
    prefixes = [np.append(beginning, np.arange(k, k + 4)).astype(np.int32) for k in range(8)]
    requests = [Request(prefix=p, length=3 + k % 5, decoding=Decoding(), seed=k) for k, p in enumerate(prefixes * 3)]
    alone = [generate(llama, [r])[0].ids.tolist() for r in requests]
    read, alive, step, prefill = [], [], Slots.step, refill.prefill

    def counted(module, some, common=None, shared=0):
        read.extend((tuple(p.tolist()), shared) for p in some)
        return prefill(module, some, common, shared)

    monkeypatch.setattr(refill, "prefill", counted)
    monkeypatch.setattr(
        Slots, "step", lambda slots: (alive.append((slots.alive.sum(), len(slots.alive))), step(slots))[1]
    )
    made = generate(llama, requests, rows=5)
    assert [one.ids.tolist() for one in made] == alone
    assert sorted(read) == sorted({(tuple(p.tolist()), 30) for p in prefixes})
    alive = alive[2:]  # without those by which the cache was tried
    drawn = sum(r.length for r in requests)
    assert sum(count for count, _ in alive) == drawn
    full = [count == 5 for count, _ in alive]
    # All rows are used until no request waits; then at most a half of those read is free.
    assert full == sorted(full, reverse=True) and sum(full) * 5 >= drawn - 5 * 7
    assert all(2 * count > rows for count, rows in alive)


def test_requests_at_the_edges(llama):
    assert generate(llama, []) == []
    assert [len(x) for x in greedy(llama, [np.array([5], dtype=np.int32)] * 2, [0, 2])] == [0, 2]
    [short] = generate(llama, [Request(prefix=np.array([5]), length=1)])
    assert short.ids.tolist() == by_forwards(llama, Request(prefix=np.array([5]), length=1))[0]
    prefix = np.arange(3, 40, dtype=np.int64)
    [full] = generate(llama, [Request(prefix=prefix, length=64 - 37)])
    assert full.ids.tolist() == by_forwards(llama, Request(prefix=prefix, length=27))[0]
    # Bytes of one type are not taken for tokens of another.
    mixed = [Request(prefix=p, length=2) for p in (np.array([5], dtype=np.int64), np.array([5, 0], dtype=np.int32))]
    for request, one in zip(mixed, generate(llama, mixed), strict=True):
        assert one.ids.tolist() == by_forwards(llama, request)[0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"prefix": np.empty(0, dtype=np.int32)}, "prefix has 0 tokens"),
        ({"length": 0}, "length of a generation is 0"),
        ({"length": -3}, "length of a generation is -3"),
        ({"seed": -1}, "seed of a request is -1"),
        ({"stop": ("a", "")}, r"stop strings \('a', ''\) hold an empty one"),
        ({"decoding": ()}, r"decoding of a request is \(\)"),
    ],
)
def test_a_request_that_cannot_be_meant_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        Request(**{"prefix": np.array([3]), "length": 2} | values)


def test_what_a_model_cannot_answer_is_refused(llama, make_model):
    good = Request(prefix=np.array([3]), length=2)
    with pytest.raises(ConfigError, match=r"prefix of 60 tokens and asks for 5 more: 65, where the context .* is 64"):
        generate(llama, [good, Request(prefix=np.arange(60), length=5)])
    for token in (-1, 2048):
        with pytest.raises(ConfigError, match=f"request 1 holds token {token}; the model has 0 to 2047"):
            generate(llama, [good, Request(prefix=np.array([3, token]), length=5)])
    with pytest.raises(ConfigError, match="0 rows at a time"):
        generate(llama, [good], rows=0)
    with pytest.raises(ConfigError, match="seed of the generation is -1"):
        generate(llama, [good], seed=-1)
    with pytest.raises(ConfigError, match="falls over 0 steps"):
        decaying(steps=0)
    endless = dataclasses.replace(llama, tokenizer=SimpleNamespace(eos_token_id=None))
    with pytest.raises(ModelError, match="no end token"):
        generate(endless, [dataclasses.replace(good, end=True)])
    with pytest.raises(ModelError, match="classifier"):
        generate(dataclasses.replace(llama, classes=Classes(labels=("a", "b"), seed=0)), [good])


def test_half_precision_goes_through_the_same_rows(make_model):
    model = make_model("llama")
    model = dataclasses.replace(model, module=copy.deepcopy(model.module).bfloat16())
    with model.active() as module:
        assert Probe(module, 31, 2048, model.device).slots(common=False) is not None
    for request, one in zip(some_requests(3), generate(model, some_requests(3)), strict=True):
        told = torch.from_numpy(np.concatenate([request.prefix, one.ids]).astype(np.int64))
        with model.active() as module:
            logits = module(input_ids=told[None]).logits[0, len(request.prefix) - 1 : -1].float()
        # Greedy up to what half precision tells apart.
        drawn = logits.gather(1, told[len(request.prefix) :, None])[:, 0]
        assert float((logits.max(1).values - drawn).max()) < 0.25
