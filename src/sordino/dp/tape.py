"""Where the rules leave what they capture in a backward pass."""

from collections import Counter
from collections.abc import Callable, Sequence

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
        self.lengths: set[int] = set()
        self.uses: Counter[int] = Counter()

    def start(self, units: int) -> None:
        """Begin a forward pass of `units` units."""
        self.units, self.rows = units, 0
        self.uses.clear()
        self.lengths.clear()

    def see(self, inputs: Sequence[Tensor]) -> None:
        """What the model is given: the first has the rows of the batch, and (rows, length) those of length `length`."""
        self.rows = self.rows or inputs[0].shape[0]
        self.lengths.update(x.shape[1] for x in inputs if x.dim() > 1)

    def fits(self, values: Tensor, inner: int = 1) -> bool:
        """Whether `values` are of the batch: (rows, ..., *inner), or (rows · length, *inner) as in OPT's blocks."""
        length = values.shape[0] if values.dim() else 0
        flat = values.dim() == 1 + inner and any(length == self.rows * one for one in self.lengths)
        return self.rows > 0 and (length == self.rows or flat)

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
        if not self.fits(values, inner):
            message = f"{name} computes on a tensor of shape {tuple(values.shape)} in a batch of {self.rows} rows:"
            raise DPError(f"{message} it cannot be told which row is whose.", "Use mode 'one-by-one'.")
        return values.reshape(self.units, -1, *values.shape[values.dim() - inner :])
