"""The gap attack: members are classified rightly more often; it needs nothing but the predicted class."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals


@membership(paper="Yeom et al. 2018, arXiv:1709.01604", access="predicted labels", tasks=("classification",))
def correctness(signals: Signals) -> Scores:
    """Score a record by whether the model predicts its true class: 1 if so, else 0.

    Its AUC is ½ + half of the gap between the accuracies on members and on non-members.
    """
    s = signals.statistics
    return Ragged((np.asarray(s.top) == s.token).astype(np.float64), s.offsets).mean()
