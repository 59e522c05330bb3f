"""Generate and rank: what is asked for, and that a model which learned records by heart gives them away."""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from elsewhere_fixtures import learn, texts

from sordino.attacks.extraction.generate_and_rank import generate_and_rank, prompts
from sordino.attacks.rankings import precisions, run_length, runs
from sordino.decoding import Decoding, every_logprob
from sordino.errors import AuditError
from sordino.matching import SuffixIndex


@dataclass(frozen=True)
class Said:
    ids: np.ndarray
    text: str


def drawn(model, wanted):
    """A plain sampler: one text, one token, one forward at a time; it does not stop at the end token."""
    out = []
    for one in wanted:
        ids, rng = one.prefix.tolist(), np.random.default_rng(one.seed)
        with model.active() as module:
            for step in range(one.length):
                logits = module(input_ids=torch.tensor([ids])).logits[:, -1]
                decoding = one.decodings[min(step, len(one.decodings) - 1)]
                share = every_logprob(logits, decoding)[0].exp().numpy()
                ids.append(int(rng.choice(len(share), p=share / share.sum())))
        before, whole = (model.tokenizer.decode(i, skip_special_tokens=True) for i in (one.prefix, ids))
        out.append(Said(np.array(ids[len(one.prefix) :]), whole[len(before) :]))
    return out


def test_three_strategies_ask_for_as_many_texts(make_model):
    model = make_model("llama")
    begin = model.tokenizer.bos_token_id
    snippets = ["The door of the house was open when they came back", "One"]
    asked = prompts(model, snippets, count=4, length=16, top_k=40, seed=1)
    assert [w.strategy for w in asked] == ["empty"] * 4 + ["decaying"] * 4 + ["snippets"] * 4
    assert len({w.seed for w in asked}) == len(asked)
    assert all(w.prefix.tolist() == [begin] and w.length == 16 for w in asked[:8])
    assert asked[0].decodings == (Decoding(top_k=40),)
    temperatures = [d.temperature for d in asked[4].decodings]
    assert (temperatures[0], temperatures[20], len(temperatures)) == (10.0, 1.0, 21)
    np.testing.assert_allclose(np.diff(temperatures), -9 / 20)
    assert all(d.top_k == 40 for d in asked[4].decodings)
    whole = model.tokenizer(snippets[0], add_special_tokens=False)["input_ids"]
    for one in (asked[8], asked[10]):
        assert 6 <= len(one.prefix) <= 11
        assert one.prefix.tolist() == [begin, *whole[: len(one.prefix) - 1]]
    assert [w.strategy for w in prompts(model, [], count=1, length=9, top_k=None, seed=0)] == ["empty", "decaying"]


@pytest.fixture(scope="module")
def learned(make_model):
    """A model that knows ten short records by heart, its base, and the records as tokens."""
    base, model = make_model("llama", seed=3), make_model("llama", seed=3)
    known, unknown = texts(0, 10), texts(5000, 10)
    learn(model, [model.tokenizer.bos_token + t for t in known], steps=60)
    encode = [
        [np.array(model.tokenizer(t, add_special_tokens=False)["input_ids"]) for t in side] for side in (known, unknown)
    ]
    return model, base, *encode


def test_what_was_learned_by_heart_is_found_and_nothing_of_it_in_the_base(learned):
    model, base, members, others = learned
    least = run_length([len(m) for m in members])
    indices = SuffixIndex(members), SuffixIndex(others)
    found = generate_and_rank(model, base, drawn, texts(9000, 2), count=8, length=16, seed=0)
    assert len(found.texts) == len(found.ids) == len(found.strategies) == 24 - found.dropped
    judged = runs(found.ids, *indices, least)
    assert judged.members.sum() >= 3 and judged.others.sum() == 0
    for order in found.orders.values():
        assert 0 < len(order) <= len(found.texts) and len(set(order.tolist())) == len(order)
    # What is memorised stands above what is not: the first three of the ranking by the base are better than all.
    top = precisions(found.orders, judged.members, k=3)["base"].value
    everything = precisions(found.orders, judged.members, k=len(found.texts))["base"].value
    assert top >= everything and top > 0.6
    control = generate_and_rank(base, base, drawn, texts(9000, 2), count=8, length=16, seed=0)
    assert runs(control.ids, *indices, least).members.sum() == 0


def test_texts_end_before_the_end_token_and_short_ones_are_dropped(make_model):
    model = make_model("llama")
    end = model.tokenizer.eos_token_id

    def ends(_, wanted):
        rows = [[7] * 12, [7] * 9 + [end, 8, 8], [7] * 7 + [end] * 5, [end] * 12]
        return [Said(np.array(rows[i % 4]), f"text number {i} of all") for i in range(len(wanted))]

    found = generate_and_rank(model, model, ends, count=2, length=12)
    assert [ids.tolist() for ids in found.ids] == [[7] * 12, [7] * 9]
    assert found.dropped == 2
    nothing = generate_and_rank(model, model, lambda _, w: [Said(np.array([end]), "")] * len(w), count=1, length=12)
    assert (nothing.texts, nothing.orders, nothing.dropped) == ((), {}, 2)


def test_what_cannot_be_drawn_is_refused(make_model):
    model = make_model("llama")
    with pytest.raises(AuditError, match="0 texts of 128 tokens"):
        generate_and_rank(model, model, drawn, count=0)
    with pytest.raises(AuditError, match="at least 8 tokens"):
        generate_and_rank(model, model, drawn, length=7)
    with pytest.raises(AuditError, match="the model's context is"):
        generate_and_rank(model, model, drawn, length=model.context)
