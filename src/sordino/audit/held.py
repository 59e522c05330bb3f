"""Models whose weights are here: whether a subject has them, and numbers of records that only weights can give."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from sordino.audit.external import External
from sordino.audit.inputs import measured
from sordino.audit.inputs.context import Context, Pair
from sordino.audit.subjects import Trained
from sordino.audit.weights import has_weights
from sordino.evidence import digest
from sordino.results import encode

__all__ = [
    "LocalSubject",
    "by_weights",
    "held",
    "lacking_embeddings",
    "lacking_gradients",
    "lacking_start",
    "lacking_weights",
    "stored",
]

LocalSubject = Trained | External
Tick = Callable[[int], None]


def held(context: Context) -> LocalSubject:
    """The subject, where its weights are here; see `lacking_weights`."""
    subject = context.collector.subject
    assert isinstance(subject, Trained | External)  # no other has an input of weights
    return subject


def lacking_weights(context: Context) -> str:
    """What is missing to run the model here, in words."""
    return "" if has_weights(context.collector.subject, "tuned") else "the model's weights"


def lacking_gradients(context: Context) -> str:
    """What is missing to take gradients of the model's weights, in words."""
    subject = context.collector.subject
    if isinstance(subject, External) and subject.config.quantize:
        return f"weights that have gradients, which those in {subject.config.quantize} have not"
    return lacking_weights(context)


def lacking_embeddings(context: Context) -> str:
    """What is missing to take gradients of embeddings that a model reads, in words, as far as its folder tells."""
    words = lacking_gradients(context)
    if words:
        return words
    from sordino.deployed import takes_embeddings
    from sordino.model import resolve

    subject = held(context)
    folder = subject.folder if isinstance(subject, External) else Path(resolve(subject.config.model.path))
    deaf = folder.is_dir() and not takes_embeddings(folder)
    return "a model that reads embeddings (inputs_embeds), not token ids alone" if deaf else ""


def lacking_start(context: Context) -> str:
    """What is missing to know what was tuned as it was before training, in words."""
    subject = context.collector.subject
    if isinstance(subject, External) and subject.adapter is not None:
        return "the adapter's first values, which only a run of Sordino's own knows"
    return lacking_gradients(context)


def by_weights(
    context: Context,
    pair: Pair,
    name: str,
    rows: Callable[[Any, Tick], np.ndarray],
    *,
    start: bool = False,
    version: str = "1",
) -> Pair:
    """`pair` with what `rows(model, tick)` gives of the judged records, under `name`, from the store where it is there.

    The untuned model is the one under the adapter or, from the `start` of training, the one with an adapter whose
    values are the first ones.
    """
    collector, subject = context.collector, held(context)

    def compute(which: str) -> np.ndarray:
        tick = collector.ticker(f"{'model' if which == 'tuned' else 'untuned model'}, {name}", len(context.examples))
        if which == "tuned":
            return rows(subject.tuned, tick)
        return rows(_begun(subject) if start else subject.untuned, tick)

    definition = f"{name}/{version}"
    tuned = stored(context, "tuned", definition, lambda: compute("tuned"))
    untuned = None
    if subject.has_base:
        more = _begun_key(subject) if start else ""
        untuned = stored(context, "base", f"{definition} {more}", lambda: compute("base"))
    return measured(pair, name, tuned, untuned)


def stored(
    context: Context, which: str, definition: str, compute: Callable[[], np.ndarray], *, passes: int = 1
) -> np.ndarray:
    """The rows of the judged records that `compute` gives under a model in so many `passes`, or that it gave before."""
    collector = context.collector
    key = collector.key(context.examples, which, definition)
    found = collector.store.arrays(key)
    if found is None:
        found = {"rows": compute()}
        collector.forwards += passes
        manifest = {"definition": definition, "model": which, "records": len(context.examples)}
        collector.store.put_arrays(key, found, {**manifest, **collector.reader.manifest()})
    return np.asarray(found["rows"], dtype=np.float64)


def _begun(subject: LocalSubject) -> Any:
    """The model as its training began: what is tuned is there, at its first values."""
    if isinstance(subject, External) or subject.config.method.kind == "full":
        return subject.untuned
    from sordino.model import attach, load

    config = subject.config
    assert subject.untuned is not None  # looked at first: raises where the base has changed since
    return attach(load(config.model), config.method, config.seed)


def _begun_key(subject: LocalSubject) -> str:
    """What decides about those first values, beside the untuned weights."""
    if isinstance(subject, External) or subject.config.method.kind == "full":
        return ""
    return digest(encode(subject.config.method), str(subject.config.seed))
