"""The windows attack (WBC): in how many windows does the model beat its base?"""

from collections.abc import Sequence

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals

SIZES = (2, 3, 4, 6, 9, 13, 18, 25, 32, 40)


@membership(paper="WBC 2026", base=True, needs=("logprob",))
def windows(signals: Signals, *, sizes: Sequence[int] = SIZES) -> Scores:
    """Score a record by the share of windows with Σℓ_base > Σℓ, averaged over window sizes.

    A window longer than the record is cut to it. Ties do not count as wins.
    """
    gain = np.asarray(signals.statistics.logprob, np.float64) - signals.reference.statistics.logprob
    offsets = signals.statistics.offsets
    counts, rows = np.diff(offsets), Ragged(gain, offsets).rows
    running = np.concatenate([[0.0], np.cumsum(gain)])
    position = np.arange(len(gain)) - np.repeat(offsets[:-1], counts)
    shares = []
    for size in sizes:
        width = np.minimum(size, counts)[rows]
        inside = position + width <= counts[rows]
        starts = np.flatnonzero(inside)
        # Sums differ by rounding where both models agree exactly; those are ties, not wins.
        wins = running[starts + width[starts]] - running[starts] > 1e-9
        hits = np.bincount(rows[starts], weights=wins, minlength=len(counts))
        shares.append(hits / np.maximum(1, counts - np.minimum(size, counts) + 1))
    return np.where(counts > 0, np.mean(shares, axis=0), np.nan)
