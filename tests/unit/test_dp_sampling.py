"""Sampling: each unit independently with exactly the rate, the same for the same secret, cut fairly."""

import numpy as np
import pytest
from scipy.stats import binom, chi2, chisquare

from sordino.dp.keystream import keystream, words
from sordino.dp.sampling import FixedSize, PoissonSampler, Shuffled, truncation
from sordino.errors import ConfigError

SECRET = b"a fixed secret for the tests" + bytes(4)


def drawn(sampler, steps):
    taken = np.zeros((steps, sampler.units), dtype=bool)
    for step in range(steps):
        taken[step, sampler.batch(step)] = True
    return taken


def test_the_keystream_is_chacha20():
    # RFC 8439, appendix A.1, test vector 1: the zero key and nonce.
    from cryptography.hazmat.primitives.ciphers import Cipher
    from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

    block = Cipher(ChaCha20(bytes(32), bytes(16)), mode=None).encryptor().update(bytes(16))
    assert block.hex() == "76b8e0ada0f13d90405d6ae55386bd28"
    whole = keystream(SECRET, "x", 1)(96)
    part = keystream(SECRET, "x", 1)
    assert part(5) + part(91) == whole
    assert np.array_equal(words(keystream(SECRET, "x", 1), 12), np.frombuffer(whole, dtype="<u8"))


def test_streams_of_other_names_share_nothing():
    purposes = [("a", 1), ("a", "1"), ("a1",), ("a", 11), ("a", 1, 1), (1, "a"), ("a", -1), ()]
    streams = {bytes(keystream(SECRET, *purpose)(32)) for purpose in purposes}
    streams |= {bytes(keystream(bytes(32), *purpose)(32)) for purpose in purposes}
    assert len(streams) == 2 * len(purposes)


@pytest.mark.parametrize("rate", [0.01, 0.3, 0.9])
def test_every_unit_is_drawn_as_often_as_the_rate_says(rate):
    units, steps = 400, 2000
    taken = drawn(PoissonSampler(units, rate, units, SECRET), steps)
    counts, sizes = taken.sum(axis=0), taken.sum(axis=1)
    spread = ((counts - steps * rate) ** 2 / (steps * rate * (1 - rate))).sum()
    assert 0.001 < chi2.sf(spread, units) < 0.999
    # Sizes of batches are binomial: not fixed, and not more varied either.
    spread = ((sizes - units * rate) ** 2 / (units * rate * (1 - rate))).sum()
    assert 0.001 < chi2.sf(spread, steps) < 0.999


def test_units_and_steps_are_drawn_independently_of_each_other():
    rate, steps = 0.3, 4000
    taken = drawn(PoissonSampler(12, rate, 12, SECRET), steps)
    expected = steps * np.array([(1 - rate) ** 2, rate * (1 - rate), rate * (1 - rate), rate**2])
    p_values = []
    for first in range(12):
        for second in range(first):
            pairs = np.bincount(2 * taken[:, first] + taken[:, second], minlength=4)
            p_values.append(chisquare(pairs, expected).pvalue)
        pairs = np.bincount(2 * taken[:-1, first] + taken[1:, first], minlength=4)
        p_values.append(chisquare(pairs, expected * (steps - 1) / steps).pvalue)
    assert min(p_values) > 0.001 / len(p_values)
    assert 0.3 < np.mean(p_values) < 0.7


def test_a_batch_depends_on_the_secret_and_the_step_only():
    sampler, again = (PoissonSampler(1000, 0.1, 1000, SECRET) for _ in range(2))
    later = sampler.batch(7)
    assert np.array_equal(again.batch(3), sampler.batch(3))
    assert np.array_equal(again.batch(7), later)
    assert not np.array_equal(sampler.batch(8), later)
    assert not np.array_equal(PoissonSampler(1000, 0.1, 1000, bytes(32)).batch(7), later)
    assert later.dtype == np.int64
    assert (np.diff(later) > 0).all()


def test_batches_are_the_words_below_the_rate():
    # A second computation: a word of the stream over 2^64 is a uniform number.
    uniform = words(keystream(SECRET, "poisson", 5), 500) / 2.0**64
    assert np.array_equal(PoissonSampler(500, 0.2, 500, SECRET).batch(5), np.flatnonzero(uniform < 0.2))


def test_empty_batches_are_batches():
    sampler = PoissonSampler(20, 0.02, 20, SECRET)
    sizes = np.array([len(sampler.batch(step)) for step in range(400)])
    assert abs((sizes == 0).mean() - 0.98**20) < 0.08
    assert sampler.batch(int(np.argmin(sizes))).shape == (0,)


def test_a_batch_that_is_too_long_is_cut_to_a_fair_choice_of_it():
    units, steps, cap = 30, 2000, 8
    free, cut = (PoissonSampler(units, 0.3, most, SECRET) for most in (units, cap))
    counts = np.zeros(units)
    for step in range(steps):
        whole, kept = free.batch(step), cut.batch(step)
        assert len(kept) == min(cap, len(whole))
        assert set(kept) <= set(whole)
        assert (np.diff(kept) > 0).all()
        counts[kept] += 1
    # Every unit is as likely as any other; the place in the batch must not matter.
    assert chisquare(counts).pvalue > 0.001
    expected = sum(min(cap, size) * binom.pmf(size, units, 0.3) for size in range(units + 1)) * steps
    assert counts.sum() == pytest.approx(expected, rel=0.02)


