"""The loss attack: members are predicted better."""

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(paper="Yeom et al. 2018, arXiv:1709.01604", needs=("logprob",), tasks=("causal-lm", "classification"))
def loss(signals: Signals) -> Scores:
    """Score a record by how well the model predicts it: −ℓ, the mean log-probability a token, or of its class."""
    return -signals.nll
