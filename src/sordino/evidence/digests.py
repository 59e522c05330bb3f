"""Digests that bind results to what they were computed from, and the gate for weight files."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from sordino.errors import ModelError

__all__ = ["digest", "digest_file", "digest_files", "require_safetensors"]

_CHUNK = 1 << 20
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def digest(*parts: str | bytes) -> str:
    """blake2b-128, in hex, of length-prefixed `parts` (so that ("ab", "c") differs from ("a", "bc"))."""
    state = hashlib.blake2b(digest_size=16)
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        state.update(len(data).to_bytes(8, "big"))
        state.update(data)
    return state.hexdigest()


def digest_file(path: Path) -> str:
    """blake2b-128, in hex, of a file's bytes."""
    state = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return state.hexdigest()


def digest_files(paths: Iterable[Path]) -> str:
    """One digest of several files: their names and contents, in the order of their names."""
    return digest(*(part for p in sorted(paths) for part in (p.name, digest_file(p))))


def require_safetensors(folder: Path) -> None:
    """Refuse a model folder whose weights could run code when loaded.

    Raises `ModelError` where there are no .safetensors files: pickled weights are never opened.
    """
    if any(folder.glob("*.safetensors")):
        return
    pickles = sorted(p.name for pattern in _PICKLES for p in folder.glob(pattern))
    if pickles:
        message = f"{folder} has weights only as pickle ({pickles[0]}), which can run code when opened."
        raise ModelError(message, "Convert them to safetensors on a machine you can lose.")
    raise ModelError(f"{folder} has no weights (*.safetensors).", "Give a folder saved by save_pretrained.")
