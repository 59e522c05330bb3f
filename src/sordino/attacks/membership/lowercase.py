"""The lowercase attack: how much worse does the model know the same text in lower case?"""

import numpy as np

from sordino.attacks.base import membership
from sordino.serialize import lowercase as to_lowercase
from sordino.signals import Scores, Signals


@membership(paper="Carlini et al. 2021, arXiv:2012.07805", views={"lowercase": to_lowercase}, needs=("logprob",))
def lowercase(signals: Signals) -> Scores:
    """Score a record by ℓ of its lower-cased text over ℓ of the text itself."""
    # A loss of exactly 0 is perfect memory: a tiny divisor keeps its score large and finite.
    scores: Scores = signals.views["lowercase"].nll / np.maximum(signals.nll, 1e-150)
    return scores
