"""Where the rules leave what they capture in a backward pass."""

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sordino.dp.captures import Capture
from sordino.errors import DPError

__all__ = ["Tape"]


class Tape:
    """The state of one pass: how many units and rows it has, and who takes what is captured.

    `anchor` requires a gradient, so that a rule's backward runs where its input requires none.
    """

    def __init__(self, device: torch.device) -> None:
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self.take: Callable[[nn.Parameter, Capture], None] | None = None
        self.units, self.rows = 0, 0
        self.uses: Counter[int] = Counter()

    def start(self, units: int) -> None:
        """Begin a forward pass of `units` units."""
        self.units, self.rows = units, 0
        self.uses.clear()

    def see(self, rows: int) -> None:
        """The batch has `rows` rows, known from the model's own input."""
        self.rows = self.rows or rows

    def used(self, *parameters: nn.Parameter | None) -> None:
        """A forward pass uses `parameters`; what a checkpoint computes again, in the backward pass, is no new use."""
        if self.take is None and torch.is_grad_enabled():
            self.uses.update(id(p) for p in parameters if p is not None and p.requires_grad)

    def capture(self, parameter: nn.Parameter, capture: Capture) -> None:
        """Hand over a use of `parameter`."""
        if self.take is None:
            message = "A backward pass ran outside `Clipper.add`: its gradients are not clipped."
            raise DPError(message, "Compute losses in the function given to `add`, and call no backward().")
        self.take(parameter, capture)

    def by_unit(self, values: Tensor, name: str, inner: int = 1) -> Tensor:
        """`values` (rows, ..., *inner) as (units, positions, *inner); rows and positions may come flattened.

        Raises `DPError` naming the module `name` where the first dimension is not that of the rows.
        """
        length = values.shape[0]
        flat = length if values.dim() == 1 + inner else 0
        if not self.rows or (length != self.rows and (not flat or flat % self.rows)):
            message = f"{name} computes on a tensor of shape {tuple(values.shape)} in a batch of {self.rows} rows:"
            raise DPError(f"{message} it cannot be told which row is whose.", "Use mode 'one-by-one'.")
        return values.reshape(self.units, -1, *values.shape[values.dim() - inner :])
