"""How much likelier tuning made the two answers of a preference: ln π_θ(y|x) / π_ref(y|x) of whole answers."""

import numpy as np

from sordino.signals import Scores, Signals

__all__ = ["chosen_gain", "rejected_gain"]


def chosen_gain(signals: Signals) -> Scores:
    """Of the answer that was preferred, which is the record's own, in nats; NaN where nothing is scored."""
    rows = signals.logprob
    gain: Scores = np.where(rows.counts > 0, rows.sum() - signals.reference.logprob.sum(), np.nan)
    return gain


def rejected_gain(signals: Signals) -> Scores:
    """Of the answer that was rejected, after the same prompt, in nats."""
    after, before = signals.measured["rejected"], signals.reference.measured["rejected"]
    gain: Scores = np.asarray(after, dtype=np.float64) - np.asarray(before, dtype=np.float64)
    return gain
