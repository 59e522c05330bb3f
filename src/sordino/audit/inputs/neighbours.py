"""ℓ of neighbours of each record: texts that differ from it in some tokens."""

import numpy as np

from sordino.audit.inputs.context import Context, Pair
from sordino.audit.neighbouring import mean_nll, missing, neighbours_of

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """Something that writes neighbours: a masked language model, or weights."""
    return missing(context)


def give(context: Context, pair: Pair) -> Pair:
    """The mean negative log-likelihood a token of each neighbour, (records, neighbours), under both models."""
    from sordino.audit.inputs import measured

    tuned = _rows(context, "tuned")
    return measured(pair, "neighbours", tuned, None if pair[1] is None else _rows(context, "base"))


def _rows(context: Context, which: str) -> np.ndarray:
    collector, count = context.collector, context.settings.neighbours
    key, texts = neighbours_of(context)
    scored = collector.key(context.examples, which, "neighbours, scored/1", key)
    found = collector.store.arrays(scored)
    if found is None:
        label = f"{'model' if which == 'tuned' else 'untuned model'}, {count} neighbours a record"
        tick = collector.ticker(label, len(texts))
        found = {"nll": mean_nll(texts, lambda some: collector.reader.measure(some, which, tick))}
        collector.forwards += count
        collector.store.put_arrays(scored, found, {"model": which, "kind": "neighbours", "texts": len(texts)})
    rows: np.ndarray = found["nll"].reshape(len(context.examples), count)
    return rows
