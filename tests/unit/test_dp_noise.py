"""Noise: of the right size and shape, white, repeatable, and never shared between names or steps."""

import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2, kstest, norm

from sordino.dp.noise import Noise
from sordino.errors import ConfigError

SECRET = b"a fixed secret for the tests" + bytes(4)
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"))]


def draw(count=20_000, std=1.0, step=0, name="weight", **settings):
    dtype, device = settings.pop("dtype", torch.float32), settings.pop("device", "cpu")
    out = torch.full((count,), math.nan, dtype=dtype, device=device)
    Noise(settings.pop("secret", SECRET), **settings).fill_(out, std, step=step, name=name)
    return out.cpu().double().numpy()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [0.01, 3.0])
def test_noise_is_normal_with_the_standard_deviation_asked_for(device, secure, dtype, std):
    drawn = draw(200_000, std, secure=secure, dtype=dtype, device=device) / std
    spread = (drawn**2).sum()
    assert 0.001 < chi2.sf(spread, len(drawn)) < 0.999
    assert abs(drawn.mean()) < 4 / math.sqrt(len(drawn))
    assert kstest(drawn, norm.cdf).pvalue > 0.001
    # The tails, which a Kolmogorov–Smirnov test hardly sees.
    beyond = (np.abs(drawn) > 3).mean()
    assert abs(beyond - 2 * norm.sf(3)) < 4 * math.sqrt(2 * norm.sf(3) / len(drawn))


@pytest.mark.parametrize("secure", [False, True])
def test_noise_is_white(secure):
    # Longer than a chunk of the secure generator, so that the seams are seen as well.
    drawn = draw(200_000, secure=secure)
    for lag in (1, 2, 3, 7, 624, 8192):
        correlation = (drawn[lag:] * drawn[:-lag]).mean()
        assert abs(correlation) < 4 / math.sqrt(len(drawn) - lag)
        squares = ((drawn[lag:] ** 2 - 1) * (drawn[:-lag] ** 2 - 1)).mean() / 2
        assert abs(squares) < 4.5 / math.sqrt(len(drawn) - lag)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("secure", [False, True])
def test_no_two_names_steps_or_secrets_share_numbers(device, secure):
    settings = {"secure": secure, "device": device}
    triples = [(0, "a"), (1, "a"), (0, "b"), (11, "a"), (1, "1a"), (2**32, "a"), (2**40, "a")]
    streams = [draw(20_000, step=step, name=name, **settings) for step, name in triples]
    streams.append(draw(20_000, step=0, name="a", secret=bytes(32), **settings))
    whole = np.stack(streams)
    correlations = np.corrcoef(whole) - np.eye(len(whole))
    assert np.abs(correlations).max() < 5 / math.sqrt(whole.shape[1])
    assert len(np.unique(whole[:, :1000])) > 0.999 * whole[:, :1000].size


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("secure", [False, True])
def test_the_same_secret_step_and_name_give_the_same_noise(device, secure):
    noise = Noise(SECRET, secure=secure)
    first, second = (torch.empty(3, 5, 7, device=device) for _ in range(2))
    noise.fill_(first, 2.0, step=4, name="w")
    torch.manual_seed(99)
    noise.fill_(second, 1.0, step=5, name="w")
    noise.fill_(second, 2.0, step=4, name="w")
    assert torch.equal(first, second)


def test_noise_does_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    draw(100)
    draw(100, secure=True)
    assert torch.equal(before, torch.random.get_rng_state())


def test_more_than_32_bits_of_the_secret_reach_the_generator():
    # torch would seed its generator on the CPU with 32 bits: 2^18 draws then collide for certain.
    from sordino.dp.noise import _generator

    device = torch.device("cpu")
    state = _generator(SECRET, (0, "w"), device).get_state()
    other = _generator(SECRET, (1, "w"), device).get_state()
    fresh = torch.Generator().manual_seed(5).get_state()
    held = state[24 : 24 + 8 * 624].numpy().view(np.uint64)
    assert np.array_equal(fresh[24 : 24 + 8 * 624].numpy().view(np.uint64)[:1], [5])
    assert (held < 2**32).all()
    assert len(np.unique(held)) > 620
    assert abs(held.mean() / 2**32 - 0.5) < 4 / math.sqrt(12 * 624)
    assert (held != other[24 : 24 + 8 * 624].numpy().view(np.uint64)).sum() > 620
    # All beside the words is as after seeding: the first number drawn refills the whole state.
    fresh[:8] = state[:8]
    fresh[24 : 24 + 8 * 624] = state[24 : 24 + 8 * 624]
    assert torch.equal(fresh, state)


def test_the_generator_runs_on_the_state_it_was_given():
    # The Mersenne Twister in NumPy, from the same 624 words, gives the same random bits.
    from sordino.dp.noise import _generator

    generator = _generator(SECRET, (3, "w"), torch.device("cpu"))
    held = generator.get_state()[24 : 24 + 8 * 624].numpy().view(np.uint64).astype(np.uint32)
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": held, "pos": 624}}
    bits = torch.randint(0, 2**31, (1000,), generator=generator, dtype=torch.int64)
    # torch takes two words for a number, of which the second is the lower.
    assert np.array_equal(bits.numpy(), twister.random_raw(2000)[1::2] % 2**31)


def test_secure_noise_is_the_scaled_sum_of_two_box_muller_draws():
    from sordino.dp.keystream import keystream, words

    uniform = [(int(word >> 11) + 1) / 2**53 for word in words(keystream(SECRET, "secure noise", 2, "w"), 4 * 6)]
    expected = []
    for i in range(6):
        draws = [
            math.sqrt(-2 * math.log(uniform[6 * draw + i])) * math.cos(2 * math.pi * uniform[12 + 6 * draw + i])
            for draw in range(2)
        ]
        expected.append(1.5 * sum(draws) / math.sqrt(2))
    got = draw(6, 1.5, step=2, name="w", secure=True, dtype=torch.float64)
    assert got == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("secure", [False, True])
def test_views_and_parameters_and_empty_tensors_are_filled(secure):
    noise = Noise(SECRET, secure=secure)
    whole = torch.zeros(6, 8)
    noise.fill_(whole[:, ::2].T, 1.0, step=0, name="w")
    assert (whole[:, ::2] != 0).all()
    assert (whole[:, 1::2] == 0).all()
    weight = torch.nn.Parameter(torch.zeros(3))
    noise.fill_(weight, 1.0, step=0, name="w")
    assert (weight != 0).all()
    noise.fill_(torch.empty(0, 3), 1.0, step=0, name="w")


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_noise_without_a_size_is_refused(std):
    with pytest.raises(ConfigError, match="standard deviation"):
        Noise(SECRET).fill_(torch.empty(3), std, step=0, name="w")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_noise_in_another_precision_is_refused(dtype):
    with pytest.raises(ConfigError, match=str(dtype)):
        Noise(SECRET).fill_(torch.empty(3, dtype=dtype), 1.0, step=0, name="w")


def test_a_short_secret_is_refused():
    with pytest.raises(ConfigError, match="5 bytes"):
        Noise(b"short")
