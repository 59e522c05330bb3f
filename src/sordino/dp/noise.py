"""The Gaussian noise of a step: the same for the same secret, step and name, independent for any others."""

import math

import numpy as np
import torch
from torch import Tensor

from sordino.dp.keystream import check_secret, keystream, words
from sordino.errors import ConfigError

__all__ = ["Noise"]

_CHUNK = 1 << 13  # numbers drawn at a time: what they are computed from stays in the cache
_DRAWS = 2  # Box–Muller draws that make up one number of secure noise
# Where the state words of torch's Mersenne Twister stand in what `get_state` gives: after seed, left, seeded, next.
_STATE_AT, _STATE_WORDS = 24, 624


class Noise:
    """Draws noise from a secret of 16 to 64 bytes.

    Ordinary noise is that of torch's generator on the tensor's device: as fast as noise without a secret,
    but not made against an adversary who computes, since the generator's state can be solved for from enough
    exact outputs; a CPU and a GPU draw different numbers. With `secure`, it comes from ChaCha20, is the same
    on every device, and withstands the known attacks on floating point (Mironov 2012: which doubles a
    sampler can reach betrays what was added to them): each number is the sum of two independent Box–Muller
    draws in float64, scaled, from four uniforms of 53 bits, which leaves too many preimages to enumerate
    (Holohan & Braghin 2021, arXiv:2107.10138). This is a mitigation, not a proof as a discrete Gaussian
    would allow. It takes some twenty times as long.
    """

    def __init__(self, secret: bytes, *, secure: bool = False) -> None:
        check_secret(secret)
        self._secret = secret
        self.secure = secure

    def fill_(self, out: Tensor, std: float, *, step: int, name: str) -> None:
        """Overwrite `out` (float32 or float64, any shape) with independent draws from N(0, std²).

        Raises `ConfigError` for another dtype, or where `std` is not a positive number.
        """
        if out.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"Noise for `{name}` was asked for in {out.dtype}.", "Use float32 or float64.")
        if not 0 < std < math.inf:
            raise ConfigError(f"The noise of `{name}` has standard deviation {std}.", "It must be positive.")
        with torch.no_grad():
            if self.secure:
                drawn = _secure_normal(self._secret, (step, name), out.numel())
                drawn *= std
                out.copy_(torch.from_numpy(drawn).view(out.shape))
            else:
                out.normal_(0.0, std, generator=_generator(self._secret, (step, name), out.device))


def _generator(secret: bytes, purpose: tuple[int, str], device: torch.device) -> torch.Generator:
    stream = keystream(secret, "noise", *purpose)
    generator = torch.Generator(device)
    if device.type != "cpu":
        return generator.manual_seed(int.from_bytes(stream(8), "little", signed=True))
    # torch seeds its Mersenne Twister with the low 32 bits only: among a million pairs of step and name a
    # hundred would share their noise. So the whole state of 624 words is filled instead.
    generator.manual_seed(0)
    state = generator.get_state()
    fresh = np.frombuffer(stream(4 * _STATE_WORDS), dtype="<u4").astype(np.uint64)
    state[_STATE_AT : _STATE_AT + 8 * _STATE_WORDS] = torch.from_numpy(fresh.view(np.uint8))
    generator.set_state(state)
    return generator


def _secure_normal(secret: bytes, purpose: tuple[int, str], count: int) -> np.ndarray:
    """Standard normal numbers from ChaCha20, (count,) float64."""
    stream = keystream(secret, "secure noise", *purpose)
    drawn = np.empty(count)
    for start in range(0, count, _CHUNK):
        size = min(_CHUNK, count - start)
        # Uniform on (0, 1], in steps of 2^-53: the logarithm is finite.
        uniform = ((words(stream, 2 * _DRAWS * size) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        radius, angle = uniform.reshape(2, _DRAWS, size)
        # Only one number of each Box–Muller pair: the sum of both is a single draw under another angle.
        draws = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
        drawn[start : start + size] = draws.sum(axis=0) / math.sqrt(_DRAWS)
    return drawn
