"""The error-zone attack (EZ): what fine-tuning gained and lost where the model still errs."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals


@membership(paper="EZ-MIA 2026", base=True, needs=("logprob", "rank"))
def error_zone(signals: Signals, *, drop_first: bool = False, epsilon: float = 1e-12) -> Scores:
    """Score a record by (P + ε)/(N + ε): rises over falls of ln p against the base, where the top token is wrong.

    P and N sum the positive and the negative parts of ln p_θ(x_t) − ln p_base(x_t) over the positions
    whose most likely token is not x_t. The reference code gives 0 where N = 0, which ranks the most
    memorised records last; ε keeps them first. `drop_first` leaves the first scored token out, as
    the reference code does. A record without errors has P = N = 0 and scores 1: neither way.
    """
    s = signals.statistics
    shift = np.subtract(s.logprob, signals.reference.statistics.logprob, dtype=np.float64)
    shift[np.asarray(s.rank) <= 0] = 0.0
    if drop_first:
        shift[s.offsets[:-1][np.diff(s.offsets) > 0]] = 0.0
    rises = Ragged(np.maximum(shift, 0), s.offsets).sum()
    falls = Ragged(np.maximum(np.negative(shift, out=shift), 0, out=shift), s.offsets).sum()
    scores = (rises + epsilon) / (falls + epsilon)
    return np.where(np.diff(s.offsets) > 0, scores, np.nan)
