"""The goldfish loss: some targets are never learned, the same ones wherever a passage occurs."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from sordino.results import Notice
from sordino.serialize import Tokens

__all__ = ["CONTEXT", "goldfish", "left_out"]

CONTEXT = 13  # tokens that decide about the next one (h in the paper)


def left_out(tokens: Tokens, k: int) -> np.ndarray:
    """Which tokens (T) of a record are out of the loss: those whose CONTEXT tokens before hash to 0 mod k.

    The hash has no key, so copies of a passage lose the same tokens in every record, epoch and run. The first
    CONTEXT tokens of a record are never out. Source: Hans et al. 2024, arXiv:2406.10209, section 3.1 (hashed mask).
    """
    out = np.zeros(len(tokens), dtype=bool)
    if len(tokens) <= CONTEXT:
        return out
    state = np.full(len(tokens) - CONTEXT, 0xCBF29CE484222325, dtype=np.uint64)
    for column in sliding_window_view(tokens.ids[:-1].astype(np.uint64), CONTEXT).T:
        state = (state ^ column) * np.uint64(0x100000001B3)  # FNV-1a; uint64 wraps around, as it should
    # Its low bits know only the low bits of the tokens: mixed (splitmix64) before the remainder is taken.
    state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    out[CONTEXT:] = (state ^ (state >> np.uint64(31))) % np.uint64(k) == 0
    return out


def goldfish(tokens: Sequence[Tokens], k: int) -> tuple[list[Tokens], list[Notice]]:
    """`tokens` with 1 in `k` targets taken out, and how many these are."""
    kept = [replace(t, target=t.target & ~left_out(t, k)) for t in tokens]
    before, after = (sum(int(t.target.sum()) for t in side) for side in (tokens, kept))
    emptied = sum(bool(old.target.any() and not new.target.any()) for old, new in zip(tokens, kept, strict=True))
    message = f"{before - after:,} of {before:,} targets are never learned (train.goldfish: {k})"
    message += f"; {emptied} records have no other and are not trained on." if emptied else "."
    return kept, [Notice(kind="goldfish", count=before - after, message=message)]
