"""Norms and clipped sums are those of one-example loops; `dp_per_sample.json` says in `meta` how they were made."""

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from sordino.dp.engine import Clipper, Clipping
from sordino.errors import DPError

CASES = json.loads((Path(__file__).parent / "dp_per_sample.json").read_text(encoding="utf-8"))["cases"]
MODES = ("book-keeping", "two-backward", "one-by-one")


def exact(values) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.base, self.A, self.B = nn.Linear(3, 4), nn.Linear(3, 2, bias=False), nn.Linear(2, 4, bias=False)

    def forward(self, x):
        return self.base(x) + 1.5 * self.B(self.A(x))


class Tied(nn.Module):
    def __init__(self, count: int, width: int, *, functional: bool = False) -> None:
        super().__init__()
        self.emb, self.lin = nn.Embedding(count, width), nn.Linear(width, width)
        self.head = None if functional else nn.Linear(width, count, bias=False)
        if self.head is not None:
            self.head.weight = self.emb.weight

    def forward(self, ids):
        h = torch.tanh(self.lin(self.emb(ids)))
        return h @ self.emb.weight.t() if self.head is None else self.head(h)


def built(name: str, dtype: torch.dtype, **kwargs) -> nn.Module:
    case = CASES[name]
    weights = {key: torch.tensor(value, dtype=torch.float64) for key, value in case["weights"].items()}
    first = next(iter(weights.values()))
    if name.startswith("linear"):
        module: nn.Module = nn.Linear(first.shape[1], first.shape[0], bias="bias" in weights)
    elif name == "embedding":
        module = nn.Embedding(*first.shape)
    elif name.endswith("norm"):
        module = nn.LayerNorm(len(first)) if name == "layer_norm" else nn.RMSNorm(len(first), eps=1e-6)
    else:
        module = Pair() if name.startswith("lora") else Tied(*weights["emb.weight"].shape, **kwargs)
    module.to(dtype).load_state_dict(weights, strict=False)
    for key, parameter in module.named_parameters():
        parameter.requires_grad_(key in case["trainable"])
    return module


def losses(name: str, module: nn.Module, dtype: torch.dtype) -> torch.Tensor:
    inputs = CASES[name]["inputs"]
    if "labels" in inputs:
        ids, labels = torch.tensor(inputs["ids"]), torch.tensor(inputs["labels"])
        wanted = labels[:, 1:]
        each = nn.functional.cross_entropy(
            module(ids)[:, :-1].transpose(1, 2), wanted, ignore_index=-100, reduction="none"
        )
        count = (wanted != -100).sum(1).clamp(min=1) if name.endswith("mean") else 1
        return each.sum(1) / count
    x = torch.tensor(inputs["x"], dtype=torch.long if name == "embedding" else dtype)
    return 0.5 * (module(x) - torch.tensor(inputs["y"], dtype=dtype)).square().flatten(1).sum(1)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", CASES)
def test_the_numbers_of_one_example_loops(name, mode, dtype):
    case, module = CASES[name], built(name, dtype)
    with Clipper(module, Clipping(norm=1.0), mode=mode) as clipper:
        norms = clipper.add(lambda: losses(name, module, dtype), units=len(case["per_example_loss"]))
        clipper.finish(None, 1.0)
    close = {"rtol": 1e-5, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 0, "atol": 1e-10}
    torch.testing.assert_close(norms.double(), exact(case["per_example_total_norm"]), **close)
    for key, wanted in case["per_example_grad_norm"].items():
        torch.testing.assert_close(clipper.squares[key].sqrt().double(), exact(wanted), **close)
    for key, wanted in case["clipped_sum"].items():
        found = module.get_parameter(key).grad
        assert found is not None
        torch.testing.assert_close(found.double(), exact(wanted), **close)


@pytest.mark.parametrize("mode", MODES)
def test_a_head_that_is_no_module_is_refused_or_right(mode):
    name = "tied_embedding_head"
    module = built(name, torch.float64, functional=True)
    with Clipper(module, Clipping(norm=1.0), mode=mode) as clipper:
        if mode == "one-by-one":
            norms = clipper.add(lambda: losses(name, module, torch.float64), units=4)
            torch.testing.assert_close(norms, exact(CASES[name]["per_example_total_norm"]))
        else:
            with pytest.raises(DPError, match=r"emb\.weight is used outside the module"):
                clipper.add(lambda: losses(name, module, torch.float64), units=4)
