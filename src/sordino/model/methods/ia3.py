"""IA3: keys, values and feed-forward activations are scaled (Liu et al. 2022, arXiv:2205.05638), by PEFT."""

from typing import Any

from torch import nn

from sordino.model.methods.layout import blocks, conv1d

__all__ = ["ia3_config"]


def ia3_config(module: nn.Module, heads: list[str] | None = None) -> Any:
    """PEFT's configuration, for modules chosen by what they do, not from its list of families.

    Where one module makes queries, keys and values, all three are scaled. `heads` are the modules of a
    classifier that are trained whole, and saved with the adapter.
    """
    from peft import IA3Config

    found = blocks(module, "ia3")
    # Where a name within a block could be another's end, as `output.dense` is in BERT, paths are given.
    whole = any(b.attention_out.endswith(f".{b.feedforward_out}") for b in found)
    prefixes = [f"{b.place}." if whole else "" for b in found]
    feedforward = sorted({p + b.feedforward_out for p, b in zip(prefixes, found, strict=True)})
    scaled = {p + name for p, b in zip(prefixes, found, strict=True) for name in b.keys_values}
    return IA3Config(
        task_type="CAUSAL_LM" if heads is None else "SEQ_CLS",
        modules_to_save=heads,
        target_modules=sorted(scaled | set(feedforward)),
        feedforward_modules=feedforward,
        fan_in_fan_out=any(isinstance(m, conv1d()) for m in module.modules()),
    )
