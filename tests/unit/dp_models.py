"""Small things that tests of private training share: models in float64, losses of rows, and one example at a time."""

import copy
import dataclasses
from contextlib import nullcontext
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from sordino.config import MethodConfig
from sordino.model import attach

METHODS = {
    "full": MethodConfig(kind="full"),
    "lora": MethodConfig(rank=2),
    "rslora": MethodConfig(rank=2, variant="rslora"),
    "dora": MethodConfig(rank=2, variant="dora"),
    "ffa": MethodConfig(rank=2, variant="ffa"),
    "prefix": MethodConfig(kind="prefix", virtual_tokens=3),
    "prompt": MethodConfig(kind="prompt", virtual_tokens=3),
    "ia3": MethodConfig(kind="ia3"),
    "bitfit": MethodConfig(kind="bitfit"),
    "head": MethodConfig(kind="head"),
    "adapters": MethodConfig(kind="adapters", bottleneck=4),
}


def prepared(model: Any, method: str, dtype: torch.dtype = torch.float64) -> Any:
    """A copy of `model` made ready for a method, its trained values moved to where their gradients all matter."""
    made = attach(dataclasses.replace(model, module=copy.deepcopy(model.module)), METHODS[method], 0).module.to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.requires_grad and method != "full":
                noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
                parameter.add_(noise.to(dtype), alpha=0.05)
    return made.eval()


def a_batch(rows: int = 4, length: int = 9, vocabulary: int = 2048) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids (rows, length), some of them twice in a row, and the mask of texts of different lengths."""
    generator = torch.Generator().manual_seed(11)
    ids = torch.randint(3, vocabulary, (rows, length), generator=generator)
    ids[:, 2] = ids[:, 1]
    mask = torch.ones_like(ids)
    for row in range(rows):
        mask[row, length - row % 4 :] = 0
    return ids, mask


def row_losses(module: Any, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The summed cross-entropy (rows,) of next tokens, padding not counted."""
    logits = module(input_ids=ids, attention_mask=mask, use_cache=False).logits[:, :-1]
    losses = cross_entropy(logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
                           ids[:, 1:].flatten(), reduction="none")  # fmt: skip
    return (losses.view(len(ids), -1) * mask[:, 1:]).sum(1)


def brute(module: Any, ids: torch.Tensor, mask: torch.Tensor, kinds: Any = None) -> list[dict[str, torch.Tensor]]:
    """Each row's gradients by a forward and a backward pass of it alone, in the precision `kinds`."""
    found = []
    named = {name: p for name, p in module.named_parameters() if p.requires_grad}
    for row in range(len(ids)):
        with kinds or nullcontext():
            loss = row_losses(module, ids[row : row + 1], mask[row : row + 1]).sum()
        made = torch.autograd.grad(loss, list(named.values()), allow_unused=True)
        grads = zip(named.items(), made, strict=True)
        found.append({n: torch.zeros_like(p) if g is None else g for (n, p), g in grads})
    return found


def norms_of(gradients: list[dict[str, torch.Tensor]]) -> torch.Tensor:
    return torch.stack(
        [torch.stack([g.double().square().sum() for g in one.values()]).sum().sqrt() for one in gradients]
    )


def clipped_sum(gradients: list[dict[str, torch.Tensor]], bound: float) -> dict[str, torch.Tensor]:
    factors = [min(1.0, bound / float(norm)) if norm else 1.0 for norm in norms_of(gradients)]
    return {n: sum(f * one[n].double() for f, one in zip(factors, gradients, strict=True)) for n in gradients[0]}
