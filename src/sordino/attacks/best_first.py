"""How many candidates are more likely than the secret: best-first search of a trie, and an estimate of what it left.

The log-probability of a prefix only falls as it grows. A prefix that is less likely than the whole secret
can therefore begin no candidate that is more likely, and is never expanded; when no other is left, the count is
exact, in whatever order they came. The likeliest come first, so that a search which must stop early has cut off
most of the space: what it has found is proven, and a sample of the rest estimates the rest.
"""

import random
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import accumulate, pairwise

import numpy as np
from jaxtyping import Float, Int

from sordino.attacks.tries import RowTrie, Trie
from sordino.errors import AuditError
from sordino.stats import clopper_pearson

__all__ = ["Block", "Found", "Next", "Ranks", "best_first", "estimate"]

Next = Callable[
    [Int[np.ndarray, "nodes depth"], Int[np.ndarray, " children"], Int[np.ndarray, " children"]],
    Float[np.ndarray, " children"],
]
"""`(paths, parent, token)` -> ln p of each child `token` after the path `paths[parent]`; `paths` are sorted."""

# What rounding may do to the sum along a path, so that nothing that could be more likely is cut off.
_SLACK = 1e-5
# Prefixes taken at once: many, as those that begin alike are read together. Their children: as memory allows.
_TAKEN, _CHILDREN = 1 << 17, 1 << 20


@dataclass(frozen=True, kw_only=True)
class Block:
    """Prefixes of one length: `paths` (nodes, depth), `logp` (nodes) and the trie's `nodes` (nodes, fields)."""

    paths: np.ndarray
    logp: np.ndarray
    nodes: np.ndarray

    def __getitem__(self, rows: np.ndarray) -> "Block":
        """Some of them."""
        return Block(paths=self.paths[rows], logp=self.logp[rows], nodes=self.nodes[rows])


@dataclass(frozen=True, kw_only=True)
class Found:
    """`better` candidates are proven to be more likely; others can only be below the prefixes in `left`.

    `forwards` counts the prefixes whose next token was asked for. The count is exact where nothing is left.
    """

    better: int
    forwards: int
    left: tuple[Block, ...]


@dataclass(frozen=True, kw_only=True)
class Ranks:
    """A rank (1 = most likely) between `low` and `high`, and the forwards that it took to estimate it."""

    rank: float
    low: float
    high: float
    forwards: int


@dataclass
class _Frontier:
    """The prefixes still to be expanded, by their length."""

    blocks: dict[int, list[Block]] = field(default_factory=dict)

    def push(self, block: Block) -> None:
        if len(block.logp):
            self.blocks.setdefault(block.paths.shape[1], []).append(block)

    def pop(self, count: int) -> Block:
        """At most `count` prefixes of the length of the likeliest one, the likeliest of them, sorted."""
        depth = max(self.blocks, key=lambda d: max(float(block.logp.max()) for block in self.blocks[d]))
        blocks = self.blocks.pop(depth)
        joined = Block(
            paths=np.concatenate([b.paths for b in blocks]),
            logp=np.concatenate([b.logp for b in blocks]),
            nodes=np.concatenate([b.nodes for b in blocks]),
        )
        order = np.argsort(-joined.logp, kind="stable")
        self.push(joined[order[count:]])
        taken = joined[order[:count]]
        return taken[np.lexsort(taken.paths.T[::-1])] if depth else taken


def best_first(trie: Trie, target: Int[np.ndarray, " tokens"], following: Next, budget: int) -> Found:
    """Count the candidates of `trie` that are more likely than the one whose tokens are `target`.

    At most `budget` forwards are made, those along the target itself aside. A candidate exactly as likely as the
    target is not counted: the rank is that of the first of its equals. Raises `AuditError` where the model
    gives NaN.
    """
    own, spent = _path(target, following)
    frontier = _Frontier()
    start = Block(paths=np.empty((1, 0), dtype=np.int32), logp=np.zeros(1), nodes=trie.root())
    better = _keep(trie, start, target, own, frontier)
    while frontier.blocks and spent < budget:
        block = frontier.pop(min(_TAKEN, budget - spent))
        spent += len(block.logp)
        for piece in _pieces(trie, block):
            better += _keep(trie, _expand(trie, piece, following, own), target, own, frontier)
    left = tuple(block for blocks in frontier.blocks.values() for block in blocks)
    return Found(better=better, forwards=spent, left=left)


def _pieces(trie: Trie, block: Block) -> Iterator[Block]:
    """The prefixes, so many at a time that their children are a million or so."""
    number = np.cumsum(trie.fan(block.paths, block.nodes)) // _CHILDREN
    edges = np.flatnonzero(np.diff(number, prepend=-1, append=number[-1] + 1))
    for start, stop in pairwise(edges):
        yield block[np.arange(start, stop)]


