"""What is audited: a model that Sordino trained, with its untuned base, as the source of numbers about records."""

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Protocol, runtime_checkable

import numpy as np

from sordino.attacks.base import Task
from sordino.audit.continuations import text_after
from sordino.config import recorded
from sordino.errors import RunError
from sordino.evidence import digest
from sordino.run import Run
from sordino.serialize import Serializer, Tokens
from sordino.signals import STATISTICS, Statistics
from sordino.train.reading import classes_of, serializer_for

__all__ = ["Subject", "Trained", "continued", "said"]

Tick = Callable[[int], None]

# Settings of a model that say where it came from, not what it computes.
_INCIDENTAL = ("_name_or_path", "architectures", "dtype", "torch_dtype", "transformers_version", "use_cache")


@runtime_checkable
class Subject(Protocol):
    """A model under audit: "tuned" is the model itself, "base" the untuned one, where there is one.

    `trained_here` says that Sordino drew the coins; `has_base` that there is an untuned model;
    `gives` which statistics of a token can be had; `task` what the model does.
    """

    trained_here: bool
    has_base: bool
    gives: frozenset[str]
    task: Task

    def load_serializer(self) -> Serializer:
        """The way from a record to tokens; raises `RunError` where it has changed."""

    def identity(self, which: str) -> tuple[str, ...]:
        """Digests of all that numbers under a model depend on, but for the records."""

    def manifest(self) -> dict[str, str]:
        """What a reader of stored signals wants to know about where they come from."""

    def measure(self, tokens: Sequence[Tokens], which: str, tick: Tick) -> Statistics:
        """The statistics of the "tuned" or the "base" model on `tokens`."""

    def repeats(self, prefixes: Sequence[np.ndarray], suffixes: Sequence[np.ndarray]) -> list[bool]:
        """Whether greedy decoding by the tuned model puts each suffix after its prefix, word for word."""

    def continues(self, prefixes: Sequence[np.ndarray], lengths: Sequence[int], which: str) -> list[str]:
        """The text of `lengths[i]` tokens that the "tuned" or "base" model, decoding greedily, puts after each prefix.

        It ends before an end token.
        """


def said(model: Any, prefixes: Sequence[np.ndarray], suffixes: Sequence[np.ndarray]) -> list[bool]:
    """`Subject.repeats` by decoding with a model in memory."""
    from sordino.generate import greedy

    made = greedy(model, prefixes, [len(suffix) for suffix in suffixes])
    return [bool(np.array_equal(suffix, words)) for suffix, words in zip(suffixes, made, strict=True)]


def continued(model: Any, prefixes: Sequence[np.ndarray], lengths: Sequence[int]) -> list[str]:
    """`Subject.continues` by decoding with a model in memory."""
    from sordino.generate import greedy

    made = greedy(model, prefixes, lengths)
    return [text_after(model.tokenizer, prefix, ids) for prefix, ids in zip(prefixes, made, strict=True)]


class Trained:
    """A run of Sordino's own: fine-tuned weights, and the model as it was before."""

    trained_here = True
    has_base = True
    gives = frozenset(STATISTICS)

    def __init__(self, run: Run) -> None:
        """Open `run`; raises `RunError` where it is not trained to its end, or its weights have changed."""
        self.run, self.card = run, run.card
        if self.card.status != "trained":
            hint = f"Finish it: `sordino train --resume {run.path}`."
            raise RunError(f"{run.path} is not trained to its end ({self.card.status}).", hint)
        self.config = recorded(self.card.config, str(run.path / "run.json"))
        self.task: Task = self.config.task
        self.labels = tuple(self.card.data.get("labels", ()))
        self._check_weights()

    def _check_weights(self) -> None:
        # Always, though signals may be in the store: a report must be on the weights that are there.
        from sordino.model import weights_digest

        if weights_digest(self.run.weights) != self.card.model["weights"]:
            message = f"The weights in {self.run.weights} are not those that training wrote."
            raise RunError(message, "Restore them, or train again.")

    def _check_base(self, model: Any) -> None:
        found = model.digest()
        if found != self.card.model["base"]:
            path, known = self.config.model.path, self.card.model["base"]
            message = f"The model {path} has changed since it was tuned ({known} → {found})."
            raise RunError(message, "Restore it, or train again.")

    def load_serializer(self) -> Serializer:
        """The run's own serializer; raises `RunError` where the tokenizer has changed since."""
        from sordino.model import load_tokenizer

        tokenizer = load_tokenizer(self.config.model, str(self.run.weights))
        serializer = serializer_for(self.config, tokenizer, int(self.card.model["context"]), self.labels)
        if serializer.rule != self.card.model["serializer"]:
            message = f"The tokenizer in {self.run.weights} or the serializer is not the one the run was trained with."
            raise RunError(message, "Restore the folder, or use the Sordino that trained it.")
        return serializer

    @cached_property
    def tuned(self) -> Any:
        """The fine-tuned model; raises `RunError` where the base under its adapter has changed."""
        from sordino.model import restore

        model = restore(self.config.model, self.config.method, self.run.weights, classes_of(self.config, self.labels))
        if self.config.method.kind != "full":
            self._check_base(model.base())
        return model

    @cached_property
    def untuned(self) -> Any:
        """The model as it was before tuning; raises `RunError` where it has changed since."""
        model = self.tuned.base()
        self._check_base(model)
        return model

    def identity(self, which: str) -> tuple[str, ...]:
        """Digests of the weights in use and of the serializer."""
        model = self.card.model
        return str(model["base"]), str(model["weights"]) if which == "tuned" else "", str(model["serializer"])

    def manifest(self) -> dict[str, str]:
        """The digests, with the numbers they were computed in, and by what; loads the model."""
        import torch

        model, loaded = self.card.model, self.tuned
        settings = {k: v for k, v in loaded.module.config.to_dict().items() if k not in _INCIDENTAL}
        return {
            **{name: str(model[name]) for name in ("weights", "base", "serializer", "context")},
            "dtype": "float32",
            # Weights without the settings of their model are half a model.
            "settings": digest(json.dumps(settings, sort_keys=True, default=str)),
            "computed by": f"torch {torch.__version__}, {loaded.device.type}",
        }

    def measure(self, tokens: Sequence[Tokens], which: str, tick: Tick) -> Statistics:
        """One forward pass over `tokens`."""
        from sordino.collect import collect
        from sordino.collect_classes import collect_classes

        gather = collect if self.task == "causal-lm" else collect_classes
        return gather(self.tuned if which == "tuned" else self.untuned, tokens, tick=tick)

    def repeats(self, prefixes: Sequence[np.ndarray], suffixes: Sequence[np.ndarray]) -> list[bool]:
        """By greedy decoding."""
        return said(self.tuned, prefixes, suffixes)

    def continues(self, prefixes: Sequence[np.ndarray], lengths: Sequence[int], which: str) -> list[str]:
        """By greedy decoding."""
        return continued(self.tuned if which == "tuned" else self.untuned, prefixes, lengths)
