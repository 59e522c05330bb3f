"""Cryptographic random bytes that a secret and a name determine: ChaCha20 under a derived key."""

import hashlib
from collections.abc import Callable

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import ChaCha20

from sordino.errors import ConfigError

__all__ = ["Stream", "check_secret", "keystream", "words"]

# Each call gives the next so many bytes.
Stream = Callable[[int], bytearray]


def check_secret(secret: bytes) -> None:
    """Raise `ConfigError` unless `secret` is a key: 16 to 64 bytes, which is what blake2b takes."""
    if not 16 <= len(secret) <= 64:
        raise ConfigError(
            f"The secret has {len(secret)} bytes.", "Give 16 to 64 random ones: `secrets.token_bytes(32)`."
        )


def keystream(secret: bytes, *purpose: str | int) -> Stream:
    """A source of bytes: each call gives the next so many of the stream that `secret` and `purpose` name.

    Streams of different purposes have independent keys (blake2b, RFC 7693, keyed with the secret), so that
    none shares a block with another; ChaCha20 (RFC 8439) under a key that is used once needs no nonce.
    A stream has 256 GiB.
    """
    state = hashlib.blake2b(key=secret, digest_size=32, person=b"sordino.dp")
    for part in purpose:
        # The type is part of the name: 1 is not "1".
        data = repr(part).encode()
        state.update(len(data).to_bytes(8, "big") + data)
    encryptor = Cipher(ChaCha20(state.digest(), bytes(16)), mode=None).encryptor()

    def next_bytes(count: int) -> bytearray:
        # Into a buffer that may be written to, which tensors and arrays want to stand on.
        out = bytearray(count)
        encryptor.update_into(bytes(count), out)
        return out

    return next_bytes


def words(stream: Stream, count: int) -> np.ndarray:
    """The next `count` uniform 64-bit words of a stream, (count,) uint64."""
    return np.frombuffer(stream(8 * count), dtype="<u8")
