"""The neighbourhood attack: is a record itself known, or only what texts like it have in common?"""

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Mattern et al. 2023, arXiv:2305.18462",
    needs=("logprob",),
    inputs=("neighbours",),
    cost="a pass for each neighbour of a record (audit.inputs.neighbours), and one that writes them",
    suite="full",
)
def neighbourhood(signals: Signals) -> Scores:
    """Score a record by how much likelier it is than its neighbours: the mean of ℓ(x̃) − ℓ(x) over them.

    Neighbours differ from the record in some tokens. It is their mean that counts (eq. 2), not the best of them.
    """
    scores: Scores = signals.measured["neighbours"].mean(axis=1) - signals.nll
    return scores
