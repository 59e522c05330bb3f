"""The Gaussian noise of a step: the same for the same secret, step and name, independent for any others."""

import math

import numpy as np
import torch
from torch import Tensor

from sordino.dp.keystream import Stream, check_secret, keystream, words
from sordino.errors import ConfigError

__all__ = ["Noise"]

_CHUNK = 1 << 16  # numbers drawn at a time: what they are computed from stays in the cache
_SECURE_CHUNK = 1 << 13
_DRAWS = 2  # Box–Muller draws that make up one number of secure noise
_WORD = 2.0**-31  # of a signed word of 32 bits, which is from -1 to 1 then


class Noise:
    """Draws noise from a secret of 16 to 64 bytes.

    On a CPU it is Box–Muller on words of 32 bits from ChaCha20: from any number of outputs nobody can compute
    another. On a GPU it is that of torch's generator, as fast as noise without a secret but not made against an
    adversary who computes; so a CPU and a GPU draw different numbers. With `secure`, it comes from ChaCha20 on
    every device, is the same on all, and withstands the known attacks on floating point (Mironov 2012: which doubles
    a sampler can reach betrays what was added to them): each number is the sum of two independent Box–Muller
    draws in float64, scaled, from four uniforms of 53 bits, which leaves too many preimages to enumerate
    (Holohan & Braghin 2021, arXiv:2107.10138). This is a mitigation, not a proof as a discrete Gaussian
    would allow. It takes some twenty times as long.
    """

    def __init__(self, secret: bytes, *, secure: bool = False) -> None:
        check_secret(secret)
        self._secret = secret
        self.secure = secure

    @torch.no_grad()
    def add_(self, out: Tensor, std: float, *, step: int, name: str) -> None:
        """Add independent draws from N(0, std²) to `out` (contiguous, float32 or float64, any shape).

        The sum is rounded to the type of `out`, and no tensor of its size is made. Raises `ConfigError` for
        another dtype, or where `std` is not a positive number.
        """
        if out.dtype not in (torch.float32, torch.float64):
            raise ConfigError(f"Noise for `{name}` was asked for in {out.dtype}.", "Use float32 or float64.")
        if not 0 < std < math.inf:
            raise ConfigError(f"The noise of `{name}` has standard deviation {std}.", "It must be positive.")
        if not out.is_contiguous():
            raise ConfigError(f"Noise for `{name}` was asked for in a strided view.", "Use a contiguous tensor.")
        flat = out.view(-1)
        if not flat.numel():
            return
        if self.secure:
            _add_secure(flat, std, keystream(self._secret, "secure noise", step, name))
        elif out.device.type == "cpu":
            _add_normal(flat, std, keystream(self._secret, "noise", step, name))
        else:
            seed = int.from_bytes(keystream(self._secret, "noise", step, name)(8), "little", signed=True)
            generator = torch.Generator(out.device).manual_seed(seed)
            for part in torch.split(flat, _CHUNK << 6):
                part.add_(torch.empty_like(part).normal_(0.0, std, generator=generator))


def _add_normal(flat: Tensor, std: float, stream: Stream) -> None:
    half = min(_CHUNK, flat.numel() + 1) // 2
    # Of the type of the result, which a product with a plain number would not be.
    word = flat.new_full((), _WORD)
    uniform, cosine = flat.new_empty(2, half), flat.new_empty(half)
    for part in torch.split(flat, 2 * half):
        # Numbers come in pairs; of an odd count, the last one's partner is dropped.
        pairs = (part.numel() + 1) // 2
        drawn = torch.frombuffer(stream(8 * pairs), dtype=torch.int32).view(2, pairs)
        radius, angle = torch.mul(drawn, word, out=uniform[:, :pairs])
        # Uniform on (0, 1], and fine near 0, which is where the tails come from. The logarithm is finite; no draw is
        # farther out than √(2·32·ln 2) = 6.7 std.
        radius.abs_().add_(_WORD / 2).clamp_(max=1.0).log_().mul_(-2 * std**2).sqrt_()
        angle.mul_(math.pi)
        part[:pairs].add_(torch.cos(angle, out=cosine[:pairs]).mul_(radius))
        rest = part.numel() - pairs
        part[pairs:].add_(angle.sin_().mul_(radius)[:rest])


def _add_secure(flat: Tensor, std: float, stream: Stream) -> None:
    for part in torch.split(flat, _SECURE_CHUNK):
        size = part.numel()
        # Uniform on (0, 1], in steps of 2^-53: the logarithm is finite.
        uniform = ((words(stream, 2 * _DRAWS * size) >> np.uint64(11)) + np.uint64(1)) * 2.0**-53
        radius, angle = uniform.reshape(2, _DRAWS, size)
        # Only one number of each Box–Muller pair: the sum of both is a single draw under another angle.
        draws = np.sqrt(-2 * np.log(radius)) * np.cos(2 * np.pi * angle)
        drawn = torch.from_numpy(draws.sum(axis=0) * (std / math.sqrt(_DRAWS)))
        part.add_(drawn.to(part.device, part.dtype))
