"""Dataset inference: many weak scores, weighed on one half of the records, tested together on the other."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Maini et al. 2024, arXiv:2406.06443",
    inputs=("scores",),
    needs=(),
    cost="the scores of all other attacks",
    level="dataset",
    tasks=("causal-lm", "classification"),
    joint=True,
)
def dataset_inference(signals: Signals, *, trim: float = 0.025, ridge: float = 1.0) -> Scores:
    """Score a record by a linear combination of the other attacks' scores, learned on `known` records.

    Scores are cut at their `trim` and 1 − `trim` quantiles among the known records, standardised there, and weighed by
    ridge regression of membership; the audit then tests members against non-members of the other half
    (one-sided Welch test of coins' means), which the weights have never seen.
    """
    known = signals.told
    train, test = known.signals.measured["scores"], signals.measured["scores"]
    low, high = np.quantile(train, [trim, 1 - trim], axis=0)
    train, test = np.clip(train, low, high), np.clip(test, low, high)
    centre, scale = train.mean(axis=0), train.std(axis=0)
    scale = np.where(scale > 0, scale, 1.0)
    x, y = (train - centre) / scale, known.member - known.member.mean()
    weights = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
    scores: Scores = (test - centre) / scale @ weights
    return scores
