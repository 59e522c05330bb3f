"""SURP: tokens that surprise a model which was sure of another one; members have few such."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals


@membership(paper="Zhang and Wu 2024, arXiv:2407.21248", needs=("logprob", "mean"), suite="full")
def surp(signals: Signals, *, k: float = 0.4, entropy: float = 2.0) -> Scores:
    """Score a record by the mean ln p of its surprising tokens: among its lowest k, at an entropy below `entropy`.

    A record without any has nothing that surprises and scores 0, the highest; a public tool gives it −100.
    """
    s = signals.statistics
    # μ = Σ p ln p is minus the entropy.
    chosen = signals.logprob.lowest(k) & (-np.asarray(s.mean, np.float64) < entropy)
    sums = Ragged(np.where(chosen, np.asarray(s.logprob, np.float64), 0.0), s.offsets).sum()
    counts = Ragged(chosen.astype(np.float64), s.offsets).sum()
    return np.where(np.diff(s.offsets) > 0, sums / np.maximum(counts, 1), np.nan)
