"""The self-test before private training: what it catches, and what it leaves as it was."""

import pytest
import torch
from dp_models import prepared, row_losses
from torch import nn

from sordino.dp import captures, engine
from sordino.dp.engine import Clipper, Clipping
from sordino.dp.selftest import self_test, synthetic
from sordino.errors import DPError

BATCH = synthetic(2048, 9, 1, torch.device("cpu"))
ONLY = Clipping(norm=0.5)


def losses_of(module):
    return lambda ids, mask: row_losses(module, ids, mask)


@pytest.mark.parametrize("mode", ["book-keeping", "two-backward"])
def test_nothing_is_left_changed(make_model, mode):
    module = prepared(make_model("gpt2"), "full", torch.float32).train()
    module.transformer.h[0].eval()
    modes = [part.training for part in module.modules()]
    weight = module.lm_head.weight
    weight.grad = torch.full_like(weight, 2.0)
    before = torch.get_rng_state()
    assert 0 < self_test(Clipper(module, ONLY, mode=mode), losses_of(module), batch=BATCH) < 1e-3
    assert torch.equal(torch.get_rng_state(), before)
    assert [part.training for part in module.modules()] == modes
    assert bool((weight.grad == 2).all())
    assert not any("forward" in vars(part) for part in module.modules())


def test_synthetic_units():
    ids, mask = synthetic(50, 9, 2, torch.device("cpu"))
    assert ids.shape == mask.shape == (4, 9)
    assert mask.sum(1).tolist() == [9, 9, 6, 6]
    assert int(ids.max()) < 50
    assert not torch.equal(ids[:2], ids[2:])
    assert torch.equal(ids, synthetic(50, 9, 2, torch.device("cpu"))[0])


def test_units_of_rows_under_autocast(make_model):
    module = prepared(make_model("llama"), "lora", torch.float32)

    def losses(ids, mask):
        with torch.autocast("cpu", torch.bfloat16):
            return row_losses(module, ids, mask)

    batch = synthetic(2048, 9, 3, torch.device("cpu"))
    assert self_test(Clipper(module, ONLY), losses, batch=batch) < 2e-2


@pytest.mark.parametrize("mode", ["book-keeping", "two-backward"])
def test_a_tied_weight_counted_once(make_model, monkeypatch, mode):
    module = prepared(make_model("gpt2"), "full", torch.float32)
    monkeypatch.setattr(captures, "_cross", lambda outer, rows: torch.zeros(len(rows.ids)))
    with pytest.raises(DPError, match=r"^transformer\.wte\.weight: norms of the clipping engine differ"):
        self_test(Clipper(module, ONLY, mode=mode), losses_of(module), batch=BATCH)


@pytest.mark.parametrize("mutant", ["unclipped", "one layer not counted", "clipped after averaging", "squared"])
def test_mutants_of_clipping(make_model, monkeypatch, mutant):
    module = prepared(make_model("llama"), "full", torch.float32)
    factors = engine.clip_factors
    if mutant == "unclipped":
        # The engine alone: the loop that it is compared with is not to be broken along with it.
        contribute = engine.contribute
        monkeypatch.setattr(engine, "contribute", lambda t, c, f, fresh: contribute(t, c, f * 0 + 1, fresh=fresh))
    elif mutant == "clipped after averaging":
        monkeypatch.setattr(engine, "clip_factors", lambda n, b, k: factors(n.mean().expand_as(n), b, k))
    elif mutant == "squared":
        squares = engine.squared_norms
        monkeypatch.setattr(engine, "squared_norms", lambda c, g: squares(c, g) ** 2)
    else:
        settle = engine.Clipper._first_pass

        def forgets(self, values, *, keep, again):
            kept = settle(self, values, keep=keep, again=again)
            self.squares.pop("model.norm.weight")
            kept.pop("model.norm.weight")
            return kept

        monkeypatch.setattr(engine.Clipper, "_first_pass", forgets)
    with pytest.raises(DPError, match=r"of which 0\.001 is allowed"):
        self_test(Clipper(module, ONLY), losses_of(module), batch=BATCH)


class Mixing(nn.Module):
    """Subtracts the mean over the batch, which no shape gives away."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(2048, 4), nn.Linear(4, 3)

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x - x.mean(0))


def test_a_model_that_mixes_examples():
    module = Mixing()
    for mode in ("book-keeping", "one-by-one"):
        with pytest.raises(DPError, match=r"^table\.weight: norms"):
            self_test(Clipper(module, ONLY, mode=mode), lambda ids, mask: module(ids).square().sum((1, 2)), batch=BATCH)


def test_gradients_that_are_not_finite():
    module = nn.Sequential(nn.Embedding(2048, 4), nn.Linear(4, 3))
    with pytest.raises(DPError, match="not finite"):
        self_test(Clipper(module, ONLY), lambda ids, mask: module(ids).sum((1, 2)) * float("nan"), batch=BATCH)
