"""The methods of tuning, one file each: what is added to a model, and how it is switched off.

PEFT wraps a model (LoRA, IA3, prefix and prompt tuning). BitFit, head and adapters, which it lacks,
leave the model as it is and hang one module under the name `sordino_tuning` in it, either `Replaced`
parameters or `Bottlenecks`.
"""

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn

from sordino.config import MethodConfig
from sordino.model.methods.adapters import Bottlenecks
from sordino.model.methods.replaced import Replaced
from sordino.model.methods.virtual import without_virtual

__all__ = ["OWN", "Own", "base_state", "head_of", "own", "switched_off", "untuned", "unwrapped", "virtual_tokens"]

OWN = "sordino_tuning"
Own = Replaced | Bottlenecks
# What PEFT adds inside a model: lora_A.default.weight, ia3_l.default and the like; where several are combined, part0.
_ADDED = re.compile(rf"\.(lora|ia3)_\w+\.(default|part\d+)(\.|$)|\.modules_to_save\.|^{OWN}\.")
# What PEFT puts between a module's name and its own weights.
_BETWEEN = re.compile(r"\.(base_layer|original_module)\.")


def virtual_tokens(method: MethodConfig | None) -> int:
    """How many positions of the context a method takes for itself."""
    return method.virtual_tokens if method is not None and method.kind in ("prefix", "prompt") else 0


def unwrapped(module: Any) -> Any:
    """The transformers model inside a PEFT one, its adapters included; any other as it is."""
    return module.get_base_model() if hasattr(module, "peft_config") else module


def head_of(module: Any) -> nn.Module:
    """The language-model head, with its adapter if it has one."""
    head: nn.Module = unwrapped(module).get_output_embeddings()
    return head


def own(module: nn.Module) -> Own | None:
    """What a method of ours has hung into a model."""
    found: Own | None = getattr(module, OWN, None)
    return found


def untuned(module: Any) -> AbstractContextManager[None]:
    """A context in which a tuned model computes, bit for bit, what it did before it was tuned."""
    if hasattr(module, "untuned"):  # several adapters in one
        several: AbstractContextManager[None] = module.untuned()
        return several
    if hasattr(module, "peft_config"):
        settings = module.active_peft_config
        virtual = settings.is_prompt_learning and settings.task_type == "SEQ_CLS"
        switch: AbstractContextManager[None] = without_virtual(module) if virtual else switched_off(module)
        return switch
    found = own(module)
    return nullcontext() if found is None else found.off(module)


@contextmanager
def switched_off(module: Any) -> Iterator[None]:
    """The adapters of a PEFT model do nothing as long as this is open, and are then trainable or not as before."""
    tuned = [(parameter, parameter.requires_grad) for parameter in module.parameters()]
    try:
        with module.disable_adapter():
            yield
    finally:
        # PEFT, on the way back, makes all of an adapter trainable, also what was frozen in it.
        for parameter, on in tuned:
            parameter.requires_grad_(on)


def base_state(module: Any) -> dict[str, torch.Tensor]:
    """The weights under a method, named as in the model before it was tuned."""
    with untuned(module):
        state = unwrapped(getattr(module, "shared", module)).state_dict()
    return {_BETWEEN.sub(".", name): value for name, value in state.items() if not _ADDED.search(name)}
