"""Min-K%++: Min-K% on log-probabilities standardised over the vocabulary."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Ragged, Scores, Signals


@membership(paper="Zhang et al. 2025, arXiv:2404.02936", needs=("logprob", "mean", "variance"))
def min_k_plus_plus(signals: Signals, *, k: float = 0.2) -> Scores:
    """Score a record by the mean of its `max(1, ⌊k·n⌋)` lowest z = (ln p − μ)/σ.

    μ and σ² are the mean and variance of ln p over the vocabulary, weighted by p (eq. 3).
    """
    s = signals.statistics
    # σ is 0 only where one token has all the probability; then ln p − μ is 0 for it as well.
    sigma = np.maximum(s.variance, 1e-12, dtype=np.float64)
    z = np.subtract(s.logprob, s.mean, dtype=np.float64)
    z /= np.sqrt(sigma, out=sigma)
    return Ragged(z, s.offsets).lowest_mean(k)
