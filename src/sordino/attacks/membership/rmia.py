"""RMIA, online: how many records of the population does this one beat, each against what is expected of it?"""

from sordino.attacks.base import membership
from sordino.attacks.populations import dominated, online_ratio, population
from sordino.signals import Scores, Signals


@membership(
    paper="Zarifzadeh et al. 2024, arXiv:2312.03262",
    needs=("logprob",),
    inputs=("shadows", "known"),
    cost="K shadow models, each trained as the target was, and records known not to be trained on",
    suite="all",
    tasks=("causal-lm", "classification"),
)
def rmia(signals: Signals, *, gamma: float = 1.0) -> Scores:
    """Score a record by Pr_z[w(x)/w(z) ≥ γ] with w = p_θ/p̂, p̂ the mean of models with and without it.

    p is the geometric-mean probability of a token, exp(−ℓ): of whole texts, 1 − a would swamp p̂. z are
    records known not to be trained on, whose p̂ is over all shadows. See `rmia_ratio` for w alone.
    """
    return dominated(online_ratio(signals), online_ratio(population(signals)), gamma)
