"""Proofs of what is in a set of which only a Merkle root is known, and of what is not; `evidence.merkle` makes them."""

from dataclasses import dataclass

__all__ = ["Absence", "Inclusion", "Neighbour"]


@dataclass(frozen=True, kw_only=True)
class Inclusion:
    """That a leaf is the one at `index` (from 0, in sorted order) of `size`: its siblings from below, in hex."""

    index: int
    size: int
    path: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Neighbour:
    """A leaf that is in the tree, in hex, and the proof of it."""

    leaf: str
    proof: Inclusion


@dataclass(frozen=True, kw_only=True)
class Absence:
    """That a leaf is not among `size`: the two next to each other between which it would lie.

    `left` is None before the first leaf, `right` after the last one, and both of an empty tree.
    """

    size: int
    left: Neighbour | None
    right: Neighbour | None
