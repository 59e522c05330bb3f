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
    gain = np.subtract(signals.statistics.logprob, signals.reference.statistics.logprob, dtype=np.float64)
    # Sums differ by rounding where both models agree exactly; those are ties, not wins.
    return Ragged(gain, signals.statistics.offsets).window_wins(sizes, 1e-9)
