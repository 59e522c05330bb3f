"""Repeat: an adversary who sees only text gives the first words of a record, and looks whether the rest comes."""

import numpy as np

from sordino.attacks.base import in_context
from sordino.attacks.words import recall, words
from sordino.signals import Scores, Signals


@in_context(
    paper="Wen et al. 2024, arXiv:2409.01380",
    access="generated text",
    cost="one continuation a record, after the prompt",
    needs=("samples",),
)
def repeat(signals: Signals) -> Scores:
    """Score a record by how many words of its second half are in what greedy decoding writes after its first half.

    ROUGE-1 recall of the words written, cut to as many as truly follow; the authors compare sentence embeddings.
    """
    scores = np.full(len(signals), np.nan)
    for record, (rest, text) in enumerate(zip(signals.written.remainders, signals.written.greedy, strict=True)):
        true = words(rest)
        if true:
            scores[record] = recall(words(text)[: len(true)], true)
    return scores
