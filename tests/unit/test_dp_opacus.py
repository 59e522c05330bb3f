"""Gradient norms of units against Opacus 1.6 (hooks), for every family it can follow."""

import pytest
import torch
from dp_models import a_batch, prepared, row_losses
from opacus.grad_sample import GradSampleModule
from test_dp_families import FAMILIES, retied, without_dropout

from sordino.dp.engine import Clipper, Clipping

IDS, MASK = a_batch(rows=4, length=7)
UNABLE = {
    ("gpt2", "full"): "positions are looked up once for all rows, so their gradient is that of one row",
    ("opt", "full"): "its embedding of positions is called with numbers that are no tensors",
    ("opt", "lora"): "its blocks flatten rows and positions, so each token counts as a row",
    ("gemma", "full"): "its embedding has a buffer",
}


@pytest.mark.parametrize("method", ["full", "lora"])
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")
def test_norms_are_those_of_opacus(make_model, family, method):
    module = without_dropout(prepared(retied(make_model(family), False), method))
    with Clipper(module, Clipping(norm=1.0)) as clipper:
        norms = clipper.add(lambda: row_losses(module, IDS, MASK), units=4)
    if (family, method) in UNABLE:
        # The list is checked too: what Opacus learns to follow is to be compared.
        with pytest.raises((AttributeError, NotImplementedError, AssertionError)):
            by_opacus(module)
        return
    torch.testing.assert_close(norms, by_opacus(module), rtol=1e-6 if family == "gemma" else 1e-10, atol=0)


def by_opacus(module):
    hooked = GradSampleModule(module, loss_reduction="sum", strict=False)
    row_losses(hooked, IDS, MASK).sum().backward()
    found = [p.grad_sample for p in module.parameters() if p.requires_grad]
    assert all(values.shape[0] == len(IDS) for values in found)
    return torch.stack([values.flatten(1).square().sum(1) for values in found]).sum(0).sqrt()
