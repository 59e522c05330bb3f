"""Canary exposure: among all secrets a canary could have held, how far up does the model rank the true one?"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from sordino.attacks.base import extraction
from sordino.attacks.spaces import Space
from sordino.stats import clopper_pearson

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["Exposure", "Next", "exposure", "search"]

Next = Callable[
    [Int[np.ndarray, "nodes depth"], Int[np.ndarray, " children"], Int[np.ndarray, " children"]],
    Float[np.ndarray, " children"],
]
"""`(paths, parent, token)` -> ln p of each child `token` after the path `paths[parent]`."""

_SLACK = 1e-5


@dataclass(frozen=True, kw_only=True)
class Exposure:
    """`rank` of the true secret among `space` candidates (1 = most likely), between `low` and `high`.

    `exact` says whether the rank was found by search or estimated from a sample of candidates;
    `forwards` counts the prefixes whose next token the model was asked for. `bits` is log2 space − log2 rank.
    """

    rank: float
    low: float
    high: float
    space: int
    exact: bool
    forwards: int

    @property
    def bits(self) -> float:
        """The exposure in bits (Carlini et al. 2019, definition 4)."""
        return math.log2(self.space) - math.log2(self.rank)


def _levels(rows: np.ndarray) -> list[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The trie of sorted `rows`: at each depth the first row, parent and token of every node."""
    levels, parents = [], np.zeros(1, dtype=np.int64)
    changed = np.zeros(len(rows), dtype=bool)
    changed[0] = True
    for depth in range(rows.shape[1]):
        changed[1:] |= rows[1:, depth] != rows[:-1, depth]
        first = np.flatnonzero(changed)
        parent = np.searchsorted(parents, first, side="right") - 1
        levels.append((first, parent, rows[first, depth]))
        parents = first
    return levels


def search(rows: np.ndarray, target: int, following: Next, budget: int) -> tuple[int | None, int]:
    """How many of `rows` (candidates × tokens, sorted, -1 after the end) are more likely than row `target`.

    The log-probability of a prefix only falls as it grows, so only prefixes at least as likely as
    the whole target are expanded: the count is exact. Returns it, or None where it would have taken
    more than `budget` forwards, and the forwards made: prefixes whose next token was asked for.
    """
    own, spent = _path(rows[target], following)
    levels = _levels(rows)
    alive, logp, better = np.zeros(1, dtype=np.int64), np.zeros(1), 0
    for depth, (first, parent, token) in enumerate(levels):
        paths = rows[levels[depth - 1][0][alive], :depth] if depth else np.empty((1, 0), dtype=rows.dtype)
        # Finished candidates (-1) need no model; they carry their value down.
        unfinished = paths[:, -1] >= 0 if depth else np.ones(1, dtype=bool)
        cost = int(unfinished.sum())
        if spent + cost > budget:
            return None, spent
        spent += cost
        children = np.flatnonzero(np.isin(parent, alive))
        row = np.searchsorted(alive, parent[children])
        step = np.zeros(len(children))
        real = token[children] >= 0
        if real.any():
            place = np.cumsum(unfinished) - 1
            step[real] = following(paths[unfinished], place[row[real]], token[children][real])
        value = logp[row] + step
        keep = value >= own - _SLACK
        alive, logp = children[keep], value[keep]
        if depth == rows.shape[1] - 1:
            better = int(((logp > own) & (first[alive] != target)).sum())
    return better, spent


def _path(row: np.ndarray, following: Next) -> tuple[float, int]:
    total, tokens = 0.0, row[row >= 0]
    for depth, token in enumerate(tokens):
        total += float(following(tokens[None, :depth], np.zeros(1, dtype=np.int64), np.array([token]))[0])
    return total, len(tokens)


def _sampled(rows: np.ndarray, target: int, following: Next, size: int, seed: int) -> Exposure:
    rng = np.random.default_rng(seed)
    others = np.delete(np.arange(len(rows)), target)
    chosen = np.sort(rng.choice(others, size=min(size, len(others)), replace=False))
    sample = np.unique(np.append(chosen, target))
    count, spent = search(rows[sample], int(np.searchsorted(sample, target)), following, 2**62)
    assert count is not None  # the budget is out of reach
    share = clopper_pearson(count, len(chosen), 0.95)
    low, high = (1 + (len(rows) - 1) * bound for bound in (share.low, share.high))
    rank = 1 + (len(rows) - 1) * count / len(chosen)
    return Exposure(rank=rank, low=low, high=high, space=len(rows), exact=False, forwards=spent)


@extraction(paper="Carlini et al. 2019, arXiv:1802.08232", on="model")
def exposure(
    model: "Model", spaces: Sequence[Space], *, token_forwards: int = 150_000, sample: int = 1_000
) -> list[Exposure]:
    """Rank each canary's secret among all it could have been, exactly where `token_forwards` suffice.

    Otherwise the rank is estimated from `sample` random candidates, with a 95 % interval.
    """
    from sordino.continuation import Continuation  # here, so that listing attacks does not load torch

    found = []
    for number, space in enumerate(spaces):
        with model.active() as module:
            following = Continuation(module, space.context, model.device).logprob
            better, spent = search(space.rows, space.target, following, token_forwards)
            if better is None:
                found.append(_sampled(space.rows, space.target, following, sample, seed=number))
            else:
                rank = 1.0 + better
                found.append(
                    Exposure(rank=rank, low=rank, high=rank, space=len(space.rows), exact=True, forwards=spent)
                )
    return found
