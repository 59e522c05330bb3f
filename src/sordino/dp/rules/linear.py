"""Linear layers, also GPT-2's, whose weight is (in, out): ∂W = Σ_t g_t ⊗ x_t."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear as matmul

from sordino.dp.captures import Dense, Outer
from sordino.dp.rules.site import Site

__all__ = ["is_conv1d", "linear"]


def is_conv1d(module: nn.Module) -> bool:
    """Whether it is the linear layer of GPT-2."""
    from transformers.pytorch_utils import Conv1D

    return type(module).forward is Conv1D.forward


def linear(site: Site) -> Callable[[Tensor], Tensor]:
    """The rule of `nn.Linear` and `Conv1D`; inputs (rows, ..., in)."""
    module: Any = site.module
    transposed = is_conv1d(module)

    def forward(x: Tensor) -> Tensor:
        site.tape.used(module.weight, module.bias)
        y: Tensor = _Linear.apply(x, site.tape.anchor, site, transposed)  # type: ignore[no-untyped-call]
        return y

    return forward


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, site: Site, transposed: bool) -> Tensor:
        weight, bias = site.detached("weight"), site.detached("bias")
        assert weight is not None
        ctx.site, ctx.transposed, ctx.kind = site, transposed, x.dtype
        if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
            # What autocast does to a linear layer.
            low = torch.get_autocast_dtype(x.device.type)
            x, weight = x.to(low), weight.to(low)
            bias = None if bias is None else bias.to(low)
        # Where biases alone are trained, the input is not needed.
        ctx.save_for_backward(*([x] if site.module.get_parameter("weight").requires_grad else []))
        return matmul(x, weight.t() if transposed else weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, None, None, None]:
        site, module = ctx.site, ctx.site.module
        # Each of the products to come would copy a gradient that heads or a slice left strided.
        g = g.contiguous()
        gradients = site.tape.by_unit(g, site.name)
        for x in ctx.saved_tensors:
            inputs = site.tape.by_unit(x, site.name)
            both = (inputs, gradients) if ctx.transposed else (gradients, inputs)
            site.tape.capture(module.weight, Outer(*both))
        if module.bias is not None and module.bias.requires_grad:
            kind = torch.promote_types(g.dtype, torch.float32)
            site.tape.capture(module.bias, Dense(gradients.sum(1, dtype=kind)))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        weight = module.weight.detach().to(g.dtype)
        return (g @ (weight.t() if ctx.transposed else weight)).to(ctx.kind), None, None, None
