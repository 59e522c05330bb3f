"""Six numbers a token against their definitions: float64, a row at a time, and the golden ones."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from brute_statistics import NAMES, brute, near
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino import reduction
from sordino.reduction import head_statistics, token_statistics

SUMS = ("target", "rank", "top", "s0", "s1", "s2")
GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "membership_scores.json").read_text(encoding="utf-8"))


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
    assert float(logprob) == 0.0
    assert max(abs(float(mean)), float(variance)) < 1e-30
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


@given(
    rows=st.integers(1, 9),
    size=st.integers(1, 130),
    spread=st.sampled_from([0.0, 0.3, 5.0, 60.0]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(deadline=None)
def test_the_kernel_is_the_operations(rows, size, spread, seed):
    # Every length of row, so that what is left over after the last whole vector is right as well.
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(rows, size, generator=generator) * spread
    chosen = torch.randint(0, size, (rows,), generator=generator)
    near(token_statistics(logits.clone(), chosen), token_statistics(logits.double(), chosen), 3e-5)
    near(reduction._by_operations(logits, chosen), reduction._by_operations(logits.double(), chosen), 2e-5, SUMS)


def test_threads_and_pieces_change_no_bit(logits, targets, monkeypatch):
    head, states = torch.nn.Linear(16, 97), torch.randn(300, 16)
    chosen = targets.repeat(8)[:300]
    before = torch.get_num_threads()
    try:
        with torch.inference_mode():
            torch.set_num_threads(1)
            one = token_statistics(head(states), chosen)
            for threads in (2, 3):
                torch.set_num_threads(threads)
                for a, b in zip(token_statistics(head(states), chosen), one, strict=True):
                    assert torch.equal(a, b)
            monkeypatch.setitem(reduction._PIECE_BYTES, "cpu", 1)
            for a, b in zip(head_statistics(head, states, chosen, 97), one, strict=True):
                torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)
    finally:
        torch.set_num_threads(before)


def test_no_rows_have_no_statistics():
    for dtype in (torch.float32, torch.float64):
        found = token_statistics(torch.empty(0, 5, dtype=dtype), torch.empty(0, dtype=torch.int64))
        assert [len(x) for x in found] == [0] * 5
        assert [x.dtype for x in found] == [dtype] * 3 + [torch.int64] * 2


def test_logits_that_are_no_numbers_give_none(logits, targets):
    for dtype in (torch.float32, torch.float64):
        broken = logits.clone().to(dtype)
        broken[3, 7] = float("nan")
        broken[5, 2] = float("inf")
        logprob, _, _, _, top = token_statistics(broken, targets)
        assert logprob.isnan().nonzero()[:, 0].tolist() == [3, 5]
        assert bool(((top >= 0) & (top < 97)).all())


@pytest.mark.parametrize("target", [-1, 97])
def test_targets_outside_the_vocabulary_are_refused(logits, targets, target):
    targets[7] = target
    for dtype in (torch.float32, torch.float64):
        with pytest.raises(IndexError, match="97 tokens"):
            token_statistics(logits.to(dtype), targets)


def test_a_folder_that_cannot_be_written_is_no_obstacle(tmp_path):
    # Installed where nothing may be written, without a home: compiled again in each process.
    code = "import numba.core.caching as c; c.FunctionCache._impl_class._locator_classes = []; import sordino.kernel"
    subprocess.run([sys.executable, "-c", code], check=True, env={**os.environ, "HOME": str(tmp_path / "none")})
