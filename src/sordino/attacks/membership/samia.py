"""SaMIA: an adversary who sees only text asks for the rest of a record, and counts its words in the answers."""

import zlib as compression

import numpy as np

from sordino.attacks.base import membership
from sordino.attacks.words import recall, words
from sordino.signals import Scores, Signals


@membership(
    paper="Kaneko et al. 2024, arXiv:2404.11262",
    access="generated text",
    needs=(),
    inputs=("samples",),
    cost="10 continuations a record",
    suite="full",
)
def samia(signals: Signals, *, zlib: bool = False) -> Scores:
    """Score a record by how many words of its second half are in continuations sampled after its first half.

    The mean ROUGE-1 recall of the samples, each cut to as many words as truly follow. Words are what blanks
    separate, capitals and punctuation kept, as in the authors' code. With `zlib`, each recall is multiplied by the
    compressed bytes of its sample, so that repetition counts less.
    """
    scores = np.full(len(signals), np.nan)
    for record, (rest, samples) in enumerate(zip(signals.written.remainders, signals.written.samples, strict=True)):
        true = words(rest)
        if not true or not samples:
            continue
        found = []
        for sample in samples:
            cut = words(sample)[: len(true)]
            size = len(compression.compress(" ".join(cut).encode())) if zlib else 1
            found.append(recall(cut, true) * size)
        scores[record] = np.mean(found)
    return scores