def test_the_choice_among_a_full_batch_is_uniform_over_its_subsets():
    sampler = PoissonSampler(4, 1.0, 2, SECRET)
    subsets = [tuple(sampler.batch(step)) for step in range(3000)]
    found, counts = np.unique(subsets, axis=0, return_counts=True)
    assert len(found) == 6
    assert chisquare(counts).pvalue > 0.001


@pytest.mark.parametrize(("rate", "size"), [(1.0, 50), (1e-300, 0), (2**-64 * 0.9, 0)])
def test_the_rates_at_the_edges(rate, size):
    sampler = PoissonSampler(50, rate, 50, SECRET)
    assert [len(sampler.batch(step)) for step in range(5)] == [size] * 5


def test_the_rate_is_met_to_the_bit_and_never_exceeded():
    assert PoissonSampler(1, 0.1, 1, SECRET)._threshold / 2**64 == 0.1
    assert PoissonSampler(1, 0.5, 1, SECRET)._threshold == 2**63
    assert PoissonSampler(1, 1e-9, 1, SECRET)._threshold <= 1e-9 * 2**64


def test_the_cap_is_five_standard_deviations_above_the_mean():
    assert truncation(10_000, 0.01) == 150
    assert truncation(100, 1.0) == 100
    assert truncation(10, 0.5) == 10
    assert truncation(1000, 1e-9) == 1
    assert binom.sf(truncation(10_000, 0.01), 10_000, 0.01) < 2e-6


def test_shuffled_batches_hold_every_unit_once_an_epoch():
    sampler = Shuffled(103, 10, SECRET)
    assert sampler.batches == 11
    epochs = [[sampler.batch(step) for step in range(11 * epoch, 11 * (epoch + 1))] for epoch in range(3)]
    for batches in epochs:
        assert [len(batch) for batch in batches] == [10] * 10 + [3]
        assert np.array_equal(np.sort(np.concatenate(batches)), np.arange(103))
    assert not np.array_equal(epochs[0][0], epochs[1][0])
    assert np.array_equal(Shuffled(103, 10, SECRET).batch(25), epochs[2][3])
    assert not np.array_equal(Shuffled(103, 10, bytes(32)).batch(25), epochs[2][3])


def test_a_shuffle_favours_no_unit():
    sampler = Shuffled(20, 5, SECRET)
    counts = np.zeros(20)
    for epoch in range(2000):
        counts[sampler.batch(4 * epoch)] += 1
    # A batch is drawn without replacement: the variance is that of the hypergeometric distribution.
    spread = ((counts - 500) ** 2 / (2000 * 0.25 * 0.75)).sum() * 19 / 20
    assert 0.001 < chi2.sf(spread, 19) < 0.999


@pytest.mark.parametrize(
    "build",
    [
        lambda: PoissonSampler(0, 0.1, 1, SECRET),
        lambda: PoissonSampler(5, 0.0, 1, SECRET),
        lambda: PoissonSampler(5, 1.5, 1, SECRET),
        lambda: PoissonSampler(5, 0.1, 0, SECRET),
        lambda: PoissonSampler(5, 0.1, 1, b"short"),
        lambda: PoissonSampler(5, 0.1, 1, bytes(65)),
        lambda: PoissonSampler(5, 0.1, 1, SECRET).batch(-1),
        lambda: Shuffled(5, 6, SECRET),
        lambda: Shuffled(5, 0, SECRET),
        lambda: Shuffled(5, 2, b""),
        lambda: Shuffled(5, 2, SECRET).batch(-1),
    ],
)
def test_values_that_cannot_be_meant_are_refused(build):
    with pytest.raises(ConfigError):
        build()


def test_batches_of_fixed_size_are_uniform_subsets():
    sampler, steps = FixedSize(30, 6, SECRET), 3000
    taken = drawn(sampler, steps)
    assert (taken.sum(axis=1) == 6).all() and np.array_equal(sampler.batch(7), FixedSize(30, 6, SECRET).batch(7))
    # Counts of units in a sample without replacement vary by (units − 1) degrees of freedom.
    spread = ((taken.sum(axis=0) - steps * 0.2) ** 2 / (steps * 0.2 * 0.8)).sum() * 29 / 30
    assert 0.001 < chi2.sf(spread, 29) < 0.999
    together = taken.T.astype(int) @ taken.astype(int)
    pairs = together[np.triu_indices(30, 1)]
    assert abs(pairs / steps - 6 * 5 / (30 * 29)).max() < 5 * (0.0345 / steps) ** 0.5
    overlaps = (taken[1:] & taken[:-1]).sum(axis=1)
    assert abs(overlaps.mean() - 1.2) < 5 * (1.2 * 0.8 * 24 / 29 / steps) ** 0.5
    for batch in (0, 31):
        with pytest.raises(ConfigError, match="`batch`"):
            FixedSize(30, batch, SECRET)
