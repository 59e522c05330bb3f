"""How gradients of units are captured, a rule for each kind of module.

Everything is captured inside `autograd.Function.backward`, from saved tensors: under checkpointing nothing is kept
that checkpointing would drop, and no gradient of a weight is computed that nobody wants. A rule is a function of
`Site` that gives the module's new forward.
"""

from collections.abc import Callable
from typing import Any

from torch import nn

from sordino.dp.rules.elementwise import elementwise, layer_norm, scales_its_output
from sordino.dp.rules.embedding import embedding, own_ids
from sordino.dp.rules.generic import generic
from sordino.dp.rules.linear import is_conv1d, linear
from sordino.dp.rules.site import Site

__all__ = ["Rule", "Site", "generic", "rule_for"]

Rule = Callable[[Site], Callable[..., Any]]


def rule_for(module: nn.Module) -> Rule:
    """The rule for a module with trainable parameters of its own; `generic` where none is made for it."""
    kind, plain = type(module), "forward" not in vars(module)
    if plain and (kind.forward is nn.Linear.forward or is_conv1d(module)):
        return linear
    if isinstance(module, nn.Embedding):
        return embedding if plain and kind.forward is nn.Embedding.forward else own_ids
    if plain and kind.forward is nn.LayerNorm.forward:
        return layer_norm
    return elementwise if plain and scales_its_output(module) else generic
