"""User inference: was a person's text trained on at all? All that a unit has written, taken together."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals


@membership(
    paper="Kandpal et al. 2024, arXiv:2310.09266",
    base=True,
    needs=("logprob",),
    inputs=("units",),
    level="unit",
    tasks=("causal-lm", "classification"),
)
def user_inference(signals: Signals) -> Scores:
    """Score a unit by the mean over its documents of ln p_θ(x) − ln p_ref(x), whole documents, not tokens (eq. 4).

    Every record bears the score of its unit. The documents need not be those that were trained on.
    """
    s = signals.statistics
    shift = np.subtract(s.logprob, signals.reference.statistics.logprob, dtype=np.float64)
    rows = Ragged(shift, s.offsets)
    told = rows.counts > 0
    _, unit = np.unique(np.asarray(signals.units), return_inverse=True)
    totals = np.bincount(unit, weights=np.where(told, rows.sum(), 0.0))
    counts = np.bincount(unit, weights=told.astype(np.float64))
    return np.where(told, (totals / np.maximum(counts, 1))[unit], np.nan)
