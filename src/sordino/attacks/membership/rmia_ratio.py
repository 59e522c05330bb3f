"""RMIA's ratio alone: at a fixed γ the attack only ranks it anew, as finely as the population is large."""

import numpy as np

from sordino.attacks.base import membership
from sordino.attacks.populations import online_ratio
from sordino.signals import Scores, Signals


@membership(
    paper="Zarifzadeh et al. 2024, arXiv:2312.03262",
    needs=("logprob",),
    inputs=("shadows",),
    cost="K shadow models, each trained as the target was",
    suite="all",
    tasks=("causal-lm", "classification"),
)
def rmia_ratio(signals: Signals) -> Scores:
    """Score a record by ln w = ln p_θ − ln p̂, p̂ the mean probability under models with and without it."""
    scores: Scores = np.log(np.maximum(online_ratio(signals), 1e-300))
    return scores
