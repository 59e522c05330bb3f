"""Verbatim extraction from generated text: asked for the likeliest rest of a record, does a model write it?"""

import numpy as np

from sordino.attacks.base import Windows, extraction
from sordino.attacks.passages import SHORTEST
from sordino.attacks.words import first, words
from sordino.signals import Signals


@extraction(paper="Carlini et al. 2023, arXiv:2202.07646", access="generated text", needs=("samples",))
def verbatim(signals: Signals, *, suffix_words: int = 50) -> Windows:
    """Find the records whose second half begins as the model, at temperature 0, goes on after the first.

    Compared are `suffix_words` words, or as many as there are, but at least 8; shorter halves are not tried.
    Texts must be equal character by character, blanks at both ends aside. One window a record is tried, so
    this finds less than the attack `prefix`. Positions in the result are words from the record's beginning.
    """
    w = signals.written
    counts = np.array([len(words(rest)) for rest in w.remainders], dtype=np.int64)
    hits = []
    for record in np.flatnonzero(counts >= SHORTEST).tolist():
        count = min(suffix_words, int(counts[record]))
        if first(w.remainders[record].strip(), count) == first(w.greedy[record].strip(), count):
            start = len(words(w.prompts[record]))
            hits.append((record, start, start + count))
    table = np.array(hits, dtype=np.int64).reshape(-1, 3)
    return Windows(
        tried=(counts >= SHORTEST).astype(np.int64), record=table[:, 0], start=table[:, 1], stop=table[:, 2]
    )  # fmt: skip
