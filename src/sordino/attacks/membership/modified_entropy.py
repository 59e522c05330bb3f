"""The modified-entropy attack: a classifier is sure of its members' true classes, and only of those."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals


@membership(paper="Song and Mittal 2021, arXiv:2003.10595", tasks=("classification",))
def modified_entropy(signals: Signals) -> Scores:
    """Score a record by −Mentr: (1 − p_y) ln p_y + Σ ln(1 − p_i) · p_i over the other classes i (eq. 9).

    Unlike the entropy of the prediction it knows the true class y: being sure of a wrong one scores low.
    The paper's thresholds for each class are left to the audit, whose scores have one scale.
    """
    s = signals.statistics
    assert s.others is not None  # the runner gives a classifier's signals to attacks on classifiers
    logprob = np.asarray(s.logprob, np.float64)
    return Ragged(-np.expm1(logprob) * logprob + s.others, s.offsets).mean()
