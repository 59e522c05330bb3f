"""What temperature, top-k and top-p leave: golden numbers, the filters of transformers, and what is drawn."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from sordino.decoding import Decoding, decoding_logprob
from sordino.errors import ConfigError

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "exposure_np.json").read_text())["n_p"]


def setting(values):
    if values["greedy"]:
        return Decoding(temperature=0)
    top_p = 1.0 if values["top_p"] is None else values["top_p"]
    return Decoding(temperature=values["temperature"], top_k=values["top_k"], top_p=top_p)


def everything(logits, decoding):
    """ln p of every token: (V), from one row of logits."""
    rows, ids = logits.expand(len(logits), -1), torch.arange(len(logits))
    return decoding_logprob(rows, ids, [decoding])[:, 0]


@pytest.mark.parametrize("values", GOLDEN["settings"], ids=lambda v: f"{v['temperature']}-{v['top_k']}-{v['top_p']}")
def test_the_numbers_are_those_of_public_implementations(values):
    decoding = setting(values)
    start, following = (torch.tensor(GOLDEN[k], dtype=torch.float64) for k in ("start_logits", "next_logits"))
    told = [values["start_log_probs"], *values["next_log_probs"]]
    for logits, row in zip([start, *following], told, strict=True):
        np.testing.assert_allclose(everything(logits, decoding), [float(v) for v in row], rtol=0, atol=1e-10)
    # Every sequence there is: what one pass tells is a distribution.
    first, later = everything(start, decoding), torch.stack([everything(row, decoding) for row in following])
    total = 0.0
    for path in itertools.product(range(GOLDEN["V"]), repeat=GOLDEN["L"]):
        total += math.exp(float(first[path[0]]) + sum(float(later[a, b]) for a, b in itertools.pairwise(path)))
    assert total == pytest.approx(1, abs=1e-12)
    for target in values["targets"]:
        path = target["target"]
        found = float(first[path[0]]) + sum(float(later[a, b]) for a, b in itertools.pairwise(path))
        assert found == pytest.approx(float(target["log_p"]), abs=1e-10)


GRID = [
    Decoding(temperature=t, top_k=k, top_p=p)
    for t in (0.3, 1.0, 1.7) for k in (None, 1, 10, 63, 64, 65, 150, 299, 300, 500) for p in (0.2, 0.9, 0.999, 1.0)
]  # fmt: skip


@pytest.mark.parametrize("sharpness", [0.05, 3.0])
def test_any_setting_is_what_the_filters_of_transformers_leave(sharpness):
    # Flat rows need more than the 64 largest; sharp ones do not.
    torch.manual_seed(0)
    logits = sharpness * torch.randn(12, 300, dtype=torch.float64)
    targets = torch.cat([logits.topk(3, dim=1).indices[:6].flatten()[:6], torch.randint(0, 300, (6,))])
    found = decoding_logprob(logits, targets, GRID)
    for column, decoding in enumerate(GRID):
        made = transformers.TemperatureLogitsWarper(decoding.temperature)(None, logits)
        if decoding.top_k is not None:
            made = transformers.TopKLogitsWarper(decoding.top_k)(None, made)
        if decoding.top_p < 1:
            made = transformers.TopPLogitsWarper(decoding.top_p)(None, made)
        wanted = made.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        np.testing.assert_allclose(found[:, column], wanted, rtol=0, atol=1e-10)


def test_each_setting_is_a_distribution_also_where_logits_are_equal():
    torch.manual_seed(1)
    logits = torch.randint(0, 4, (200,)).double()  # ties everywhere, as in half precision
    for decoding in GRID:
        if decoding.top_k is None or decoding.top_k < 200:
            assert float(everything(logits, decoding).exp().sum()) == pytest.approx(1, abs=1e-9)
    assert everything(logits, Decoding(temperature=0)).exp().sum() == 1


def test_what_is_drawn_comes_as_often():
    torch.manual_seed(2)
    logits, decoding = 1.5 * torch.randn(40), Decoding(temperature=0.8, top_k=12, top_p=0.85)
    told = everything(logits, decoding).exp()
    warped = transformers.TopKLogitsWarper(12)(None, logits[None] / 0.8)
    warped = transformers.TopPLogitsWarper(0.85)(None, warped)
    drawn = torch.multinomial(warped.softmax(-1)[0], 40_000, replacement=True).bincount(minlength=40) / 40_000
    assert float((drawn - told).abs().max()) < 4 * math.sqrt(0.25 / 40_000)


def test_half_precision_is_computed_in_single_and_nothing_is_nothing():
    torch.manual_seed(3)
    logits, targets = torch.randn(5, 70, dtype=torch.bfloat16), torch.arange(5)
    torch.testing.assert_close(
        decoding_logprob(logits, targets, GRID[:9]), decoding_logprob(logits.float(), targets, GRID[:9])
    )
    assert decoding_logprob(logits[:0], targets[:0], GRID).shape == (0, len(GRID))
    assert decoding_logprob(logits, targets, []).shape == (5, 0)


@pytest.mark.parametrize(
    "values",
    [
        {"temperature": -0.1},
        {"temperature": math.nan},
        {"temperature": math.inf},
        {"top_k": 0},
        {"top_p": 0.0},
        {"top_p": 1.1},
    ],
)
def test_settings_no_sampler_has_are_refused(values):
    [(name, value)] = values.items()
    with pytest.raises(ConfigError, match=f"{name} of a decoding is {value}"):
        Decoding(**values)
