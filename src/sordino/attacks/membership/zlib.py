"""The zlib attack: the loss against how compressible the text is."""

import zlib as compression

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(paper="Carlini et al. 2021, arXiv:2012.07805", needs=("logprob",))
def zlib(signals: Signals) -> Scores:
    """Score a record by its loss against its own complexity: −ℓ / zlib-compressed bytes of its text."""
    sizes = np.array([len(compression.compress(text.encode())) for text in signals.texts])
    scores: Scores = -signals.nll / sizes
    return scores
