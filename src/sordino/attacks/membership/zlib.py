"""The zlib attack: the loss against how compressible the text is."""

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(paper="Carlini et al. 2021, arXiv:2012.07805", needs=("logprob",), inputs=("compressed",))
def zlib(signals: Signals) -> Scores:
    """Score a record by its loss against its own complexity: −ℓ / zlib-compressed bytes of its text."""
    scores: Scores = -signals.nll / signals.measured["compressed"]
    return scores
