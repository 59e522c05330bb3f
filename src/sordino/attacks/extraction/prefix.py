"""Discoverable extraction: give the model the beginning of a record, does greedy decoding give the rest?"""

import numpy as np

from sordino.attacks.base import Windows, extraction
from sordino.signals import Signals

SHORTEST = 8


def passages(position: np.ndarray, prefix_tokens: int, suffix_tokens: int) -> tuple[np.ndarray, int]:
    """Which of a record's scored tokens, at `position` (n), begin a passage that is tried, and its length in tokens.

    Both lengths shrink in proportion in a record that has not tokens enough, the suffix down to `SHORTEST`.
    """
    length = int(position[-1]) + 1
    scale = min(1.0, length / (prefix_tokens + suffix_tokens))
    suffix = max(SHORTEST, int(suffix_tokens * scale))
    before = min(int(prefix_tokens * scale), length - suffix)
    # A window is a run of consecutive scored positions with enough context before it.
    first = np.arange(len(position) - suffix + 1)
    return first[(position[first] >= before) & (position[first + suffix - 1] - position[first] == suffix - 1)], suffix


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
    counts = np.diff(s.offsets)
    tried, found = np.zeros(len(counts), dtype=np.int64), []
    right = np.asarray(s.top) == np.asarray(s.token)
    for record in np.flatnonzero(counts >= SHORTEST):
        rows = slice(s.offsets[record], s.offsets[record + 1])
        position = np.asarray(s.position[rows])
        first, suffix = passages(position, prefix_tokens, suffix_tokens)
        tried[record] = len(first)
        run = np.concatenate([[0], np.cumsum(right[rows])])
        hits = first[run[first + suffix] - run[first] == suffix] if len(first) else first
        if len(hits):
            start = int(position[hits[0]])
            found.append((record, start, start + suffix))
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return Windows(tried=tried, record=table[:, 0], start=table[:, 1], stop=table[:, 2])
