"""How near a model's likeliest tokens are to the true ones, beside what a surrogate makes of the same: (records, 5)."""

from typing import Any

import numpy as np

from sordino.audit.held import held, lacking_weights, stored
from sordino.audit.inputs import measured
from sordino.audit.inputs.context import Context, Pair
from sordino.signals import Ragged, Scores, Signals, Statistics

__all__ = ["give", "lacking"]

_DEFINITION = "similarity/1"
# A cosine that is not positive has no logarithm; the authors' code puts this in its place.
_LEAST = 1e-16


def lacking(context: Context) -> str:
    """The weights of an untuned model, which is the surrogate and whose embeddings measure similarity."""
    missing = lacking_weights(context)
    if missing or context.collector.subject.has_base:
        return missing
    return "the untuned base model's weights, as surrogate (--base)"


def give(context: Context, pair: Pair) -> Pair:
    """Arithmetic on labels: of the target, only its likeliest tokens are looked at."""
    first, second = pair
    assert second is not None  # a surrogate is there: see `lacking`
    cosines: list[Any] = []

    def rows(signals: Signals) -> np.ndarray:
        if not cosines:
            cosines.append(_embeddings(held(context).untuned))
        return _rows(signals.statistics, second.statistics, cosines[0])

    tuned = stored(context, "tuned", _DEFINITION, lambda: rows(first), passes=0)
    untuned = stored(context, "base", _DEFINITION, lambda: rows(second), passes=0)
    return measured(pair, "similarity", tuned, untuned)


def _embeddings(model: Any) -> np.ndarray:
    """The input embeddings (V, d) of the surrogate, each of length 1."""
    from sordino.model import unwrapped

    with model.active() as module:
        table = unwrapped(module).get_input_embeddings().weight.detach().float().cpu().numpy()
    unit: np.ndarray = table / np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
    return unit


def _rows(target: Statistics, surrogate: Statistics, unit: np.ndarray) -> np.ndarray:
    """Means over each record's tokens: s of the target; s, s², ln p and s · ln p of the surrogate.

    s is the logarithm of the cosine between the embeddings of the likeliest and of the true token.
    """

    def similarity(statistics: Statistics) -> np.ndarray:
        pairs = np.asarray(statistics.top), np.asarray(statistics.token)
        cosine = np.einsum("nd,nd->n", unit[pairs[0]], unit[pairs[1]], dtype=np.float64)
        # The same token is the same vector: its cosine is 1, whatever rounding says.
        near: np.ndarray = np.clip(np.where(pairs[0] == pairs[1], 1.0, cosine), _LEAST, 1.0)
        return np.log(near)  # type: ignore[no-any-return]

    theirs, ours = similarity(target), similarity(surrogate)
    logprob = np.asarray(surrogate.logprob, np.float64)

    def mean(values: np.ndarray) -> Scores:
        return Ragged(values, surrogate.offsets).mean()

    columns = (theirs, ours, ours**2, logprob, ours * logprob)
    return np.stack([mean(column) for column in columns], axis=1)
