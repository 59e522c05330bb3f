"""The settings of approximate methods: what all have, what a loss adds, and which values can be meant."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sordino.config import TrainConfig
from sordino.errors import UnlearningError, did_you_mean

__all__ = ["STEPPING", "UnsuitedSettings", "all_given", "loss_parameters", "train_config"]


class UnsuitedSettings(UnlearningError):
    """A method that did not serve with these settings, and may with others."""


STEPPING: Mapping[str, Any] = {
    "learning_rate": 1e-5, "epochs": 10, "batch_size": 8, "schedule": "linear", "warmup": 0.1, "weight_decay": 0.0,
    "tolerance": 0.1, "check_every": None,
}  # fmt: skip
"""How optimizer steps are made, with published defaults, and the utility stop: the loss on validation records may grow
by a share of `tolerance` (None: by anything), measured every `check_every` steps (None: once an epoch)."""

_SCHEDULES = ("constant", "linear", "cosine")


def loss_parameters(loss: Callable[..., Any]) -> dict[str, Any]:
    """The parameters of a loss with their defaults, but not `quirks`, which only comparisons have a use for."""
    found = inspect.signature(loss).parameters.values()
    return {p.name: p.default for p in found if p.kind is p.KEYWORD_ONLY and p.name != "quirks"}


def all_given(name: str, defaults: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """`defaults` with what was `given`; raises `UnlearningError` for an unknown setting or a value that cannot be."""
    for key in given:
        if key not in defaults:
            message = f"The method {name} has no setting '{key}'."
            raise UnlearningError(message, did_you_mean(key, defaults) or "It has no settings.")
    settings = {**defaults, **given}
    for key, value in settings.items():
        allowed = _refused(key, value, defaults[key])
        if allowed is not None:
            raise UnlearningError(f"{key} of {name} is {value!r}.", f"Allowed: {allowed}.")
    return settings


# Settings that are numbers, with what they may be.
_NUMBERS: Mapping[str, tuple[Callable[[float], bool], str]] = {
    "warmup": (lambda x: 0 <= x < 1, "a share of all steps, below 1"),
    "beta": (lambda x: x > 0, "more than 0"),
    "retain_beta": (lambda x: x > 0, "more than 0"),
    "strength": (lambda x: x > 0, "more than 0"),
    "delta": (lambda x: True, "a number"),
}
_COUNTS = ("epochs", "batch_size", "check_every", "alternatives")
_CHOICES: Mapping[str, Sequence[str]] = {"schedule": _SCHEDULES, "retain": ("nll", "kl", "answer_preservation")}


def _refused(key: str, value: Any, default: Any) -> str | None:
    """What is allowed, where `value` is not; else None."""
    if value is None and (default is None or key == "tolerance"):
        return None
    if isinstance(default, bool):
        return None if isinstance(value, bool) else "true or false"
    if key in _CHOICES:
        return None if value in _CHOICES[key] else ", ".join(_CHOICES[key])
    if key in _COUNTS:
        return None if type(value) is int and value >= 1 else "a whole number, 1 or more"
    if key in ("skipped", "layer"):
        return None if type(value) is int and value >= 0 else "a whole number, 0 or more"
    good, allowed = _NUMBERS.get(key, (lambda x: x >= 0, "0 or more"))
    number = type(value) in (int, float) and math.isfinite(value)
    return None if number and good(value) else allowed


def train_config(settings: Mapping[str, Any], parent: TrainConfig) -> TrainConfig:
    """The configuration of the training loop; precision and the like are those the run was trained with."""
    return TrainConfig(
        epochs=settings["epochs"],
        batch_size=settings["batch_size"],
        learning_rate=settings["learning_rate"],
        schedule=settings["schedule"],
        warmup=settings["warmup"],
        weight_decay=settings["weight_decay"],
        validate_every=settings["check_every"],
        select="best",
        precision=parent.precision,
        gradient_checkpointing=parent.gradient_checkpointing,
    )
