"""Steps of another kind than training on records: what the training loop asks of them."""

from collections.abc import Iterator, Sequence
from typing import Protocol, runtime_checkable

from torch import Tensor

from sordino.train.objective import Objective

__all__ = ["Steps"]


@runtime_checkable
class Steps(Protocol):
    """Batches by the numbers of their steps, and the loss of each, which the training loop minimises.

    All must follow from the number of a step and from what these steps were made of, so that a run that was
    interrupted goes on as one that was not. `hint` says what to do where a loss or a gradient is no number.
    """

    steps: int
    per_epoch: int
    hint: str

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, each with the numbers of what it is about."""

    def parts(self, number: int, indices: Sequence[int], objective: Objective) -> Iterator[tuple[Tensor, int]]:
        """The loss of a step in parts that add up to it, each with the tokens it is about, one alive at a time."""

    def accepts(self, validation: float | None) -> bool:
        """Whether weights with this validation loss may be kept; where not, training ends with the last that may."""
