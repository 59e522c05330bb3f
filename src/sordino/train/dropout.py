"""Dropout while tuning: the probability of all dropout that an architecture has."""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.dropout import _DropoutNd

from sordino.errors import ConfigError
from sordino.results import Notice

__all__ = ["set_dropout", "with_dropout"]


def _places(module: nn.Module) -> Iterator[tuple[str, Any, str]]:
    """Where a probability stands: the name of the place, what holds it, and its attribute there.

    Modules of torch, and numbers that a module hands to a function, as attention does. An adapter's own
    dropout (`lora_dropout`) is a setting of the method.
    """
    for name, part in module.named_modules():
        if "lora_dropout" in name:
            continue
        if isinstance(part, _DropoutNd):
            yield name, part, "p"
            continue
        for key, value in vars(part).items():
            if "dropout" in key and isinstance(value, int | float) and not isinstance(value, bool):
                yield f"{name}.{key}", part, key


def set_dropout(module: nn.Module, probability: float) -> list[str]:
    """Give all dropout in `module` the `probability`; returns the names of the places."""
    places = list(_places(module))
    for _, part, key in places:
        setattr(part, key, float(probability))
    return [name for name, _, _ in places]


def with_dropout(module: Any, probability: float) -> list[Notice]:
    """Set all dropout of `module` and say where it has any; in evaluation mode nothing changes.

    Raises `ConfigError` where a `probability` above 0 would change nothing.
    """
    if not probability:
        set_dropout(module, 0.0)
        return []
    kind = module.config.model_type
    # Tried with a half: with little dropout it may be chance that a few tokens go unharmed.
    places = set_dropout(module, 0.5)
    if not _changes(module):
        message = f"train.dropout is {probability:g}, and the code of {kind} has no dropout to set."
        raise ConfigError(message, "Leave train.dropout out; method.kind lora has method.dropout.")
    set_dropout(module, probability)
    alone = all("attn" in name or "attention" in name for name in places)
    where = f"attention weights alone: {kind} has no other dropout" if alone else f"{len(places)} places"
    message = f"Dropout {probability:g} while tuning, on {where}."
    return [Notice(kind="dropout", count=len(places), message=message)]


def _changes(module: Any) -> bool:
    device = next(module.parameters()).device
    ids = torch.arange(16, device=device)[None] % int(module.config.get_text_config().vocab_size)
    was = module.training

    def logits(*, training: bool) -> Tensor:
        module.train(training)
        found: Tensor = module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
        return found

    with torch.random.fork_rng([device] if device.type == "cuda" else []), torch.inference_mode():
        try:
            return not torch.equal(logits(training=True), logits(training=False))
        finally:
            module.train(was)
