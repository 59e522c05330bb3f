"""Merkle trees over sorted leaves: one digest of a set, with proofs of what is in it and of what is not.

Hashes are BLAKE2b-256 with a byte in front that tells leaves, inner nodes, roots and the empty tree apart (as RFC 9162
does), so that no inner node passes for a leaf. The shape is RFC 9162's: each level pairs its nodes from the left, and
an odd last one goes up as it is. The root binds the number of leaves, which fixes the shape: a proof fits one position
of one tree. Proofs of absence rest on the leaves being sorted, which whoever publishes the root answers for.
"""

import hashlib
import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from sordino.errors import DataError

__all__ = ["Absence", "Inclusion", "Neighbour", "Tree", "verify_absence", "verify_inclusion"]

_WIDTH = 32
_LEAF, _NODE, _ROOT, _EMPTY = b"\x00", b"\x01", b"\x02", b"\x03"
_HEX = re.compile(r"[0-9a-f]{64}")


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


def _hash(data: bytes) -> bytes:
    return hashlib.blake2b(data, digest_size=_WIDTH).digest()


def _raw(leaf: str | bytes) -> bytes | None:
    """The 32 bytes of a leaf, given so or as 64 lower-case hex digits; None where it is neither."""
    if isinstance(leaf, bytes):
        return leaf if len(leaf) == _WIDTH else None
    # fromhex alone takes capitals and blanks: two spellings of one proof.
    return bytes.fromhex(leaf) if _HEX.fullmatch(leaf) else None


def _checked(leaf: str | bytes) -> bytes:
    raw = _raw(leaf)
    if raw is None:
        message = f"A leaf of {len(leaf)} {'bytes' if isinstance(leaf, bytes) else 'characters'} is no digest."
        raise DataError(message, "Leaves are 32 bytes, or 64 lower-case hex digits.")
    return raw


def _root(size: int, top: bytes) -> str:
    return _hash(_ROOT + size.to_bytes(8, "big") + top).hex()


class Tree:
    """The tree over the distinct ones of `leaves` (32 bytes each, or 64 hex digits), sorted; `len` counts them.

    Building takes O(n log n) time and 96 bytes a leaf beside the leaves; a proof takes O(log n). Raises `DataError`
    for what is no leaf.
    """

    def __init__(self, leaves: Iterable[str | bytes]) -> None:
        self._leaves = sorted({_checked(leaf) for leaf in leaves})

    def __len__(self) -> int:
        """The number of distinct leaves."""
        return len(self._leaves)

    def __contains__(self, leaf: str | bytes) -> bool:
        """Whether `leaf` is one of them; raises `DataError` for what is no leaf."""
        raw = _checked(leaf)
        at = bisect_left(self._leaves, raw)
        return at < len(self._leaves) and self._leaves[at] == raw

    @cached_property
    def _levels(self) -> list[bytes]:
        """The hashes of each level one after another, leaves first."""
        levels = [b"".join([_hash(_LEAF + leaf) for leaf in self._leaves])]
        while len(levels[-1]) > _WIDTH:
            below, pair = levels[-1], 2 * _WIDTH
            paired = len(below) - len(below) % pair
            nodes = [_hash(_NODE + below[at : at + pair]) for at in range(0, paired, pair)]
            levels.append(b"".join(nodes) + below[paired:])
        return levels

    @cached_property
    def root(self) -> str:
        """BLAKE2b-256 of the number of leaves and the top node, in hex."""
        return _root(len(self), self._levels[-1] or _hash(_EMPTY))

    def _proof(self, index: int) -> Inclusion:
        path, at = [], index
        for level in self._levels[:-1]:
            start = (at ^ 1) * _WIDTH
            if start < len(level):
                path.append(level[start : start + _WIDTH].hex())
            at //= 2
        return Inclusion(index=index, size=len(self), path=tuple(path))

    def inclusion(self, leaf: str | bytes) -> Inclusion:
        """The proof that `leaf` is in the tree; raises `DataError` where it is not."""
        if leaf not in self:
            message = f"The leaf is not among the {len(self):,} of the tree: there is no proof that it is."
            raise DataError(message, "Ask for a proof of its absence.")
        return self._proof(bisect_left(self._leaves, _checked(leaf)))

    def absence(self, leaf: str | bytes) -> Absence:
        """The proof that `leaf` is not in the tree; raises `DataError` where it is."""
        if leaf in self:
            message = f"The leaf is one of the {len(self):,} of the tree: there is no proof that it is absent."
            raise DataError(message, "Ask for a proof of its inclusion.")
        at = bisect_left(self._leaves, _checked(leaf))
        return Absence(size=len(self), left=self._neighbour(at - 1), right=self._neighbour(at))

    def _neighbour(self, index: int) -> Neighbour | None:
        if not 0 <= index < len(self):
            return None
        return Neighbour(leaf=self._leaves[index].hex(), proof=self._proof(index))


def _climbed(raw: bytes, proof: Inclusion) -> bytes | None:
    """The top node that `proof` leads to; None where it has another number of siblings than its place in the tree."""
    node, at, last = _hash(_LEAF + raw), proof.index, proof.size - 1
    siblings = iter(proof.path)
    while last:
        if at ^ 1 <= last:
            sibling = _raw(next(siblings, ""))
            if sibling is None:
                return None
            node = _hash(_NODE + (sibling + node if at % 2 else node + sibling))
        at, last = at // 2, last // 2
    return node if next(siblings, None) is None else None


def verify_inclusion(root: str, leaf: str | bytes, proof: Inclusion) -> bool:
    """Whether `proof` shows that `leaf` is in the tree with `root`; False for whatever is malformed."""
    raw = _raw(leaf)
    if raw is None or not 0 <= proof.index < proof.size < 1 << 64:
        return False
    top = _climbed(raw, proof)
    return top is not None and _root(proof.size, top) == root


def verify_absence(root: str, leaf: str | bytes, proof: Absence) -> bool:
    """Whether `proof` shows that `leaf` is not in the tree with `root`; False for whatever is malformed."""
    raw = _raw(leaf)
    if raw is None:
        return False
    if proof.left is None and proof.right is None:
        return proof.size == 0 and _root(0, _hash(_EMPTY)) == root
    if not _encloses(raw, proof):
        return False
    sides = [side for side in (proof.left, proof.right) if side is not None]
    return all(side.proof.size == proof.size and verify_inclusion(root, side.leaf, side.proof) for side in sides)


def _encloses(raw: bytes, proof: Absence) -> bool:
    """Whether the neighbours lie next to each other, or at an end, with `raw` between them."""
    left, right = proof.left, proof.right
    before = _raw(left.leaf) if left else b""
    after = _raw(right.leaf) if right else b"\xff" * (_WIDTH + 1)
    if before is None or after is None or not before < raw < after:
        return False
    at = left.proof.index if left else -1
    return (right.proof.index if right else proof.size) == at + 1
