"""Any other module: its gradient in each unit by `torch.func`, exact wherever functorch can follow the module.

It takes the module as a whole, with all parameters of its parts, and computes it a second time in the backward pass.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.func import vjp, vmap
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from sordino.dp.captures import Dense
from sordino.dp.rules.site import Site, substituted
from sordino.errors import DPError, SordinoError, first_line

__all__ = ["generic"]

_HINT = "Use mode 'one-by-one', or a method that leaves this module alone."


def generic(site: Site) -> Callable[..., Tensor]:
    """The rule of any module whose tensors, in and out, have the rows as their first dimension."""

    def forward(*args: Any, **kwargs: Any) -> Tensor:
        trained = site.trainable()
        site.tape.used(*trained.values())
        leaves, spec = tree_flatten((args, kwargs))
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        others = [None if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        call = _Call(site, others, spec, [isinstance(leaf, Tensor) for leaf in leaves])
        y: Tensor = _PerUnit.apply(site.tape.anchor, call, *tensors)  # type: ignore[no-untyped-call]
        return y

    return forward


class _Call:
    """One call of a module, as a function of its parameters and of the tensors it is given."""

    def __init__(self, site: Site, others: list[Any], spec: TreeSpec, is_tensor: list[bool]) -> None:
        self.site, self.others, self.spec, self.is_tensor = site, others, spec, is_tensor
        self.parameters = site.trainable()

    def __call__(self, values: dict[str, Tensor], tensors: tuple[Tensor, ...]) -> Tensor:
        given = iter(tensors)
        leaves = [next(given) if here else other for here, other in zip(self.is_tensor, self.others, strict=True)]
        args, kwargs = tree_unflatten(leaves, self.spec)
        with substituted(self.site.module, values):
            y = self.site.original(*args, **kwargs)
        if not isinstance(y, Tensor):
            raise DPError(f"{self.site.name} returns {type(y).__name__}, not one tensor.", _HINT)
        return y

    def gradients(
        self, g: Tensor, tensors: tuple[Tensor, ...], wanted: list[bool]
    ) -> tuple[dict[str, Tensor], list[Tensor]]:
        """The parameters' gradients in each unit (units, *shape), and those of the tensors `wanted`."""
        units, rows = self.site.tape.units, self.site.tape.rows
        length = g.shape[0]
        batched = [t.dim() > 0 and t.shape[0] == length for t in tensors]
        if (
            not self.site.tape.fits(g)
            or not any(batched)
            or any(w and not b for w, b in zip(wanted, batched, strict=True))
        ):
            shapes = [tuple(t.shape) for t in tensors]
            raise DPError(f"{self.site.name} computes {tuple(g.shape)} from {shapes} in a batch of {rows} rows.", _HINT)

        def one(g_unit: Tensor, *given: Tensor) -> tuple[dict[str, Tensor], list[Tensor]]:
            def f(values: dict[str, Tensor], moving: list[Tensor]) -> Tensor:
                them = iter(moving)
                return self(values, tuple(next(them) if w else t for w, t in zip(wanted, given, strict=True)))

            pull = vjp(f, values, [t for w, t in zip(wanted, given, strict=True) if w])[1]
            found: tuple[dict[str, Tensor], list[Tensor]] = pull(g_unit)
            return found

        values = {name: p.detach() for name, p in self.parameters.items()}
        split = [t.reshape(units, -1, *t.shape[1:]) if b else t for t, b in zip(tensors, batched, strict=True)]
        each = vmap(one, in_dims=(0, *(0 if b else None for b in batched)))
        found: tuple[dict[str, Tensor], list[Tensor]] = each(g.reshape(units, -1, *g.shape[1:]), *split)
        return found


class _PerUnit(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, call: _Call, *tensors: Tensor) -> Tensor:
        device = anchor.device.type
        ctx.autocast = (device, torch.get_autocast_dtype(device), torch.is_autocast_enabled(device))
        ctx.save_for_backward(*tensors)
        ctx.call = call
        return call({name: p.detach() for name, p in call.parameters.items()}, tensors)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor | None, ...]:
        call, tensors, wanted = ctx.call, ctx.saved_tensors, list(ctx.needs_input_grad[2:])
        device, kind, on = ctx.autocast
        try:
            with torch.autocast(device, kind, enabled=on):
                found, inputs = call.gradients(g, tensors, wanted)
        except SordinoError:
            raise
        except Exception as error:  # functorch raises almost anything where it cannot follow
            message = f"{call.site.name} ({type(call.site.module).__name__}) has no gradient of one unit alone:"
            raise DPError(f"{message} {first_line(error)}.", _HINT) from error
        for name, values in found.items():
            call.site.tape.capture(call.parameters[name], Dense(values))
        flat = (t.flatten(0, 1) for t in inputs)
        return (None, None, *[next(flat) if w else None for w in wanted])
