"""LiRA, online: is the loss likelier under models that were trained on the record, or under models that were not?"""

from typing import Literal

import numpy as np

from sordino.attacks.base import membership
from sordino.attacks.shadowed import POOLED_BELOW, Statistic, spread, statistic
from sordino.signals import Scores, Signals


@membership(
    paper="Carlini et al. 2022, arXiv:2112.03570",
    needs=("logprob",),
    inputs=("shadows",),
    cost="K shadow models, each trained as the target was",
    suite="all",
    tasks=("causal-lm", "classification"),
    joint=True,
)
def lira(signals: Signals, *, kind: Statistic = "logit", variance: Literal["auto", "pooled", "own"] = "auto") -> Scores:
    """Score a record by ln N(φ; μ_in, σ_in) − ln N(φ; μ_out, σ_out), φ the logit of its geometric-mean probability.

    Means are the record's own over the shadows that were, and were not, trained on it; `auto` pools the
    deviations of all records where there are fewer than 64 shadows (algorithm 1 and section VI).
    """
    shadows = signals.shadowed
    pooled = variance == "pooled" or (variance == "auto" and len(shadows.nll) < POOLED_BELOW)
    phi, others = statistic(signals.nll, kind), statistic(shadows.nll, kind)
    scores = np.zeros(len(signals))
    for sign, side in ((1.0, shadows.included), (-1.0, ~shadows.included)):
        mean, deviation = spread(others, side, pooled)
        scores += sign * (-(((phi - mean) / deviation) ** 2) / 2 - np.log(deviation))
    return scores
