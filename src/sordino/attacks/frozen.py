"""A model through which gradients flow and whose own weights ask for none."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from sordino.model import Model
from sordino.model.methods import untuned

__all__ = ["frozen"]


@contextmanager
def frozen(model: Model) -> Iterator[Any]:
    """The module in evaluation mode, tuned or not, none of its weights asking for a gradient while this is open."""
    module, was_training = model.module, model.module.training
    module.eval()
    try:
        with nullcontext() if model.tuned else untuned(module):
            before = [(p, p.requires_grad) for p in module.parameters()]
            try:
                module.requires_grad_(False)
                yield module
            finally:
                for parameter, on in before:
                    parameter.requires_grad_(on)
    finally:
        module.train(was_training)
