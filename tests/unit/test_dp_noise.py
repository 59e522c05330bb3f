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
    out = torch.zeros(count, dtype=dtype, device=device)
    Noise(settings.pop("secret", SECRET), **settings).add_(out, std, step=step, name=name)
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
    # Longer than a chunk, so that the seams are seen as well; half a chunk parts the numbers of a pair.
    drawn = draw(300_000, secure=secure)
    for lag in (1, 2, 3, 7, 624, 8192, 2**15, 2**16):
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
    first, second, third = (torch.zeros(3, 5, 7, device=device) for _ in range(3))
    noise.add_(first, 2.0, step=4, name="w")
    torch.manual_seed(99)
    noise.add_(third, 1.0, step=5, name="w")
    noise.add_(second, 2.0, step=4, name="w")
    assert torch.equal(first, second)
    assert not torch.equal(first, third)


def test_noise_does_not_touch_the_global_generator():
    before = torch.random.get_rng_state()
    draw(100)
    draw(100, secure=True)
    assert torch.equal(before, torch.random.get_rng_state())


@pytest.mark.parametrize("count", [1, 2, 7, 2**16, 2**16 + 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_box_muller_on_the_keystream(count, dtype):
    from sordino.dp.keystream import keystream

    stream, expected = keystream(SECRET, "noise", 2, "w"), []
    for start in range(0, count, 2**16):
        size = min(2**16, count - start)
        pairs = (size + 1) // 2
        words = np.frombuffer(stream(8 * pairs), dtype="<i4").astype(np.float64)
        radius = np.sqrt(-2 * np.log(np.minimum(1, (np.abs(words[:pairs]) + 0.5) / 2**31)))
        angle = 2 * np.pi * words[pairs:] / 2**32
        expected += [*(radius * np.cos(angle)), *(radius * np.sin(angle))][:size]
    got = draw(count, 1.5, step=2, name="w", dtype=dtype)
    assert got == pytest.approx(1.5 * np.array(expected), abs=1e-5 if dtype == torch.float32 else 1e-12)


def test_the_least_and_the_greatest_word_make_finite_noise(monkeypatch):
    from sordino.dp import noise

    for byte in (b"\x00", b"\x7f", b"\x80", b"\xff"):
        whole = bytearray({b"\x7f": b"\xff\xff\xff\x7f", b"\x80": b"\x00\x00\x00\x80"}.get(byte, byte * 4) * 8)
        monkeypatch.setattr(noise, "keystream", lambda *_, whole=whole: lambda count: whole[:count])
        drawn = draw(8)
        assert np.isfinite(drawn).all()
        assert np.abs(drawn).max() <= 6.8


def test_noise_is_added_to_what_is_there():
    noise, out = Noise(SECRET), torch.full((1000,), 100.0, dtype=torch.float64)
    noise.add_(out, 1.0, step=0, name="w")
    assert out.numpy() - 100 == pytest.approx(draw(1000, name="w", dtype=torch.float64), abs=1e-12)


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
def test_parameters_and_empty_tensors_get_noise_and_views_do_not(secure):
    noise = Noise(SECRET, secure=secure)
    weight = torch.nn.Parameter(torch.zeros(3))
    noise.add_(weight, 1.0, step=0, name="w")
    assert (weight != 0).all()
    noise.add_(torch.empty(0, 3), 1.0, step=0, name="w")
    with pytest.raises(ConfigError, match="strided view"):
        noise.add_(torch.zeros(6, 8)[:, ::2], 1.0, step=0, name="w")


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf])
def test_noise_without_a_size_is_refused(std):
    with pytest.raises(ConfigError, match="standard deviation"):
        Noise(SECRET).add_(torch.empty(3), std, step=0, name="w")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.int64])
def test_noise_in_another_precision_is_refused(dtype):
    with pytest.raises(ConfigError, match=str(dtype)):
        Noise(SECRET).add_(torch.empty(3, dtype=dtype), 1.0, step=0, name="w")


def test_a_short_secret_is_refused():
    with pytest.raises(ConfigError, match="5 bytes"):
        Noise(b"short")
