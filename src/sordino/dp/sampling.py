"""Which units are in a step's batch: Poisson sampling cut at a cap, batches of fixed size, shuffled batches.

All are functions of a secret and the step, so that a resumed run draws what it would have drawn. Whoever
knows the secret knows who took part in which step: no guarantee holds against them.
"""

import math
from fractions import Fraction

import numpy as np

from sordino.dp.keystream import check_secret, keystream, words
from sordino.errors import ConfigError

__all__ = ["FixedSize", "PoissonSampler", "Shuffled", "truncation"]


def truncation(units: int, rate: float) -> int:
    """The cap that a batch hardly ever meets: mean + 5 standard deviations of its size, at most `units`."""
    return min(units, math.ceil(units * rate + 5 * math.sqrt(units * rate * (1 - rate))))


def _check(units: int, step: int | None = None) -> None:
    if units < 1:
        raise ConfigError(f"There are {units} units.", "Sampling needs at least one.")
    if step is not None and step < 0:
        raise ConfigError(f"The step is {step}.", "Steps are counted from 0.")


def _check_batch(batch: int, units: int) -> None:
    if not 1 <= batch <= units:
        raise ConfigError(f"`batch` is {batch}.", f"It must be from 1 to the {units} units there are.")


def _smallest(keys: np.ndarray, count: int) -> np.ndarray:
    # The places of the `count` smallest of independent keys are a uniform subset (ties: less than n²/2^65).
    return np.sort(np.argsort(keys, kind="stable")[:count])


class PoissonSampler:
    """Poisson batches of `units`, each in with probability `rate`, cut to a random `cap` of them.

    The mechanism of `TruncatedSubsampledGaussianDpEvent` of dp-accounting: "sample ... using Poisson
    sampling with probability sampling_probability, truncate the resulting sample to size
    truncated_batch_size by sampling a random subset" (arXiv:2508.15089). `secret` is 16 to 64 bytes.

    Raises `ConfigError` for values that cannot be meant.
    """

    def __init__(self, units: int, rate: float, cap: int, secret: bytes) -> None:
        _check(units)
        check_secret(secret)
        if not 0 < rate <= 1:
            raise ConfigError(f"`rate` is {rate}.", "It must be in (0, 1].")
        if cap < 1:
            raise ConfigError(f"`cap` is {cap}.", "A batch must have room for one unit.")
        self.units, self.rate, self.cap = units, rate, cap
        self._secret = secret
        # A float is a fraction with a power of two below it: from 2^-12 on this is the rate exactly, and below
        # that less than 2^-64 under it, never over it, which is the side on which the guarantee holds.
        self._threshold = math.floor(Fraction(rate) * 2**64)

    def batch(self, step: int) -> np.ndarray:
        """The units of step `step` (from 0): ascending indices, (≤ cap,) int64; it may be empty."""
        _check(self.units, step)
        if self._threshold == 2**64:
            taken = np.arange(self.units)
        else:
            drawn = words(keystream(self._secret, "poisson", step), self.units)
            taken = np.flatnonzero(drawn < np.uint64(self._threshold))
        if len(taken) > self.cap:
            keys = words(keystream(self._secret, "truncate", step), len(taken))
            taken = taken[_smallest(keys, self.cap)]
        return taken.astype(np.int64, copy=False)


class FixedSize:
    """Exactly `batch` of `units`, a uniformly random subset, drawn anew for every step.

    For `events.fixed_size_gaussian`. `secret` is 16 to 64 bytes. Raises `ConfigError` for values that cannot be meant.
    """

    def __init__(self, units: int, batch: int, secret: bytes) -> None:
        _check(units)
        check_secret(secret)
        _check_batch(batch, units)
        self.units, self.size = units, batch
        self._secret = secret

    def batch(self, step: int) -> np.ndarray:
        """The units of step `step` (from 0): ascending indices, (batch,) int64."""
        _check(self.units, step)
        keys = words(keystream(self._secret, "fixed-size", step), self.units)
        return _smallest(keys, self.size).astype(np.int64, copy=False)


class Shuffled:
    """Disjoint batches of a fresh permutation every epoch; the last batch of an epoch may be shorter.

    For `events.shuffled_gaussian` only: nothing is amplified by this sampling.
    """

    def __init__(self, units: int, batch: int, secret: bytes) -> None:
        _check(units)
        check_secret(secret)
        _check_batch(batch, units)
        self.units, self.size = units, batch
        self.batches = math.ceil(units / batch)
        self._secret = secret
        self._drawn: tuple[int, np.ndarray] | None = None

    def batch(self, step: int) -> np.ndarray:
        """The units of step `step` (from 0): ascending indices, (≤ batch,) int64."""
        _check(self.units, step)
        epoch, place = divmod(step, self.batches)
        if self._drawn is None or self._drawn[0] != epoch:
            keys = words(keystream(self._secret, "shuffle", epoch), self.units)
            self._drawn = epoch, np.argsort(keys, kind="stable").astype(np.int64, copy=False)
        return np.sort(self._drawn[1][place * self.size : (place + 1) * self.size])
