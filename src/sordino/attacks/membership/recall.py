"""ReCaLL: texts that were trained on lose more when texts that were not stand before them."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Xie et al. 2024, arXiv:2406.15968",
    needs=("logprob",),
    inputs=("prefixes",),
    cost="one more pass a record, after known non-members (audit.inputs.shots)",
    suite="full",
)
def recall(signals: Signals) -> Scores:
    """Score a record by LL(x|P)/LL(x), the mean log-likelihood after known non-members P over that without (eq. 1).

    Both are means over the same tokens. Higher = member, as both are negative.
    """
    after, alone = signals.measured["prefixes"].T
    # A likelihood of 1 is perfect memory: a tiny divisor keeps its score large and finite.
    scores: Scores = after / np.minimum(alone, -1e-150)
    return scores
