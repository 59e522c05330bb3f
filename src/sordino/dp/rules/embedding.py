"""Embeddings, of tokens, positions or virtual tokens: row id_t of ∂W gathers g_t."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

from sordino.dp.captures import Rows
from sordino.dp.rules.site import Site, substituted
from sordino.errors import DPError

__all__ = ["embedding", "own_ids"]


def embedding(site: Site) -> Callable[[Tensor], Tensor]:
    """The rule of `nn.Embedding`; ids (rows, ...), or (1, ...) for all rows, as GPT-2's positions."""
    _check(site)

    def forward(ids: Tensor) -> Tensor:
        return _lookup(site, site.module.get_parameter("weight"), ids)

    return forward


def own_ids(site: Site) -> Callable[..., Any]:
    """The rule of subclasses that compute ids from something else (OPT), or scale what they find (Gemma 3)."""
    _check(site)

    def forward(*args: Any, **kwargs: Any) -> Any:
        weight = site.module.get_parameter("weight")
        detached = weight.detach()
        with substituted(site.module, {"weight": detached}), _Lookups(site, weight, detached):
            return site.original(*args, **kwargs)

    return forward


class _Lookups(TorchFunctionMode):
    """Makes every lookup in one weight, and in no other, pass through the rule."""

    def __init__(self, site: Site, weight: nn.Parameter, detached: Tensor) -> None:
        super().__init__()
        self.site, self.weight, self.detached = site, weight, detached

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is nn.functional.embedding and len(args) > 1 and args[1] is self.detached:
            return _lookup(self.site, self.weight, args[0])
        return func(*args, **(kwargs or {}))


def _check(site: Site) -> None:
    module: Any = site.module
    for name in ("max_norm", "scale_grad_by_freq", "sparse"):
        if getattr(module, name):
            message = f"{site.name} is an embedding with {name}, which has no gradient of one unit alone."
            raise DPError(message, f"Build the model without {name}.")


def _lookup(site: Site, weight: nn.Parameter, ids: Tensor) -> Tensor:
    site.tape.used(weight)
    if ids.dim() > 1 and ids.shape[0] == 1 and site.tape.rows > 1:
        ids = ids.expand(site.tape.rows, *ids.shape[1:])
    found: Tensor = _Embedding.apply(ids, site.tape.anchor, site, weight.detach())  # type: ignore[no-untyped-call]
    return found


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, ids: Tensor, anchor: Tensor, site: Site, weight: Tensor) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.site = site
        return torch.embedding(weight, ids)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[None, None, None, None]:
        (ids,), site = ctx.saved_tensors, ctx.site
        module: Any = site.module
        if ids.dim() < 2:
            message = f"{site.name} looks up ids of shape {tuple(ids.shape)}: it cannot be told which row is whose."
            raise DPError(message, "Use mode 'one-by-one'.")
        if module.padding_idx is not None:
            g = g.masked_fill((ids == module.padding_idx)[..., None], 0)
        flat, values = site.tape.by_unit(ids, site.name, 0), site.tape.by_unit(g, site.name)
        site.tape.capture(module.weight, Rows(flat, values, module.num_embeddings))
        return None, None, None, None
