"""Two shares of the same things, such as hits of a tuned and of an untuned model: their difference, and a test."""

import itertools

import numpy as np
from numpy.typing import ArrayLike

from sordino.stats.common import Interval, check_count, check_fraction, check_numbers, group_codes, group_sums
from sordino.stats.proportions import korn_graubard

__all__ = ["paired_difference", "sign_flip"]

# Up to so many groups, all ways to flip their signs are gone through.
_ALL = 14


def paired_difference(
    first: ArrayLike, second: ArrayLike, group: ArrayLike | None = None, confidence: float = 0.95
) -> Interval:
    """The share of hits in `first` (n,) less that in `second` (n,), booleans about the same things.

    Only where one hits alone do they differ, so the difference is that of two shares, each bounded (Korn–Graubard, by
    `group`) at half the error: by Bonferroni the interval holds whatever the two have to do with each other, also
    where there are no hits at all.
    """
    check_fraction("confidence", confidence)
    a = check_numbers("first", np.asarray(first, dtype=np.bool_)).astype(bool)
    b = check_numbers("second", np.asarray(second, dtype=np.bool_), a.size).astype(bool)
    up, down = (korn_graubard(hits, group, 1 - (1 - confidence) / 2) for hits in (a & ~b, b & ~a))
    return Interval(
        value=float(a.mean() - b.mean()),
        low=max(-1.0, up.low - down.high),
        high=min(1.0, up.high - down.low),
        n=up.n,
        method="paired difference, Bonferroni over the two discordant shares",
        confidence=confidence,
    )


def sign_flip(values: ArrayLike, group: ArrayLike | None = None, shuffles: int = 9999, seed: int = 0) -> float:
    """The one-sided p-value that paired differences `values` (n,) are above 0: signs flipped, a group's all together.

    Exact, over all ways, of up to 14 groups that differ; else (1 + #)/(1 + shuffles). Of ±1 and groups of one it is
    the exact test of McNemar.
    """
    check_count("shuffles", shuffles, 1)
    array = check_numbers("values", values, finite=True)
    codes, groups = group_codes(group, array.size)
    sums = group_sums(array, codes, groups)
    sums = sums[sums != 0]
    if not sums.size:
        return 1.0
    least = float(sums.sum()) - 1e-9 * float(np.abs(sums).sum())
    if sums.size <= _ALL:
        signs = np.array(list(itertools.product((-1.0, 1.0), repeat=sums.size)))
        return float((signs @ sums >= least).mean())
    rng, reached, done = np.random.default_rng(seed), 0, 0
    while done < shuffles:
        count = min(1024, shuffles - done)
        reached += int((rng.choice([-1.0, 1.0], size=(count, sums.size)) @ sums >= least).sum())
        done += count
    return (1 + reached) / (1 + shuffles)
