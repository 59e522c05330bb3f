"""Con-ReCall: what non-members before a text take away, against what members before it give."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Wang et al. 2024, arXiv:2409.03363",
    needs=("logprob",),
    inputs=("member_prefixes", "prefixes"),
    cost="two more passes a record, after known members and after known non-members (audit.inputs.shots)",
    suite="full",
)
def con_recall(signals: Signals, *, gamma: float = 0.5) -> Scores:
    """Score a record by (LL(x|P_non) − γ·LL(x|P_mem)) / LL(x), P known non-members and known members (eq. 4).

    γ is fixed in advance: the paper chooses it on the records it reports on.
    """
    scores: Scores = np.zeros(len(signals))
    for name, weight in (("prefixes", 1.0), ("member_prefixes", -gamma)):
        after, alone = signals.measured[name].T
        scores = scores + weight * after / np.minimum(alone, -1e-150)
    return scores
