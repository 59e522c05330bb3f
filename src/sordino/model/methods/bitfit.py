"""BitFit: nothing but biases is tuned (Ben Zaken et al. 2022, arXiv:2106.10199)."""

from typing import Any

from torch import nn

from sordino.model.methods.replaced import Replaced

__all__ = ["attach_bitfit"]


def attach_bitfit(module: Any) -> Replaced:
    """All biases of a model, those of layer norms too; where it has none, new ones.

    The new ones are zero at first, in every linear module but the head.
    """
    names = [name for name, _ in module.named_parameters() if name.endswith("bias")]
    if not names:
        head = module.get_output_embeddings()
        linear = [n for n, found in module.named_modules() if isinstance(found, nn.Linear) and found is not head]
        names = [f"{name}.bias" for name in linear]
    return Replaced(module, names)
