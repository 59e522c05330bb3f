"""Min-K%: members have no very surprising tokens."""

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(paper="Shi et al. 2024, arXiv:2310.16789", needs=("logprob",))
def min_k(signals: Signals, *, k: float = 0.2) -> Scores:
    """Score a record by the mean log-probability of its `max(1, ⌊k·n⌋)` least likely tokens."""
    return signals.logprob.lowest_mean(k)
