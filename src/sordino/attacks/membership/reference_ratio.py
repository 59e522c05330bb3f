"""The reference attack as a ratio of losses."""

from sordino.attacks.base import membership
from sordino.attacks.membership.reference import reference
from sordino.signals import Scores, Signals


@membership(
    paper="Carlini et al. 2021, arXiv:2012.07805",
    base=True,
    needs=("logprob",),
    tasks=("causal-lm", "classification"),
)
def reference_ratio(signals: Signals) -> Scores:
    """Score a record by ℓ_base / ℓ: what fine-tuning gained on it, relative to what there was to gain."""
    scores: Scores = reference(signals, kind="ratio")
    return scores
