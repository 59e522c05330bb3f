"""Rules that make one model's logits of those of several: ensembles, and models of what is to be forgotten."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, relu

from sordino.errors import ModelError, did_you_mean

__all__ = ["Rule", "ensemble", "rule_of", "uld", "whp"]


@dataclass(frozen=True)
class Rule:
    """A rule by `name`, the `parts` it reads in this order, and its `settings`, all given."""

    name: str
    parts: tuple[str, ...]
    settings: dict[str, Any]

    def __call__(self, logits: Sequence[Tensor]) -> Tensor:
        """Logits (..., V) of those of the parts, each (..., V), in the type of theirs."""
        exact = [values.to(torch.promote_types(values.dtype, torch.float32)) for values in logits]
        if self.name == "ensemble":
            made = ensemble(exact, [self.settings["weights"][part] for part in self.parts])
        else:
            made = _TWO[self.name](*exact, **self.settings)
        return made.to(logits[0].dtype)


def ensemble(logits: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """The ln of the mean of the parts' probabilities, by `weights` that sum to 1: (..., V), natural logarithms."""
    total = None
    for values, weight in zip(logits, weights, strict=True):
        if weight:
            mine = log_softmax(values, dim=-1) + torch.tensor(weight, dtype=torch.float64).log().item()
            total = mine if total is None else torch.logaddexp(total, mine)
    assert total is not None  # weights that are all 0 are refused
    return total


def whp(model: Tensor, reinforced: Tensor, *, alpha: float) -> Tensor:
    """What a model tuned further on something finds likelier counts less: z − α·ReLU(z_reinforced − z).

    Source: Eldan & Russinovich 2023, arXiv:2310.02238, "Who's Harry Potter", who train on the result; here it is what
    the model answers with.
    """
    return model - alpha * relu(reinforced - model)


def uld(model: Tensor, assistant: Tensor, *, weight: float, filter: float) -> Tensor:
    """Logits less those of an assistant, z − w·z_assistant, where the model finds a token likely, else z.

    Likely is a token of at least `filter` times the probability of the likeliest, and those that are among as large a
    share of the vocabulary. The assistant's logits are less their mean over the vocabulary, so that one that is uniform
    changes nothing, and what is filtered stays where it was. Source: Ji et al. 2024, arXiv:2406.08607; in the code they
    published, logits are not centred: filtered tokens then move by a constant against the others.
    """
    change = assistant - assistant.mean(dim=-1, keepdim=True)
    if filter:
        few = max(1, int(filter * model.shape[-1]))
        least = model.topk(few, dim=-1).values[..., -1:]
        limit = model.amax(dim=-1, keepdim=True) + torch.tensor(filter, dtype=torch.float64).log().item()
        change = change.masked_fill(model < torch.minimum(least, limit), 0.0)
    return model - weight * change


_TWO: dict[str, Callable[..., Tensor]] = {"whp": whp, "uld": uld}
_PARTS = {"whp": ("model", "reinforced"), "uld": ("model", "assistant")}
# Settings of a rule, with the smallest and the largest that make sense.
_RANGES = {"whp": {"alpha": (0.0, float("inf"))}, "uld": {"weight": (0.0, float("inf")), "filter": (0.0, 1.0)}}


def rule_of(name: str, parts: Sequence[str], settings: Mapping[str, Any]) -> Rule:
    """The rule called `name`; raises `ModelError` where there is none, or `parts` or `settings` are not its own."""
    if name == "ensemble":
        return Rule(name, tuple(parts), {"weights": _weights(tuple(parts), settings)})
    if name not in _TWO:
        message = f"Models are combined by rule {name!r}, which does not exist."
        raise ModelError(message, did_you_mean(str(name), {"ensemble", *_TWO}))
    wanted = _PARTS[name]
    if sorted(parts) != sorted(wanted):
        message = f"Rule {name} was given the parts {', '.join(map(str, parts)) or 'none'}."
        raise ModelError(message, f"Its parts: {', '.join(wanted)}.")
    _same_names(name, settings, _RANGES[name])
    for key, (low, high) in _RANGES[name].items():
        if not _is_number(settings[key]) or not low <= settings[key] <= high or not isfinite(settings[key]):
            raise ModelError(f"{key} of rule {name} is {settings[key]!r}.", f"Allowed: {low:g} to {high:g}.")
    return Rule(name, wanted, {key: float(settings[key]) for key in _RANGES[name]})


def _weights(parts: tuple[str, ...], settings: Mapping[str, Any]) -> dict[str, float]:
    """Weights that sum to 1."""
    if not parts:
        raise ModelError("An ensemble has no parts.", "Give one adapter or more.")
    _same_names("ensemble", {"weights": 0, **settings}, {"weights": 0})
    given = settings.get("weights", dict.fromkeys(parts, 1.0))
    if not isinstance(given, Mapping) or set(given) != set(parts):
        raise ModelError(f"The weights of an ensemble of {len(parts)} are not one a part.", "Give one for each part.")
    if not all(_is_number(w) and isfinite(w) and w >= 0 for w in given.values()) or not sum(given.values()):
        raise ModelError("The weights of an ensemble are not numbers of 0 or more, one above 0.", "Give such numbers.")
    total = sum(given.values())
    return {part: given[part] / total for part in parts}


def _same_names(name: str, settings: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    for key in settings:
        if key not in known:
            raise ModelError(f"Rule {name} has no setting {key!r}.", did_you_mean(str(key), set(known)))
    missing = sorted(set(known) - set(settings))
    if missing:
        raise ModelError(f"Rule {name} lacks {', '.join(missing)}.", "Give all of its settings.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
