"""Signals for an audit, from the run's store where they are there, from the models where they are not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

from sordino.config import recorded
from sordino.errors import RunError
from sordino.evidence import digest
from sordino.records import Example, content_digest
from sordino.run import Run
from sordino.serialize import Serializer, Tokens, View
from sordino.signals import Signals, Statistics, Store
from sordino.train.flow import classes_of, serializer_for

__all__ = ["Collector"]

# Part of every key: numbers computed under another definition are not found again.
_DEFINITION = "signals/1"

Ticker = Callable[[str, int], Callable[[int], None]]


class Collector:
    """Gives the signals of the run's tuned and untuned model on records, each computed once ever.

    Models are loaded only when something is missing, so a second audit runs none. `forwards` counts
    the passes that had to be made.
    """

    def __init__(self, run: Run, ticker: Ticker = lambda name, total: lambda done: None) -> None:
        """Open `run`; raises `RunError` where it is not trained to its end, or its weights have changed."""
        self.run, self.card, self.ticker = run, run.card, ticker
        if self.card.status != "trained":
            hint = f"Finish it: `sordino train --resume {run.path}`."
            raise RunError(f"{run.path} is not trained to its end ({self.card.status}).", hint)
        self.config = recorded(self.card.config, str(run.path / "run.json"))
        self._check_weights()
        self.store = Store(run.private / "signals")
        self.forwards = 0
        self._encoded: dict[tuple[str, str], Tokens] = {}

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

    @cached_property
    def serializer(self) -> Serializer:
        """The run's own serializer; raises `RunError` where the tokenizer has changed since."""
        from sordino.model import load_tokenizer

        tokenizer = load_tokenizer(self.config.model, str(self.run.weights))
        labels = self.card.data.get("labels", ())
        serializer = serializer_for(self.config, tokenizer, int(self.card.model["context"]), labels)
        if serializer.rule != self.card.model["serializer"]:
            message = f"The tokenizer in {self.run.weights} or the serializer is not the one the run was trained with."
            raise RunError(message, "Restore the folder, or use the Sordino that trained it.")
        return serializer

    @cached_property
    def tuned(self) -> Any:
        """The fine-tuned model; raises `RunError` where the base under its adapter has changed."""
        from sordino.model import restore

        classes = classes_of(self.config, self.card.data.get("labels", ()))
        model = restore(self.config.model, self.config.method, self.run.weights, classes)
        if self.config.method.kind != "full":
            self._check_base(model.base())
        return model

    @cached_property
    def untuned(self) -> Any:
        """The model as it was before tuning; raises `RunError` where it has changed since."""
        model = self.tuned.base()
        self._check_base(model)
        return model

    def encode(self, example: Example, name: str = "", view: View | None = None) -> Tokens:
        """The tokens of an example under a view."""
        key = (example.record.id, name)
        if key not in self._encoded:
            self._encoded[key] = self.serializer.encode(example.record, view)
        return self._encoded[key]

    def signals(self, examples: Sequence[Example], views: Mapping[str, View]) -> tuple[Signals, Signals]:
        """The signals of the tuned model, with the untuned one as base; and those of the untuned model."""
        tuned, untuned = (self._signals(examples, views, which) for which in ("tuned", "base"))
        return replace(tuned, base=untuned), replace(untuned, base=untuned)

    def _signals(self, examples: Sequence[Example], views: Mapping[str, View], which: str) -> Signals:
        named: dict[str, View | None] = {"": None, **views}
        made = {}
        for name, view in named.items():
            tokens = [self.encode(e, name, view) for e in examples]
            made[name] = Signals(
                record_ids=tuple(e.record.id for e in examples),
                texts=tuple(t.text for t in tokens),
                statistics=self._statistics(examples, tokens, which, name),
            )
        plain = made.pop("")
        return Signals(record_ids=plain.record_ids, texts=plain.texts, statistics=plain.statistics, views=made)

    def key(self, examples: Sequence[Example], which: str, *more: str) -> str:
        """A digest of all that numbers about `examples` under a model depend on."""
        model = self.card.model
        weights = model["weights"] if which == "tuned" else ""
        records = (e.record for e in examples)
        contents = (part for r in records for part in (r.id, content_digest(r.messages, r.label)))
        return digest(_DEFINITION, model["base"], weights, model["serializer"], *more, *contents)

    def _statistics(self, examples: Sequence[Example], tokens: Sequence[Tokens], which: str, view: str) -> Statistics:
        key = self.key(examples, which, view)
        found = self.store.get(key)
        if found is not None:
            return found
        from sordino.collect import collect
        from sordino.collect_classes import collect_classes

        model = self.tuned if which == "tuned" else self.untuned
        label = f"{'fine-tuned' if which == 'tuned' else 'untuned'} model" + (f", {view}" if view else "")
        gather = collect if model.classes is None else collect_classes
        made = gather(model, tokens, tick=self.ticker(label, len(tokens)))
        self.forwards += 1
        manifest = {
            "definition": _DEFINITION, "model": which, "view": view or "plain", "records": len(tokens),
            "weights": self.card.model["weights"], "base": self.card.model["base"],
            "serializer": self.card.model["serializer"], "dtype": "float32",
            "attention": str(getattr(model.module.config, "_attn_implementation", "unknown")),
        }  # fmt: skip
        self.store.put(key, made, manifest)
        return made
