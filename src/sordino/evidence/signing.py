"""Ed25519 signatures (RFC 8032) of canonical JSON, and the keys for them."""

import math
import os
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from sordino.errors import ConfigError, UnlearningError, first_line

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

__all__ = ["canonical", "load_key", "new_key", "public_hex", "read_public", "sign", "verify"]

_PUBLIC = re.compile(r"[0-9a-f]{64}")
_SIGNATURE = re.compile(r"[0-9a-f]{128}")


def canonical(value: object) -> bytes:
    """The one way in which `value` is written to be signed: JSON without blanks, names sorted, UTF-8.

    That is `msgspec.json.encode(value, order="deterministic")`. Raises `UnlearningError` for what JSON has no number
    for (NaN and infinities, which would be written as null), and for what it cannot hold.
    """
    try:
        plain = msgspec.to_builtins(value)
        bad = list(_not_numbers(plain, ""))
        if bad:
            message = f"{len(bad)} values are not numbers and cannot be signed, such as {bad[0]}."
            raise UnlearningError(message, "Find out why they could not be computed.")
        return msgspec.json.encode(plain, order="deterministic")
    except (TypeError, ValueError, OverflowError) as error:
        raise UnlearningError(f"What is to be signed is no JSON: {first_line(error)}.", "Give plain values.") from error


def _not_numbers(value: Any, where: str) -> Iterator[str]:
    """The places of all floats that are not finite."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _not_numbers(inner, f"{where}.{name}" if where else str(name))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from _not_numbers(inner, f"{where}[{number}]")
    elif isinstance(value, float) and not math.isfinite(value):
        yield where


def new_key(path: Path) -> "Ed25519PrivateKey":
    """Make a key and write it to `path` (PEM, PKCS8, mode 600); raises `ConfigError` where something is there."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    if not path.parent.is_dir():
        raise ConfigError(f"There is no folder {path.parent} for the key.", "Make it first.")
    key = Ed25519PrivateKey.generate()
    data = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # Two processes may ask at once, and a link, unlike a rename, takes nobody's place.
        os.link(name, path)
    except FileExistsError as error:
        message = f"There is a file at {path} already; keys are never written over."
        raise ConfigError(message, "Use it as it is, or give another path.") from error
    finally:
        Path(name).unlink()
    return key


def load_key(path: Path) -> "Ed25519PrivateKey":
    """The private key at `path`.

    Raises `ConfigError` where there is none, where it is of another kind, and where others than its owner can read it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        data, mode = path.read_bytes(), path.stat().st_mode & 0o777
    except OSError as error:
        raise ConfigError(f"There is no key at {path} that can be read.", "Give the file that `--key` made.") from error
    if mode & 0o077:
        message = f"The key at {path} can be read by others than its owner (mode {mode:o})."
        raise ConfigError(message, f"`chmod 600 {path}`; if others had access to it, make a new one.")
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError) as error:
        message = f"{path} holds no private key that can be opened (PEM, PKCS8, not encrypted)."
        raise ConfigError(message, "Give the file that `--key` made.") from error
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigError(f"The key at {path} is of another kind than Ed25519.", "Give the file that `--key` made.")
    return key


def public_hex(key: "Ed25519PrivateKey") -> str:
    """The public key that belongs to `key`: 32 bytes, in hex."""
    return key.public_key().public_bytes_raw().hex()


def read_public(source: str) -> str:
    """A trusted public key, as hex: `source` is that itself, or a file with it, or one with a PEM key (of either kind).

    Raises `ConfigError` where it is neither.
    """
    if _PUBLIC.fullmatch(source.lower()):
        return source.lower()
    try:
        data = Path(source).read_bytes()
    except (OSError, ValueError) as error:
        message = f"'{source}' is neither a public key (64 hex digits) nor a file that can be read."
        raise ConfigError(message, "The issuer tells the public key; `sordino unlearn certify` prints it.") from error
    text = data.decode("ascii", "replace").strip().lower()
    return text if _PUBLIC.fullmatch(text) else _public_of_pem(data, source)


def _public_of_pem(data: bytes, source: str) -> str:
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

    for read in (load_pem_public_key, lambda pem: load_pem_private_key(pem, password=None)):
        try:
            key = read(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        if isinstance(key, Ed25519PrivateKey):
            return public_hex(key)
        if isinstance(key, Ed25519PublicKey):
            return key.public_bytes_raw().hex()
    raise ConfigError(f"{source} holds no Ed25519 key.", "Give 64 hex digits, or a PEM file.")


def sign(key: "Ed25519PrivateKey", data: bytes) -> str:
    """The signature of `data`: 64 bytes, in hex."""
    return key.sign(data).hex()


def verify(public: str, data: bytes, signature: str) -> bool:
    """Whether `signature` is that of `data` under `public`, both in lower-case hex; False for what is malformed."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    # Capitals would be another spelling of the same signature, and so a change that nobody notices.
    if not _PUBLIC.fullmatch(public) or not _SIGNATURE.fullmatch(signature):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), data)
    except (InvalidSignature, ValueError):
        return False
    return True
