"""SPV-MIA: the neighbourhood attack, calibrated by a model that learned from what the target writes."""

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Fu et al. 2024, arXiv:2311.06062",
    needs=("logprob",),
    inputs=("neighbours", "self_prompt"),
    cost="a reference model trained on samples of the target, and two passes for each neighbour of a record",
    suite="full",
)
def spv(signals: Signals) -> Scores:
    """Score a record by its probabilistic variation under the model, less that under a self-prompt reference.

    The variation is the mean of ℓ(x̃) − ℓ(x) over neighbours (eq. 6, in the logarithm); the reference was trained on
    texts that the model wrote, so that it knows what the model knows of such texts but not of this one.
    """
    reference = signals.measured["self_prompt"]  # the record itself, then its neighbours
    before = reference[:, 1:].mean(axis=1) - reference[:, 0]
    scores: Scores = signals.measured["neighbours"].mean(axis=1) - signals.nll - before
    return scores
