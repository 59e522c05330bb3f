"""Loops compiled for this processor by Numba: once on a machine, where the result can be kept."""

from collections.abc import Callable, Sequence
from typing import Any

from numba import njit

__all__ = ["compiled"]


def compiled(signature: str | Sequence[str], **options: Any) -> Callable[[Callable[..., Any]], Any]:
    """Compile a function for arguments of `signature`, or of each of several, to run without the interpreter's lock."""

    def mark(function: Callable[..., Any]) -> Any:
        chosen = {"nogil": True, "error_model": "numpy", **options}
        try:
            return njit(signature, cache=True, **chosen)(function)
        except RuntimeError:  # nowhere to keep the result: neither the package nor a cache folder can be written
            return njit(signature, **chosen)(function)

    return mark
