"""What is drawn against what `sordino.decoding` says is drawn: which tokens, and how often."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from sordino.decoding import Decoding, decoding_logprob, kept
from sordino.generate.drawing import draw

GRID = [
    Decoding(temperature=t, top_k=k, top_p=p)
    for t in (0.4, 1.0, 1.7) for k in (None, 1, 10, 64, 150, 299, 500) for p in (0.2, 0.9, 0.999, 1.0)
]  # fmt: skip


def told(logits, decoding):
    """ln p of every token: (V), from one row of logits."""
    return decoding_logprob(logits.expand(len(logits), -1), torch.arange(len(logits)), [decoding])[:, 0]


def left(logits, decoding):
    heat = torch.full((len(logits),), decoding.temperature, dtype=torch.float64)
    return kept(logits, heat, decoding.top_k, decoding.top_p)


@pytest.mark.parametrize("sharpness", [0.05, 3.0])
def test_the_filters_leave_what_decoding_says(sharpness):
    # Flat rows need more than the 64 largest; sharp ones do not, and some of a batch may.
    torch.manual_seed(0)
    logits = sharpness * torch.randn(3, 300)
    logits[::2] *= 20
    for decoding in GRID:
        for row, found in zip(logits, left(logits, decoding), strict=True):
            assert torch.equal(found, torch.isfinite(told(row, decoding))), decoding


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-3, 3), min_size=2, max_size=130),
    st.sampled_from([0.5, 1.0, 2.0]),
    st.one_of(st.none(), st.integers(1, 140)),
    st.floats(0.01, 1.0),
)
def test_ties_are_broken_as_decoding_breaks_them(values, temperature, top_k, top_p):
    logits, decoding = (
        torch.tensor(values, dtype=torch.float32),
        Decoding(temperature=temperature, top_k=top_k, top_p=top_p),
    )
    assert torch.equal(left(logits[None], decoding)[0], torch.isfinite(told(logits, decoding)))


def test_uniform_numbers_at_equal_distances_give_every_token_its_share():
    torch.manual_seed(1)
    logits, count = torch.randint(-6, 3, (90,)).float(), 3_000
    uniform = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    for decoding in GRID[::5]:
        heat = torch.full((count,), decoding.temperature, dtype=torch.float64)
        drawn = draw(logits.expand(count, -1), uniform, heat, decoding.top_k, decoding.top_p)
        share = torch.bincount(drawn, minlength=90) / count
        assert float((share - told(logits, decoding).exp()).abs().max()) < 2 / count


@pytest.mark.parametrize("decoding", [GRID[5], GRID[9], Decoding(temperature=0.8, top_k=12, top_p=0.85), Decoding()])
def test_what_is_drawn_comes_as_often(decoding):
    torch.manual_seed(2)
    logits, count = 1.5 * torch.randn(40), 20_000
    uniform = torch.from_numpy(np.random.default_rng(3).random(count))
    heat = torch.full((count,), decoding.temperature, dtype=torch.float64)
    drawn = draw(logits.expand(count, -1), uniform, heat, decoding.top_k, decoding.top_p)
    share, times = told(logits, decoding).exp().numpy(), torch.bincount(drawn, minlength=40).numpy()
    assert times[share == 0].sum() == 0
    some = share > 0
    if some.sum() > 1:
        assert chisquare(times[some], count * share[some] / share[some].sum()).pvalue > 1e-4


def test_numbers_at_the_edges_draw_nothing_that_is_filtered_away():
    logits = torch.tensor([[-5.0, 2.0, 2.0, 1.0, -5.0]])
    for uniform, token in ((0.0, 1), (math.nextafter(1, 0), 2)):
        drawn = draw(logits, torch.tensor([uniform], dtype=torch.float64), torch.ones(1, dtype=torch.float64), 2, 1.0)
        assert drawn.tolist() == [token]


def test_each_row_has_a_temperature_of_its_own():
    torch.manual_seed(4)
    logits, uniform = torch.randn(8, 50), torch.rand(8, dtype=torch.float64)
    heat = torch.linspace(0.1, 10, 8, dtype=torch.float64)
    together = draw(logits, uniform, heat, 20, 0.95)
    alone = [int(draw(logits[i : i + 1], uniform[i : i + 1], heat[i : i + 1], 20, 0.95)) for i in range(8)]
    assert together.tolist() == alone
