"""DC-PDD: probability that a token has in the text, weighed by how rare it is elsewhere."""

import numpy as np

from sordino.attacks.base import membership
from sordino.attacks.frequencies import divergence, smoothed
from sordino.signals import Scores, Signals


@membership(
    paper="Zhang et al. 2024, arXiv:2409.14781",
    needs=("logprob",),
    inputs=("known",),
    cost="the tokens of records known not to be trained on, counted",
    suite="full",
)
def dc_pdd(signals: Signals, *, cap: float = 0.01) -> Scores:
    """Score a record by the mean, over the first occurrence of each of its tokens, of min(p · ln(1/f), cap).

    f is the token's frequency, (count + 1)/(sum + V), among known non-members: calibrated by it, a token that any
    model expects anywhere counts little. V are the tokens up to the highest that is seen.
    """
    known = signals.told
    theirs = known.signals.statistics.select(np.flatnonzero(~known.member).tolist())
    highest = max(int(np.max(t, initial=0)) for t in (theirs.token, signals.statistics.token))
    return divergence(signals.statistics, smoothed(np.bincount(theirs.token, minlength=highest + 1)), cap)
