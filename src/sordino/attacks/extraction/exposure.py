"""Exposure: among all that a secret could have been, how far up does the model rank the true one?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from sordino.attacks.base import extraction
from sordino.attacks.best_first import Next, best_first, estimate
from sordino.attacks.tries import RowTrie, Trie
from sordino.errors import AuditError

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["Candidates", "Exposure", "Next", "exposure", "search"]


@runtime_checkable
class Candidates(Protocol):
    """What a secret could have been (`Space`, `FormatSpace`): a trie of candidates that follow one context."""

    @property
    def context(self) -> Int[np.ndarray, " P"]:
        """The tokens before all candidates."""

    @property
    def trie(self) -> Trie:
        """The candidates."""

    @property
    def path(self) -> Int[np.ndarray, " tokens"]:
        """The tokens of the true secret."""

    @property
    def searchable(self) -> bool:
        """Whether the trie has children, or is only to be drawn from."""


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


def search(
    rows: Int[np.ndarray, "candidates tokens"], target: int, following: Next, budget: int
) -> tuple[int | None, int]:
    """How many of `rows` (candidates × tokens, sorted, -1 after the end) are more likely than row `target`.

    Returns it, or None where it would have taken more than `budget` forwards, and the forwards made.
    """
    found = best_first(RowTrie(rows), rows[target][rows[target] >= 0], following, budget)
    return None if found.left else found.better, found.forwards


@extraction(paper="Carlini et al. 2019, arXiv:1802.08232", on="model")
def exposure(
    model: "Model", spaces: Sequence[Candidates], *, token_forwards: int = 150_000, sample: int = 1_000
) -> list[Exposure]:
    """Rank each secret among all it could have been, exactly where `token_forwards` suffice.

    Otherwise the candidates that a search within `token_forwards` has neither found more likely nor excluded
    are estimated from `sample` random draws, which cost forwards of their own, with a 95 % interval. A candidate
    exactly as likely as the secret does not push it down.
    """
    from sordino.continuation import Continuation  # here, so that listing attacks does not load torch

    if sample < 1 or token_forwards < 0:
        message = f"A sample of {sample} and a budget of {token_forwards} token-forwards cannot rank anything."
        raise AuditError(message, "Give a sample of at least 1 and a budget of at least 0.")
    found = []
    for number, space in enumerate(spaces):
        with model.active() as module:
            following = Continuation(module, space.context, model.device).logprob
            budget = token_forwards if space.searchable else 0
            found.append(_exposed(space, following, budget, sample, seed=number))
    return found


def _exposed(space: Candidates, following: Next, budget: int, sample: int, *, seed: int) -> Exposure:
    trie, size = space.trie, space.trie.size
    found = best_first(trie, space.path, following, budget)
    if not found.left:
        rank = 1.0 + found.better
        return Exposure(rank=rank, low=rank, high=rank, space=size, exact=True, forwards=found.forwards)
    ranks = estimate(trie, space.path, following, found, sample, seed)
    return Exposure(
        rank=ranks.rank, low=ranks.low, high=ranks.high, space=size, exact=False,
        forwards=found.forwards + ranks.forwards,
    )  # fmt: skip
