"""Parameters tuned in place of a model's own, which are kept to switch back to."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

__all__ = ["Replaced"]


class Replaced(nn.Module):
    """Copies of a model's parameters that are tuned in their stead, and the originals.

    The originals are buffers that no checkpoint holds, so that they follow the model to its device.
    A bias that a linear module lacks begins at zero. Copies are untied: tuning them changes no other
    module that shares the original.
    """

    def __init__(self, model: nn.Module, names: Sequence[str]) -> None:
        """Put a copy in place of each of the parameters `names` of `model`, to be tuned."""
        super().__init__()
        self.names = tuple(names)
        for number, name in enumerate(self.names):
            owner, leaf = _place(model, name)
            before = getattr(owner, leaf)
            self.register_buffer(f"before_{number}", None if before is None else before.detach(), persistent=False)
            start = owner.weight.new_zeros(owner.weight.shape[0]) if before is None else before.detach().clone()
            setattr(owner, leaf, nn.Parameter(start))

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What is tuned in `model`, by its name there."""
        return {name: getattr(*_place(model, name)) for name in self.names}

    @contextmanager
    def off(self, model: nn.Module) -> Iterator[None]:
        """The originals are back in `model` as long as this is open."""
        places = [_place(model, name) for name in self.names]
        tuned = [getattr(owner, leaf) for owner, leaf in places]
        for number, (owner, leaf) in enumerate(places):
            before = getattr(self, f"before_{number}")
            setattr(owner, leaf, None if before is None else nn.Parameter(before, requires_grad=False))
        try:
            yield
        finally:
            for (owner, leaf), parameter in zip(places, tuned, strict=True):
                setattr(owner, leaf, parameter)


def _place(model: nn.Module, name: str) -> tuple[Any, str]:
    owner, _, leaf = name.rpartition(".")
    return model.get_submodule(owner), leaf
