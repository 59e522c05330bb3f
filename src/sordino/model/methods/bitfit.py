"""BitFit: nothing but biases is tuned (Ben Zaken et al. 2022, arXiv:2106.10199)."""

from collections.abc import Sequence
from typing import Any

from torch import nn

from sordino.model.methods.head import parameters_of
from sordino.model.methods.replaced import Replaced

__all__ = ["attach_bitfit"]


def attach_bitfit(module: Any, heads: Sequence[str] | None = None) -> Replaced:
    """All biases of a model, those of layer norms too; where it has none, new ones.

    The new ones are zero at first, in every linear module but the head. `heads` are the modules above a
    classifier's trunk, which are tuned whole, as they are in the paper.
    """
    above = parameters_of(module, heads or ())
    names = [name for name, _ in module.named_parameters() if name.endswith("bias") and name not in above]
    if not names:
        kept = [module.get_output_embeddings()] if heads is None else [module.get_submodule(name) for name in heads]
        inside = {part for head in kept for part in head.modules()}
        linear = [n for n, found in module.named_modules() if isinstance(found, nn.Linear) and found not in inside]
        names = [f"{name}.bias" for name in linear]
    return Replaced(module, [*names, *above])
