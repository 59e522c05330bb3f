"""The lower bound on near-verbatim extraction against the probabilities of all texts, added up one by one."""

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from sordino.attacks.extraction.near_bound import beam_search, near_bound
from sordino.decoding import Decoding, decoding_logprob, every_logprob
from sordino.errors import AuditError

VOCABULARY = 3


def model_of(seed, forbidden=0.0):
    """ln p of each next token after each path: other numbers for each path, some of them never drawn."""

    def following(paths):
        rows = []
        for path in paths.tolist():
            rng = np.random.default_rng([seed, len(path), *path])
            weight = (
                rng.random(VOCABULARY) ** 4 * (rng.random(VOCABULARY) >= forbidden)
                + (np.arange(VOCABULARY) == 0) * 1e-3
            )
            with np.errstate(divide="ignore"):
                rows.append(np.log(weight / weight.sum()))
        return np.array(rows)

    return following


def exact(following, suffix, distance):
    """The probability of all texts within each distance, by enumeration."""
    mass = np.zeros(distance + 1)
    for text in product(range(VOCABULARY), repeat=len(suffix)):
        away = Levenshtein.distance(text, tuple(suffix.tolist()))
        if away <= distance:
            steps = (following(np.array([text[:d]]).reshape(1, d))[0][token] for d, token in enumerate(text))
            mass[away] += np.exp(sum(steps))
    return np.cumsum(mass)


CASES = (
    st.integers(0, 10_000),
    st.lists(st.integers(0, VOCABULARY - 1), min_size=1, max_size=4).map(np.array),
    st.integers(0, 3),
)


@given(*CASES, st.sampled_from([0.0, 0.4]))
@settings(max_examples=25, deadline=None)
def test_a_wide_beam_is_exact_and_a_narrow_one_a_bound(seed, suffix, distance, forbidden):
    following = model_of(seed, forbidden)
    true = exact(following, suffix, distance)
    found = [beam_search(following, suffix, distance=distance, beam=beam) for beam in (1, 2, 3, 4, 8, 128)]
    np.testing.assert_allclose(found[-1].within, true, rtol=1e-9, atol=1e-300)
    assert found[-1].complete
    for one in found:
        assert (one.within <= true * (1 + 1e-9)).all()
        assert one.within[0] == pytest.approx(true[0], rel=1e-9)  # the passage itself is always found
        assert (np.diff(one.within) >= 0).all()
        if one.complete:
            np.testing.assert_allclose(one.within, true, rtol=1e-9, atol=1e-300)
    for narrow, wide in pairwise(found):
        assert (wide.within >= narrow.within * (1 - 1e-12)).all()
        assert wide.sequences >= narrow.sequences and wide.forwards >= narrow.forwards
    assert found[2].lower == found[3].lower  # 3 is rounded up to 4


def test_bounds_of_a_longer_passage_grow_with_the_beam_and_the_distance():
    following, suffix = model_of(5), np.array([0, 1, 2, 1, 0, 2, 2, 1])
    true = exact(following, suffix, 3)
    bounds = [beam_search(following, suffix, distance=3, beam=beam) for beam in (1, 4, 16, 64)]
    lower = [one.lower for one in bounds]
    assert lower == sorted(lower) and lower[0] < lower[-1]
    assert not bounds[0].complete
    assert all(one.lower <= true[3] * (1 + 1e-9) for one in bounds)
    assert bounds[-1].lower > bounds[-1].within[1] > bounds[-1].verbatim > 0


def test_only_so_many_paths_are_read():
    following, suffix = model_of(1), np.array([0, 1, 2, 0, 1])
    asked = []

    def counted(paths):
        asked.append(len(paths))
        return following(paths)

    found = beam_search(counted, suffix, distance=4, beam=4)
    assert found.forwards == sum(asked) <= 4 * 5


@pytest.mark.parametrize(
    "decoding",
    [Decoding(), Decoding(temperature=0), Decoding(temperature=0.5), Decoding(top_k=3), Decoding(top_p=0.6),
     Decoding(temperature=2.0, top_k=4, top_p=0.7), Decoding(top_k=100)],
)  # fmt: skip
def test_all_tokens_have_the_probability_that_each_has(decoding):
    rng = np.random.default_rng(0)
    # Half of the logits are rounded, so that some are equal.
    logits = torch.from_numpy(
        np.concatenate([rng.normal(size=(10, 9)), rng.integers(0, 3, (10, 9))]).astype(np.float32)
    )
    found = every_logprob(logits, decoding)
    for token in range(9):
        own = decoding_logprob(logits, torch.full((20,), token), [decoding])[:, 0]
        assert torch.equal(torch.isneginf(own), torch.isneginf(found[:, token]))
        torch.testing.assert_close(own, found[:, token], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.exp().sum(1), torch.ones(20, dtype=torch.float64))


def test_a_model_is_asked_as_its_sampler_draws(make_model):
    model, decoding = make_model("llama", seed=2), Decoding(temperature=0.7, top_k=3)
    prefix, suffix = np.array([5, 9, 40]), None
    ids = list(prefix)
    with torch.no_grad():
        for _ in range(3):  # a suffix that the sampler can draw
            ids.append(int(model.module(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    suffix = np.array(ids[3:])
    found = near_bound(model, prefix, suffix, decoding, distance=2, beam=64)
    assert found.complete
    # All 27 texts of three tokens, each read whole.
    mass = np.zeros(3)
    texts = [[]]
    for _ in range(3):
        grown = []
        for text in texts:
            with torch.no_grad():
                logits = model.module(input_ids=torch.tensor([[*prefix, *text]])).logits[0, -1].double()
            grown += [[*text, int(t)] for t in logits.topk(3).indices]
        texts = grown
    for text in texts:
        total = 0.0
        for place, token in enumerate(text):
            with torch.no_grad():
                logits = model.module(input_ids=torch.tensor([[*prefix, *text[:place]]])).logits[0, -1].double()
            kept = logits.topk(3)
            share = torch.softmax(kept.values / 0.7, 0)
            total += float(share[kept.indices.tolist().index(token)].log())
        away = Levenshtein.distance(text, suffix.tolist())
        if away <= 2:
            mass[away] += np.exp(total)
    np.testing.assert_allclose(found.within, np.cumsum(mass), rtol=1e-4)
    assert near_bound(model, prefix, suffix, Decoding(temperature=0), distance=1).within.tolist() == [1.0, 1.0]


def test_what_cannot_be_bounded_is_refused(make_model):
    model, ids = make_model("llama"), np.array([3, 4])
    for prefix, suffix, more in (([], ids, {}), (ids, [], {}), (ids, ids, {"beam": 0}), (ids, ids, {"distance": -1})):
        with pytest.raises(AuditError, match="No bound can be had"):
            near_bound(model, np.array(prefix, dtype=int), np.array(suffix, dtype=int), Decoding(), **more)
