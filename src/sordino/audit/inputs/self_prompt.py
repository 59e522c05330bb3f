"""ℓ of each record and its neighbours under a reference trained on what the model writes."""

import numpy as np

from sordino.audit.inputs.context import Context, Pair
from sordino.audit.neighbouring import mean_nll, missing, neighbours_of
from sordino.audit.self_prompting import key_of, recipe_of, reference
from sordino.audit.self_prompting import lacking as no_reference

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """Neighbours, and weights to train a reference from."""
    return missing(context) or no_reference(context)


def give(context: Context, pair: Pair) -> Pair:
    """The mean negative log-likelihood of each record, then of its neighbours: (records, 1 + neighbours).

    The untuned model has a reference of its own: that of the tuned one may know members from its samples.
    """
    from sordino.audit.inputs import measured

    tuned = _rows(context, "tuned")
    return measured(pair, "self_prompt", tuned, None if pair[1] is None else _rows(context, "base"))


def _rows(context: Context, which: str) -> np.ndarray:
    from sordino.collect import collect

    collector, count = context.collector, context.settings.neighbours
    recipe = recipe_of(context)
    written, texts = neighbours_of(context)
    key = collector.key(context.examples, which, "self-prompt, scored/1", key_of(context, recipe, which), written)
    found = collector.store.arrays(key)
    if found is None:
        model = reference(context, recipe, which)
        everything = [*(collector.encode(e) for e in context.examples), *texts]
        tick = collector.ticker(f"reference of the {'' if which == 'tuned' else 'untuned '}model", len(everything))
        found = {"nll": mean_nll(everything, lambda some: collect(model, some, tick=tick))}
        collector.forwards += 1 + count
        collector.store.put_arrays(key, found, {"model": which, "kind": "self-prompt reference"})
    nll, records = found["nll"], len(context.examples)
    return np.concatenate([nll[:records, None], nll[records:].reshape(records, count)], axis=1)
