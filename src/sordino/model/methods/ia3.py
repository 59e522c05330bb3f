"""IA3: keys, values and feed-forward activations are scaled (Liu et al. 2022, arXiv:2205.05638), by PEFT."""

from typing import Any

from torch import nn

from sordino.model.methods.layout import blocks, conv1d

__all__ = ["ia3_config"]


def ia3_config(module: nn.Module) -> Any:
    """PEFT's configuration, for modules chosen by what they do, not from its list of families.

    Where one module makes queries, keys and values, all three are scaled.
    """
    from peft import IA3Config

    found = blocks(module, "ia3")
    feedforward = sorted({b.feedforward_out for b in found})
    return IA3Config(
        task_type="CAUSAL_LM",
        target_modules=sorted({name for b in found for name in b.keys_values} | set(feedforward)),
        feedforward_modules=feedforward,
        fan_in_fan_out=any(isinstance(m, conv1d()) for m in module.modules()),
    )
