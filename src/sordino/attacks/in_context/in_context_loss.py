"""The loss of a record after the prompt against that without it: a record that stands there is copied."""

from sordino.attacks.base import in_context
from sordino.signals import Scores, Signals


@in_context(
    paper="Duan et al. 2023, arXiv:2308.15399",
    access="log-probabilities, with and without the prompt",
    cost="two passes a record, one of them after the prompt",
    needs=("logprob",),
    inputs=("prompt",),
)
def in_context_loss(signals: Signals) -> Scores:
    """Score a record by ℓ(x) − ℓ(x | prompt), how much easier the prompt makes it.

    ℓ is the mean negative log-likelihood a token, in nats; `measured["prompt"]` (n,) is ln p after the prompt.
    The authors score by ℓ(x | prompt) alone; what is easy anyway is taken off here.
    """
    gain: Scores = signals.nll + signals.measured["prompt"]
    return gain
