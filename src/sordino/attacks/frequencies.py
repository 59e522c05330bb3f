"""How rare tokens are, and what a model's probabilities come to when that is taken into account (DC-PDD)."""

import numpy as np

from sordino.signals import Ragged, Scores, Statistics

__all__ = ["divergence", "smoothed"]


def smoothed(counts: np.ndarray) -> np.ndarray:
    """Frequencies (V) of tokens that were counted so often, none of them 0: (count + 1)/(sum + V)."""
    frequencies: np.ndarray = (counts + 1) / (counts.sum() + len(counts))
    return frequencies


def divergence(statistics: Statistics, frequency: np.ndarray, cap: float) -> Scores:
    """The mean over each record's distinct scored tokens, where they first stand, of min(p · ln(1/f), `cap`).

    Zhang et al. 2024, arXiv:2409.14781. `frequency` (V) is of every token that may be scored.
    """
    rows = Ragged(statistics.token, statistics.offsets).rows
    _, first = np.unique(rows * len(frequency) + statistics.token, return_index=True)
    chosen = np.zeros(len(rows))
    chosen[first] = 1.0
    gain = np.exp(np.asarray(statistics.logprob, np.float64)) * -np.log(frequency[statistics.token])
    sums = Ragged(np.minimum(gain, cap) * chosen, statistics.offsets).sum()
    counts = Ragged(chosen, statistics.offsets).sum()
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
