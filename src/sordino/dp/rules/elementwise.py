"""Weights that scale the last dimension of a module's output: norms, and DoRA's magnitudes.

The output is w ∘ a(x) + b(x), so that ∂w = Σ_t g_t ∘ a_t, and a is the output at w + 1 less that at w, computed
again in the backward pass: once where there is a w at which the output is 0, 0 or Gemma's -1. The gradient of the
input is autograd's own.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import layer_norm as normalised

from sordino.dp.captures import Dense
from sordino.dp.rules.site import Site, substituted

__all__ = ["elementwise", "layer_norm", "scales_its_output"]

OnGradient = Callable[..., None]


def layer_norm(site: Site) -> Callable[[Tensor], Tensor]:
    """The rule of `nn.LayerNorm`; inputs (rows, ..., *normalized shape)."""
    module: Any = site.module

    def on_gradient(g: Tensor, x: Tensor) -> None:
        exact = torch.promote_types(g.dtype, torch.float32)
        g = g.to(exact)
        if module.weight.requires_grad:
            scaled = g * normalised(x.to(exact), module.normalized_shape, eps=module.eps)
            _take(site, "weight", scaled)
        if module.bias is not None and module.bias.requires_grad:
            _take(site, "bias", g)

    def forward(input: Tensor) -> Tensor:
        site.tape.used(module.weight, module.bias)
        weight, bias = site.detached("weight"), site.detached("bias")
        y = normalised(input, module.normalized_shape, weight, bias, module.eps)
        return _tapped(site, y, on_gradient, input)

    return forward


def elementwise(site: Site) -> Callable[..., Tensor]:
    """The rule of modules of one parameter, `weight`, that `scales_its_output`; RMSNorm in all its variants."""
    module: Any = site.module
    zero = _zero_of(module)

    def at(weight: Tensor, args: Any, kwargs: Any) -> Tensor:
        with substituted(module, {"weight": weight}):
            y: Tensor = site.original(*args, **kwargs)
        return y

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        site.tape.used(module.weight)
        weight = module.weight.detach()
        places = [number for number, value in enumerate(args) if isinstance(value, Tensor)]
        named = [name for name, value in kwargs.items() if isinstance(value, Tensor)]
        # Only tensors are kept by autograd, which a checkpoint may drop; the rest is kept here.
        others = [None if number in places else value for number, value in enumerate(args)]
        rest = {name: value for name, value in kwargs.items() if name not in named}

        def on_gradient(g: Tensor, *tensors: Tensor) -> None:
            values = dict(zip([*places, *named], tensors, strict=True))
            again = [values.get(number, value) for number, value in enumerate(others)]
            keyed = {**rest, **{name: values[name] for name in named}}
            slope = at(torch.full_like(weight, 1 + (zero or 0)), again, keyed)
            if zero is None:
                slope = slope - at(torch.zeros_like(weight), again, keyed)
            _take(site, "weight", g.to(torch.promote_types(g.dtype, torch.float32)) * slope)

        y = at(weight, args, kwargs)
        return _tapped(site, y, on_gradient, *[args[n] for n in places], *[kwargs[n] for n in named])

    return forward


def scales_its_output(module: nn.Module) -> bool:
    """Whether `elementwise` is exact for it: DoRA's magnitudes by definition, RMSNorm as tried on random numbers."""
    if type(module).__name__ == "DoraLinearLayer":
        return True
    names = [name for name, _ in module.named_parameters()]
    if not type(module).__name__.endswith("RMSNorm") or names != ["weight"]:
        return False
    weight = module.get_parameter("weight")
    if weight.dim() != 1:
        return False
    x, w = _trial(weight)
    none, one, found = (_at(module, x, value) for value in (torch.zeros_like(weight), torch.ones_like(weight), w))
    wanted = none + w * (one - none)
    return found.shape == x.shape and bool((found - wanted).abs().max() <= 8 * torch.finfo(x.dtype).eps ** 0.9)


def _zero_of(module: nn.Module) -> float | None:
    """The weight at which the output of an RMSNorm is 0 for random numbers, or None."""
    weight = module.get_parameter("weight")
    if not type(module).__name__.endswith("RMSNorm"):
        return None
    x, _ = _trial(weight)
    return next((w for w in (0.0, -1.0) if not _at(module, x, torch.full_like(weight, w)).any()), None)


def _trial(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Random inputs (3, 2, n) and a random weight (n,)."""
    generator = torch.Generator().manual_seed(0)
    x, w = (torch.randn(*shape, weight.numel(), generator=generator) for shape in ((3, 2), ()))
    return x.to(weight), w.to(weight)


@torch.no_grad()
def _at(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    with substituted(module, {"weight": weight}):
        y: Tensor = module.forward(x)
    return y


def _take(site: Site, name: str, gradient: Tensor) -> None:
    """Capture `gradient` (rows, ..., *shape) of the parameter `name`, summed over positions."""
    parameter = site.module.get_parameter(name)
    values = site.tape.by_unit(gradient, site.name, parameter.dim()).sum(1)
    site.tape.capture(parameter, Dense(values))


def _tapped(site: Site, y: Tensor, on_gradient: OnGradient, *inputs: Tensor) -> Tensor:
    tapped: Tensor = _Tap.apply(y, site.tape.anchor, on_gradient, *[x.detach() for x in inputs])  # type: ignore[no-untyped-call]
    return tapped


class _Tap(torch.autograd.Function):
    """Passes a tensor through, and shows its gradient to `on_gradient`, with the tensors `inputs`."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, anchor: Tensor, on_gradient: OnGradient, *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)
        ctx.on_gradient = on_gradient
        return y.view_as(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        # Asked for once: a checkpoint computes them again, and drops them as they are handed out.
        inputs = ctx.saved_tensors
        ctx.on_gradient(g, *inputs)
        return (g, None, None, *[None for _ in inputs])
