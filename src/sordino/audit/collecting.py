"""Signals for an audit, from the run's store where they are there, from the models where they are not."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np

from sordino.audit.borrowed import borrowed
from sordino.audit.external import open_external
from sordino.audit.parts import Measured, statistics_in_shards
from sordino.audit.subjects import Subject, Trained
from sordino.audit.weights import weights
from sordino.audit.written import Written
from sordino.evidence import digest
from sordino.records import Example, Record, content_digest
from sordino.results import Decoding, encode
from sordino.run import Run
from sordino.serialize import Serializer, Tokens, View
from sordino.signals import Signals, Statistics, Store

__all__ = ["Collector"]

# Part of every key: numbers computed under another definition are not found again.
_DEFINITION = "signals/1"

Ticker = Callable[[str, int], Callable[[int], None]]


class Collector:
    """Gives the signals of the run's tuned and untuned model on records, each computed once ever.

    Models are loaded only when something is missing, so a second audit runs none. What a run beside this
    one computed of the same untuned model is taken from there. `forwards` counts the passes that had to be made.
    """

    def __init__(self, run: Run, ticker: Ticker = lambda name, total: lambda done: None) -> None:
        """Open `run`; raises `RunError` where it is not trained to its end, or its weights have changed."""
        self.run, self.card, self.ticker = run, run.card, ticker
        self.subject: Subject | Written = open_external(run) if self.card.status == "external" else Trained(run)
        self.store = Store(run.private / "signals")
        self.forwards = 0
        self._encoded: dict[tuple[str, str], Tokens] = {}
        self._contents: dict[str, str] = {}

    @cached_property
    def serializer(self) -> Serializer:
        """The subject's own serializer; raises `RunError` where the tokenizer has changed since."""
        return self.reader.load_serializer()

    @property
    def reader(self) -> Subject:
        """The subject, as one that reads tokens."""
        assert not isinstance(self.subject, Written)  # which knows texts only
        return self.subject

    @property
    def tuned(self) -> Any:
        """The fine-tuned model of a run of Sordino's own; raises `RunError` where its base has changed."""
        assert isinstance(self.subject, Trained)  # canaries are planted in no other
        return self.subject.tuned

    def encode(self, example: Example, name: str = "", view: View | None = None) -> Tokens:
        """The tokens of an example under a view."""
        key = (example.record.id, name)
        if key not in self._encoded:
            self._encoded[key] = self.serializer.encode(example.record, view)
        return self._encoded[key]

    def signals(
        self, examples: Sequence[Example], views: Mapping[str, View], along: tuple[Decoding, ...] = ()
    ) -> tuple[Signals, Signals | None]:
        """The signals of the tuned model, with the untuned one as base; and those of the untuned model.

        Passes that are made over plain records also store how likely the decodings `along` draw the tokens.

        Where there is no untuned model, the tuned one's have no base, and the second are None.
        """
        if isinstance(self.subject, Written):
            return self.subject.signals(examples, self.ticker)
        tuned = self._signals(examples, views, "tuned", along)
        if not self.subject.has_base:
            return tuned, None
        untuned = self._signals(examples, views, "base", along)
        return replace(tuned, base=untuned), replace(untuned, base=untuned)

    def _signals(
        self, examples: Sequence[Example], views: Mapping[str, View], which: str, along: tuple[Decoding, ...]
    ) -> Signals:
        named: dict[str, View | None] = {"": None, **views}
        made = {}
        for name, view in named.items():
            tokens = [self.encode(e, name, view) for e in examples]
            made[name] = Signals(
                record_ids=tuple(e.record.id for e in examples),
                texts=tuple(t.text for t in tokens),
                statistics=self._statistics(examples, tokens, which, name, () if name else along),
            )
        plain = made.pop("")
        return Signals(record_ids=plain.record_ids, texts=plain.texts, statistics=plain.statistics, views=made)

    def statistics(self, examples: Sequence[Example], which: str) -> Statistics:
        """The statistics of the "tuned" or the "base" model on plain records."""
        return self._statistics(examples, [self.encode(e) for e in examples], which, "", ())

    def key(self, examples: Sequence[Example], which: str, *more: str) -> str:
        """A digest of all that numbers about `examples` under a model depend on."""
        contents = (part for e in examples for part in (e.record.id, self._content(e.record)))
        return digest(_DEFINITION, *self.reader.identity(which), *more, *contents)

    def _content(self, record: Record) -> str:
        """The digest of what a record says; of thousands of them many keys are made."""
        if record.id not in self._contents:
            self._contents[record.id] = content_digest(record.messages, record.label, record.rejected)
        return self._contents[record.id]

    def _statistics(
        self, examples: Sequence[Example], tokens: Sequence[Tokens], which: str, view: str, along: tuple[Decoding, ...]
    ) -> Statistics:
        key = self.key(examples, which, view)
        found = self.store.get(key)
        if found is not None:
            return found
        manifest = {
            "definition": _DEFINITION, "model": which, "view": view or "plain", "records": len(tokens),
            **self.reader.manifest(),
        }  # fmt: skip
        if which == "base" and isinstance(self.subject, Trained) and self.subject.task == "causal-lm":
            lent = borrowed(self.run, key, tokens, manifest)
            if lent is not None:
                self.store.put(key, lent.statistics, {**manifest, "from": lent.run})
                return lent.statistics
        label = f"{'model' if which == 'tuned' else 'untuned model'}" + (f", {view}" if view else "")
        tick = self.ticker(label, len(tokens))

        def measure(some: Sequence[Tokens]) -> Measured:
            if not along:
                return self.reader.measure(some, which, tick), {}
            from sordino.collect import collect_drawn

            made, logprob = collect_drawn(weights(self.reader, which), some, along, tick=tick)
            return made, {"drawn": logprob}

        # What is left of a pass that was to measure something else does not go on.
        parts = key if not along else digest(key, encode(along).decode())
        made, more = statistics_in_shards(self.store, parts, tokens, measure, tick)
        self.forwards += 1
        if along:
            columns = {"logprob": more["drawn"], "token": np.asarray(made.token)}
            self.store.put_arrays(self.drawn_key(examples, which, along), columns, self.drawn_manifest(which, along))
        self.store.put(key, made, manifest)
        self.store.drop(parts)
        return made

    def drawn_key(self, examples: Sequence[Example], which: str, decodings: Sequence[Decoding]) -> str:
        """Where it is kept how likely `decodings` draw the tokens of `examples`."""
        return self.key(examples, which, "drawn/1", digest(encode(tuple(decodings))))

    def drawn_manifest(self, which: str, decodings: Sequence[Decoding]) -> dict[str, Any]:
        """What is told of it beside the numbers."""
        told = [str(d) for d in decodings]
        return {"definition": "drawn/1", "model": which, "decodings": told, **self.reader.manifest()}

    def repeats(self, prefixes: Sequence[np.ndarray], suffixes: Sequence[np.ndarray]) -> list[bool]:
        """Whether the tuned model, decoding greedily, puts each suffix after its prefix."""
        self.forwards += 1
        return self.reader.repeats(prefixes, suffixes)

    def continues(self, prefixes: Sequence[np.ndarray], lengths: Sequence[int], which: str) -> list[str]:
        """The text that the "tuned" or the "base" model, decoding greedily, puts after each prefix."""
        self.forwards += 1
        return self.reader.continues(prefixes, lengths, which)
