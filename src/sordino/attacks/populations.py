"""RMIA's ratio of a record's probability to its expected one, and where it stands among records of a population."""

import numpy as np

from sordino.attacks.shadowed import mean_probability
from sordino.errors import ConfigError
from sordino.signals import Scores, Signals

__all__ = ["dominated", "offline_ratio", "online_ratio", "population"]


def offline_ratio(signals: Signals, a: float) -> Scores:
    """w(x) = p_θ(x) / p̂(x) with p = exp(−ℓ) and p̂ = ½[(1 + a) p̄_out + 1 − a] (Zarifzadeh et al. 2024, eq. 10)."""
    out = mean_probability(signals, ~signals.shadowed.included)
    ratio: Scores = np.exp(-signals.nll) / np.maximum(((1 + a) * out + 1 - a) / 2, 1e-300)
    return ratio


def online_ratio(signals: Signals) -> Scores:
    """w(x) = p_θ(x) / p̂(x) with p̂ = ½(p̄_in + p̄_out); a record that no shadow was trained on has p̄_out alone."""
    included = signals.shadowed.included
    expected = (mean_probability(signals, included) + mean_probability(signals, ~included)) / 2
    ratio: Scores = np.exp(-signals.nll) / np.maximum(expected, 1e-300)
    return ratio


def population(signals: Signals) -> Signals:
    """The known non-members z, which neither the target nor a shadow was trained on."""
    known = signals.told
    chosen = np.flatnonzero(~known.member & np.isfinite(known.signals.nll)).tolist()
    theirs = known.signals
    return Signals(
        record_ids=[theirs.record_ids[i] for i in chosen],
        texts=[theirs.texts[i] for i in chosen],
        statistics=theirs.statistics.select(chosen),
        shadows=theirs.shadowed.select(chosen),
    )


def dominated(ratio: Scores, others: np.ndarray, gamma: float) -> Scores:
    """Pr_z[w(x)/w(z) ≥ γ] of each `ratio` (n) over `others` (m), by sorting: O((n + m) ln m), never n·m."""
    if gamma <= 0:
        raise ConfigError(f"gamma is {gamma}.", "It is a ratio of ratios, above 0.")
    shares = np.searchsorted(np.sort(gamma * others), ratio, side="right") / len(others)
    return np.where(np.isfinite(ratio), shares, np.nan)
