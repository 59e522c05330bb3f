"""PETAL: from the likeliest tokens alone to a probability, by what a surrogate has in common with both."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="He et al. 2025, arXiv:2502.18943",
    access="predicted tokens",
    base=True,
    needs=("top",),
    inputs=("similarity",),
    cost="arithmetic, with the untuned model as surrogate",
    suite="full",
)
def petal(signals: Signals) -> Scores:
    """Score a record by its mean pseudo log-probability, read off how near the likeliest tokens are to the true ones.

    s is the logarithm of the similarity between the embeddings of a position's likeliest and true token. In a record,
    ln p ≈ a·s + b is fitted to a surrogate, by least squares; of the target, whose probabilities are not seen, a·s + b
    then stands for ln p. Surrogate and embeddings are the untuned model's, where the authors have another model
    and a sentence encoder. A record whose s are all alike has no line: its score is the surrogate's ln p.
    """
    target, s, squares, logprob, products = np.asarray(signals.measured["similarity"], dtype=np.float64).T
    variance, covariance = squares - s**2, products - s * logprob
    # Rounding leaves of no variance at all about 1e-16 · s².
    flat = variance <= 1e-12 * np.maximum(squares, 1e-300)
    slope = np.where(flat, 0.0, covariance / np.where(flat, 1.0, variance))
    scores: Scores = logprob + slope * (target - s)
    return scores
