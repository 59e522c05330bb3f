"""RMIA, offline: the same with models only that were not trained on the record."""

from sordino.attacks.base import membership
from sordino.attacks.populations import dominated, offline_ratio, population
from sordino.signals import Scores, Signals


@membership(
    paper="Zarifzadeh et al. 2024, arXiv:2312.03262",
    needs=("logprob",),
    inputs=("shadows", "known"),
    cost="K shadow models, each trained as the target was, and records known not to be trained on",
    suite="all",
    tasks=("causal-lm", "classification"),
)
def rmia_offline(signals: Signals, *, gamma: float = 1.0, a: float = 0.3) -> Scores:
    """Score a record by Pr_z[w(x)/w(z) ≥ γ] with w = p_θ/p̂ and p̂ = ½[(1 + a) p̄_out + 1 − a].

    `a` says how much less sure models are of records that they were not trained on (eq. 10).
    """
    return dominated(offline_ratio(signals, a), offline_ratio(population(signals), a), gamma)
