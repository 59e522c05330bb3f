"""A linear layer with the low-rank factors of K adapters stacked, each group of rows under an adapter of its own.

The base product and its correction are one step of autograd: h = s·x·Aᵀ and y = x·Wᵀ + h·Bᵀ, two batched products. The
gradients of the factors go straight into a buffer, whose rows are adapters or, for private training, units.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from sordino.errors import ModelError
from sordino.model.methods.layout import conv1d

__all__ = ["Part", "StackedLinear"]


@dataclass(frozen=True)
class Part:
    """Which adapters a batch is under: row g of `values` (G, P) has the values of group g.

    `grads` (G·units, P) takes gradients: those of each of `units` equal pieces of a group. The batch has `rows` rows
    of `width` tokens (0: not known, and then there is one group).
    """

    values: Tensor
    grads: Tensor | None
    units: int
    rows: int
    width: int

    @property
    def groups(self) -> int:
        """How many groups the rows of the batch are in."""
        return len(self.values)


class StackedLinear:
    """The linear `module` called `name`, with factors A (r, d) and B (o, r) that start in columns `a` and `b`.

    `name` is PEFT's name of it. Columns are those of a `Part`, which is set before the module is called.
    `frozen_a` leaves A without a gradient.
    """

    def __init__(self, name: str, module: nn.Module, rank: int, scaling: float, *, frozen_a: bool) -> None:
        self.name, self.module, self.rank, self.scaling, self.frozen_a = name, module, rank, scaling, frozen_a
        self.transposed = isinstance(module, conv1d())
        weight: Any = module.weight
        self.inner, self.outer = weight.shape if self.transposed else weight.shape[::-1]
        self.a = self.b = 0
        self.part: Part | None = None
        # Requires a gradient, so that backward runs where the input requires none.
        self._anchor = torch.zeros((), dtype=weight.dtype, device=weight.device, requires_grad=True)

    @property
    def sizes(self) -> tuple[int, int]:
        """How many columns A and B take."""
        return self.rank * self.inner, self.outer * self.rank

    def factors(self, columns: Tensor) -> tuple[Tensor, Tensor]:
        """A (N, r, d) and B (N, o, r) as views of `columns` (N, P)."""
        first, second = self.sizes
        a = columns[:, self.a : self.a + first].view(-1, self.rank, self.inner)
        return a, columns[:, self.b : self.b + second].view(-1, self.outer, self.rank)

    def forward(self, x: Tensor) -> Tensor:
        """What the module returns for `x`, corrected; raises `ModelError` where rows cannot be told apart."""
        part = self.part
        assert part is not None  # the forward is in place only while there is one
        if part.groups > 1 or part.units > 1:
            _check_rows(self.name, x, part)
        result: Tensor = _Corrected.apply(x, self._anchor, self, part)  # type: ignore[no-untyped-call]
        return result

    def base(self, x: Tensor) -> Tensor:
        """The module's own product."""
        module: Any = self.module
        if not self.transposed:
            return linear(x, module.weight, module.bias)
        return torch.addmm(module.bias, x.reshape(-1, self.inner), module.weight).view(*x.shape[:-1], self.outer)

    def back(self, grad: Tensor) -> Tensor:
        """The gradient of the input of `base`."""
        weight: Any = self.module.weight
        found: Tensor = grad @ (weight.t() if self.transposed else weight)
        return found


def _check_rows(name: str, x: Tensor, part: Part) -> None:
    # (rows, T, d), or both flattened to one, as in some architectures: groups are contiguous in these alone.
    if x.dim() == 3 and x.shape[:2] == (part.rows, part.width):
        return
    if x.dim() == 2 and x.shape[0] == part.rows * part.width:
        return
    message = f"{name} computes on a tensor of shape {tuple(x.shape)} in a batch of {part.rows} rows of {part.width}:"
    raise ModelError(f"{message} it cannot be told which row is whose.", "Train adapters of this model one by one.")


class _Corrected(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, anchor: Tensor, layer: StackedLinear, part: Part) -> Tensor:
        a, b = layer.factors(part.values)
        y = layer.base(x)
        grouped = x.reshape(part.groups, -1, layer.inner)
        low = torch.bmm(grouped, a.transpose(1, 2)).mul_(layer.scaling)
        y.view(part.groups, -1, layer.outer).baddbmm_(low, b.transpose(1, 2))
        ctx.layer, ctx.part = layer, part
        ctx.save_for_backward(grouped, low)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None, None]:
        layer, part = ctx.layer, ctx.part
        grouped, low = ctx.saved_tensors
        a, b = layer.factors(part.values)
        out = grad.reshape(part.groups, -1, layer.outer)
        inner = torch.bmm(out, b).mul_(layer.scaling)
        if part.grads is not None:
            into_a, into_b = layer.factors(part.grads)
            pieces = len(part.grads)
            _add(into_b, out.view(pieces, -1, layer.outer), low.view(pieces, -1, layer.rank))
            if not layer.frozen_a:
                _add(into_a, inner.view(pieces, -1, layer.rank), grouped.view(pieces, -1, layer.inner))
        if not ctx.needs_input_grad[0]:
            return None, None, None, None
        found = layer.back(grad)
        found.view(part.groups, -1, layer.inner).baddbmm_(inner, a)
        return found, None, None, None


def _add(into: Tensor, left: Tensor, right: Tensor) -> None:
    """Add leftᵀ·right of each piece to `into`."""
    # Not in place: the rows of `into` are far apart, and batched products then go one by one.
    into.add_(torch.bmm(left.transpose(1, 2), right))
