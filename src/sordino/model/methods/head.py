"""Head only: the rest of the model is a fixed feature extractor; of a classifier, a linear probe."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from sordino.model.methods.replaced import Replaced

__all__ = ["attach_head", "parameters_of"]


def attach_head(module: Any, heads: Sequence[str] | None = None) -> Replaced:
    """The head's parameters, untied from the embedding where they were one tensor.

    `heads` are the modules above a classifier's trunk, which share nothing with it.
    """
    if heads is not None:
        return Replaced(module, parameters_of(module, heads))
    head = module.get_output_embeddings()
    [place] = [name for name, found in module.named_modules() if found is head]
    replaced = Replaced(module, [f"{place}.{leaf}" for leaf, _ in head.named_parameters()])
    # Else whoever saves or resizes the model would tie them again.
    module.config.tie_word_embeddings = False
    return replaced


def parameters_of(module: nn.Module, places: Sequence[str]) -> list[str]:
    """The names of all parameters in the modules called `places`."""
    return [f"{place}.{leaf}" for place in places for leaf, _ in module.get_submodule(place).named_parameters()]
