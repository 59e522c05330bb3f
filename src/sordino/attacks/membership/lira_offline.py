"""LiRA, offline: is the record known better than by models that were not trained on it?"""

from typing import Literal

import numpy as np
from scipy.special import log_ndtr

from sordino.attacks.base import membership
from sordino.attacks.shadowed import POOLED_BELOW, Statistic, spread, statistic
from sordino.signals import Scores, Signals


@membership(
    paper="Carlini et al. 2022, arXiv:2112.03570",
    needs=("logprob",),
    inputs=("shadows",),
    cost="K shadow models, each trained as the target was; only those without a record are used for it",
    suite="all",
    tasks=("causal-lm", "classification"),
    joint=True,
)
def lira_offline(
    signals: Signals, *, kind: Statistic = "logit", variance: Literal["auto", "pooled", "own"] = "auto"
) -> Scores:
    """Score a record by −ln(1 − Φ((φ − μ_out)/σ_out)): the paper's one-sided test, which does not saturate at 1.

    φ is the logit of its geometric-mean probability (eq. 4); μ_out is the record's own over shadows without
    it; `auto` pools the deviation over records where there are fewer than 64 shadows.
    """
    shadows = signals.shadowed
    pooled = variance == "pooled" or (variance == "auto" and len(shadows.nll) < POOLED_BELOW)
    mean, deviation = spread(statistic(shadows.nll, kind), ~shadows.included, pooled)
    scores: Scores = -np.asarray(log_ndtr(-(statistic(signals.nll, kind) - mean) / deviation))
    return scores
