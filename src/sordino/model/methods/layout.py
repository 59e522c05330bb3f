"""Where the sub-layers of a transformer block are: which linear modules make keys, values and outputs."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from sordino.errors import ConfigError

__all__ = ["Block", "blocks", "conv1d"]

_KEYS_VALUES = ("k_proj", "v_proj", "key", "value", "key_proj", "value_proj", "k_lin", "v_lin", "k", "v")
# One module for queries, keys and values.
_FUSED = ("c_attn", "query_key_value", "qkv_proj", "Wqkv")
_ATTENTION_OUT = ("o_proj", "out_proj", "c_proj", "dense", "out_lin", "Wo", "o")
_FEEDFORWARD_OUT = ("down_proj", "c_proj", "fc2", "fc_out", "dense_4h_to_h", "lin2", "Wo")
# BERT and its kin, where every other linear module of a block is called `dense` as well.
_FEEDFORWARD_PATH = "output.dense"


@dataclass(frozen=True)
class Block:
    """Names, within the block called `place`, of the linear modules of its two sub-layers.

    `keys_values` are those that make keys and values (and queries, where one module makes all),
    `attention_out` and `feedforward_out` the last of each sub-layer.
    """

    place: str
    keys_values: tuple[str, ...]
    attention_out: str
    feedforward_out: str


def conv1d() -> type[nn.Module]:
    """The linear layer of GPT-2, whose weight is (in, out)."""
    from transformers.pytorch_utils import Conv1D

    kind: type[nn.Module] = Conv1D
    return kind


def blocks(module: Any, kind: str) -> list[Block]:
    """The blocks of a decoder or encoder; raises `ConfigError` where method `kind` finds none it knows."""
    count = module.config.get_text_config().num_hidden_layers
    stacks = ((n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count)
    name, stack = next(stacks, ("", ()))
    if not stack:
        message = f"method.kind is {kind}, but no stack of {count} blocks is found in {type(module).__name__}."
        raise ConfigError(message, "Use lora.")
    return [_block(f"{name}.{number}", block, kind) for number, block in enumerate(stack)]


def _block(place: str, block: nn.Module, kind: str) -> Block:
    linear = [n for n, found in block.named_modules() if isinstance(found, (nn.Linear, conv1d()))]
    attention = [n for n in linear if "att" in n.rpartition(".")[0]]
    inner = [n for n in attention if _leaf(n) in _FUSED] or [n for n in attention if _leaf(n) in _KEYS_VALUES]
    first = [n for n in attention if _leaf(n) in _ATTENTION_OUT]
    rest = [n for n in linear if n not in attention]
    second = [n for n in rest if _leaf(n) in _FEEDFORWARD_OUT or n == _FEEDFORWARD_PATH]
    if not inner or len(first) != 1 or len(second) != 1:
        message = f"method.kind is {kind}, but in {place} it cannot be told which linear module does what."
        raise ConfigError(message, f"Use lora. Linear modules there: {', '.join(linear) or 'none'}.")
    return Block(place, tuple(inner), first[0], second[0])


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
