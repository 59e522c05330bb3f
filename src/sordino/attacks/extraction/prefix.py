"""Discoverable extraction: give the model the beginning of a record, does greedy decoding give the rest?"""

import numpy as np

from sordino.attacks.base import Windows, extraction
from sordino.attacks.passages import passages
from sordino.signals import Signals


@extraction(paper="Carlini et al. 2023, arXiv:2202.07646; Nasr et al. 2023, arXiv:2311.17035", needs=("top",))
def prefix(signals: Signals, *, prefix_tokens: int = 50, suffix_tokens: int = 50) -> Windows:
    """Find the passages of `suffix_tokens` tokens that greedy decoding repeats word for word.

    The prompt is the record up to the passage, at least `prefix_tokens` tokens. Greedy decoding
    repeats a passage exactly if every token of it is the most likely one after the true tokens
    before it, so one teacher-forced pass holds every window (no generation needed; the audit
    decodes the hits again all the same). In records with fewer tokens both lengths shrink in
    proportion, down to a suffix of 8; shorter ones are not tried.
    """
    s = signals.statistics
    tried, found, shortened = np.zeros(len(signals), dtype=np.int64), [], 0
    right = np.asarray(s.top) == np.asarray(s.token)
    for one in passages(signals, prefix_tokens, suffix_tokens):
        tried[one.record] = len(one.first)
        shortened += one.shortened and len(one.first) > 0
        run = np.concatenate([[0], np.cumsum(right[one.rows])])
        hits = one.first[run[one.first + one.length] - run[one.first] == one.length]
        if len(hits):
            start = int(s.position[one.rows][hits[0]])
            found.append((one.record, start, start + one.length))
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return Windows(tried=tried, record=table[:, 0], start=table[:, 1], stop=table[:, 2], shortened=shortened)
