"""What attacks on shadow models share: the statistic φ, its spread with and without a record, mean probabilities."""

from typing import Literal

import numpy as np

from sordino.signals import Scores, Signals
from sordino.stats import log1mexp

__all__ = ["POOLED_BELOW", "Statistic", "mean_probability", "spread", "statistic"]

Statistic = Literal["logit", "loss"]
POOLED_BELOW = 64
"""Under so many shadows a record has too few of them for a variance of its own (Carlini et al. 2022, section VI)."""


def statistic(nll: np.ndarray, kind: Statistic) -> np.ndarray:
    """φ of losses ℓ (any shape), higher = better known: −ℓ, or ln(p/(1 − p)) of p = exp(−ℓ), a token's geometric mean.

    Carlini et al. 2022, eq. 4 and appendix: the logit of a confidence is nearly Gaussian over shadows.
    """
    if kind == "loss":
        return -nll
    # ln(1 − e^−ℓ), exact at both ends; a loss of 0 is perfect memory and keeps a large finite logit.
    scaled: np.ndarray = -nll - log1mexp(-np.maximum(nll, 1e-150))
    return scaled


def spread(phi: np.ndarray, chosen: np.ndarray, pooled: bool) -> tuple[Scores, Scores]:
    """Mean and standard deviation of each record's `phi` (K, records) over the shadows `chosen` (K, records).

    `pooled`: one deviation for all records, that of all residuals from their own record's mean. A record
    with no such shadow has the mean of the others' means and the pooled deviation. Deviations are those of the
    population (ddof 0), as in the reference implementations.
    """
    counts = chosen.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = np.where(chosen, phi, 0.0).sum(axis=0) / counts
    residuals = np.where(chosen, phi - mean, 0.0)
    mean = np.where(counts > 0, mean, np.nan)
    scored = np.isfinite(mean)
    total = float((residuals[:, scored] ** 2).sum() / max(1, int(counts[scored].sum())))
    own = (residuals**2).sum(axis=0) / np.maximum(counts, 1)
    variance = np.full(len(mean), total) if pooled else np.where(counts > 1, own, total)
    if scored.any() and not (counts > 0).all():
        mean = np.where(counts > 0, mean, mean[scored].mean())
    return mean, np.sqrt(variance) + 1e-30


def mean_probability(signals: Signals, which: np.ndarray) -> Scores:
    """The mean of p = exp(−ℓ) over the shadows `which` (K, records); over all of them where a record has none."""
    p = np.exp(-signals.shadowed.nll)
    chosen = np.where(which.any(axis=0), which, True)
    found: Scores = np.where(chosen, p, 0.0).sum(axis=0) / chosen.sum(axis=0)
    return found
