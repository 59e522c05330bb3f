"""Extraction by sampling: asked many times, how likely does the model write a passage of a record?"""

import numpy as np

from sordino.attacks.base import Odds, extraction
from sordino.attacks.passages import passages
from sordino.signals import Signals


@extraction(
    paper="Hayes et al. 2025, arXiv:2410.19482",
    needs=(),
    inputs=("drawn",),
    cost="1 more pass a record, for all decodings",
)
def sampling(signals: Signals, *, prefix_tokens: int = 50, suffix_tokens: int = 50) -> Odds:
    """Find how likely one query gives a passage of `suffix_tokens` tokens word for word, under several decodings.

    The prompt is the record up to the passage, at least `prefix_tokens` tokens, and of all its passages the likeliest
    counts. The probability of a passage is the product of those with which its tokens are drawn after the true ones
    before them, so that nothing has to be sampled. In short records both lengths shrink as they do for `prefix`.
    """
    position, drawn = signals.statistics.position, signals.sampled
    count, width = len(signals), len(drawn.decodings)
    tried = np.zeros(count, dtype=np.int64)
    best = np.full((count, width), -np.inf)
    start, stop = (np.zeros((count, width), dtype=np.int64) for _ in range(2))
    for one in passages(signals, prefix_tokens, suffix_tokens):
        record, first = one.record, one.first
        tried[record] = len(first)
        if not len(first):
            continue
        logs = np.asarray(drawn.logprob[one.rows], dtype=np.float64)
        never = ~np.isfinite(logs)
        sums, lost = (_windows(x, first, one.length) for x in (np.where(never, 0.0, logs), never.astype(np.float64)))
        sums[lost > 0] = -np.inf
        at = sums.argmax(axis=0)
        best[record] = sums[at, np.arange(width)]
        start[record] = np.asarray(position[one.rows])[first[at]]
        stop[record] = start[record] + one.length
    # Sums by differences may end a rounding above 0.
    return Odds(tried=tried, logprob=np.minimum(best, 0.0), start=start, stop=stop)


def _windows(values: np.ndarray, first: np.ndarray, length: int) -> np.ndarray:
    """Sums of `values` (n, D) over the windows of `length` rows that begin at `first`."""
    run = np.concatenate([np.zeros((1, values.shape[1])), values.cumsum(axis=0)])
    found: np.ndarray = run[first + length] - run[first]
    return found