def _expand(trie: Trie, block: Block, following: Next, own: float) -> Block:
    """The children that are likely enough to begin, or be, a candidate at least as likely as the target."""
    parent, token, nodes = trie.children(block.paths, block.nodes)
    logp = block.logp[parent] + _checked(following(block.paths, parent, token))
    likely = np.flatnonzero(logp >= own - _SLACK)
    paths = np.concatenate([block.paths[parent[likely]], token[likely, None]], axis=1)
    return Block(paths=paths, logp=logp[likely], nodes=nodes[likely])


def _keep(trie: Trie, block: Block, target: np.ndarray, own: float, frontier: _Frontier) -> int:
    """Put those that go on into the frontier; how many of them are, as they stand, more likely candidates."""
    frontier.push(block[trie.fan(block.paths, block.nodes) > 0])
    above = block.logp > own
    if block.paths.shape[1] == len(target):
        # Read in another batch, the target itself may come out a rounding error higher.
        above &= (block.paths != target).any(axis=1)
    return int(trie.ends(block.paths[above], block.nodes[above]).sum())


def _path(target: np.ndarray, following: Next) -> tuple[float, int]:
    total, parent = 0.0, np.zeros(1, dtype=np.int64)
    for depth in range(len(target)):
        total += float(_checked(following(target[None, :depth], parent, target[depth : depth + 1]))[0])
    return total, len(target)


def _checked(logp: np.ndarray) -> np.ndarray:
    if np.isnan(logp).any():
        message = "The model's log-probabilities are not numbers (NaN), so nothing can be ranked by them."
        raise AuditError(message, "Check the weights, or use float32.")
    return logp


def estimate(
    trie: Trie, target: Int[np.ndarray, " tokens"], following: Next, found: Found, sample: int, seed: int
) -> Ranks:
    """Estimate the rank from what a search has `found` and `sample` draws from the prefixes it has left.

    The draws are uniform and independent, so how many of them are more likely is binomial, and a 95 %
    Clopper–Pearson interval of that share, times what was drawn from, is one of how many there are. Both limits
    are held within what the search has proven.
    """
    counts = [trie.counts(block.paths, block.nodes) for block in found.left]
    total, known, blocks = sum(map(sum, counts)), found.better, found.left
    low, high = 1 + known, min(trie.size, 1 + known + total)
    if total >= trie.size:
        # Where tokens merge, strings are counted below several prefixes: the whole is the smaller urn.
        root = Block(paths=np.empty((1, 0), dtype=np.int32), logp=np.zeros(1), nodes=trie.root())
        counts, total, known, blocks = [trie.counts(root.paths, root.nodes)], trie.size, 0, (root,)
    drawn = _draw(trie, blocks, counts, sample, seed)
    hits, spent = _hits(drawn, target, following)
    share = clopper_pearson(hits, sample, 0.95)
    rank, least, most = (1.0 + known + total * bound for bound in (hits / sample, share.low, share.high))
    return Ranks(
        rank=min(max(rank, float(low)), float(high)), low=min(max(least, float(low)), float(high)),
        high=min(max(most, float(low)), float(high)), forwards=spent,
    )  # fmt: skip


def _draw(
    trie: Trie, blocks: tuple[Block, ...], counts: list[list[int]], sample: int, seed: int
) -> Counter[tuple[int, ...]]:
    """How often each candidate was drawn, by its tokens, out of all numbers below the nodes of `blocks`."""
    rng = random.Random(seed)  # integers of any size
    edges = list(accumulate(sum(each) for each in counts))
    chosen: dict[int, list[tuple[int, int]]] = {}
    within = [list(accumulate(each)) for each in counts]
    for _ in range(sample):
        at = rng.randrange(edges[-1])
        block = bisect_right(edges, at)
        at -= edges[block - 1] if block else 0
        node = bisect_right(within[block], at)
        chosen.setdefault(block, []).append((node, at - (within[block][node - 1] if node else 0)))
    drawn: Counter[tuple[int, ...]] = Counter()
    for block, picks in chosen.items():
        nodes = np.array([node for node, _ in picks])
        made = trie.draw(blocks[block].paths[nodes], blocks[block].nodes[nodes], [index for _, index in picks])
        drawn.update(tuple(tokens) for tokens in made if tokens is not None)
    return drawn


def _hits(drawn: Counter[tuple[int, ...]], target: np.ndarray, following: Next) -> tuple[int, int]:
    """How many draws are more likely than the target, and the forwards it took."""
    if not drawn:
        return 0, 0
    rows = np.full((len(drawn), max(map(len, drawn))), -1, dtype=np.int32)
    ordered = sorted(drawn)
    for row, tokens in enumerate(ordered):
        rows[row, : len(tokens)] = tokens
    weights = np.array([drawn[tokens] for tokens in ordered], dtype=np.int64)
    found = best_first(RowTrie(rows, weights), target, following, 1 << 62)
    return found.better, found.forwards
