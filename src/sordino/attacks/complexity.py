"""How complex a text is by itself: the bytes that it takes compressed."""

import zlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int64

__all__ = ["compressed_sizes"]


def compressed_sizes(texts: Sequence[str]) -> Int64[np.ndarray, " records"]:
    """Bytes of each text, in UTF-8, as zlib compresses it at its default level."""
    return np.fromiter((len(zlib.compress(text.encode())) for text in texts), dtype=np.int64, count=len(texts))
