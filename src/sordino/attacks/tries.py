"""Candidates as a trie of tokens, of which only what is looked at is made."""

from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

__all__ = ["Below", "Nodes", "Paths", "RowTrie", "Trie"]

Nodes = Int[np.ndarray, "nodes fields"]
Below = Int[np.ndarray, "children fields"]
Paths = Int[np.ndarray, "nodes depth"]


@runtime_checkable
class Trie(Protocol):
    """What the search for a rank asks: nodes are rows of numbers that only the trie understands.

    All nodes of a call stand at the depth of their `paths`, the tokens that lead to them.
    """

    @property
    def size(self) -> int:
        """How many candidates there are."""

    def root(self) -> Nodes:
        """The one node of the empty path."""

    def children(self, paths: Paths, nodes: Nodes) -> tuple[np.ndarray, np.ndarray, Below]:
        """(parent, token, node) of every child of the nodes."""

    def fan(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        """How many children each node has."""

    def ends(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        """How many candidates have exactly these paths as their tokens."""

    def counts(self, paths: Paths, nodes: Nodes) -> list[int]:
        """How many numbers `draw` knows at each node: at least the candidates that are there or below."""

    def draw(self, paths: Paths, nodes: Nodes, index: list[int]) -> list[list[int] | None]:
        """The tokens of candidate `index[i]` at `nodes[i]` or below; None where that number is none of its own.

        Over all numbers, every candidate at the node or below is met once.
        """


class RowTrie:
    """A trie of `rows` (candidates × tokens, sorted, distinct, −1 after the end); a node is a range of rows.

    `weights` (candidates) says how often each candidate counts; by default once.
    """

    def __init__(
        self, rows: Int[np.ndarray, "candidates tokens"], weights: Int[np.ndarray, " candidates"] | None = None
    ) -> None:
        self.rows, self.weights = rows, weights
        self._changed = np.zeros(len(rows), dtype=bool)
        self._changed[:1] = True
        self._first: list[np.ndarray] = []

    @property
    def size(self) -> int:
        """How many rows there are, by their weights."""
        return len(self.rows) if self.weights is None else int(self.weights.sum())

    def root(self) -> Nodes:
        """All rows."""
        return np.array([[0, len(self.rows)]], dtype=np.int64)

    def _starts(self, depth: int) -> np.ndarray:
        """The first row of every run that agrees up to and with the token at `depth`, and the number of rows."""
        while len(self._first) <= depth:
            column = self.rows[:, len(self._first)]
            self._changed[1:] |= column[1:] != column[:-1]
            self._first.append(np.append(np.flatnonzero(self._changed), len(self.rows)).astype(np.int32))
        return self._first[depth]

    def _ended(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        depth = paths.shape[1]
        if depth == self.rows.shape[1]:
            return np.ones(len(nodes), dtype=bool)
        # −1 sorts before every token, so a candidate that ends here is the first of its range.
        ended: np.ndarray = self.rows[nodes[:, 0], depth] < 0
        return ended

    def _runs(self, paths: Paths, nodes: Nodes) -> tuple[np.ndarray, np.ndarray]:
        """The first child of each node, as a place in `_starts`, and how many there are."""
        if paths.shape[1] == self.rows.shape[1]:
            return np.zeros(len(nodes), dtype=np.int64), np.zeros(len(nodes), dtype=np.int64)
        starts = self._starts(paths.shape[1])
        low = np.searchsorted(starts, nodes[:, 0] + self._ended(paths, nodes))
        return low, np.searchsorted(starts, nodes[:, 1]) - low

    def fan(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        """How many tokens follow in each range; a row that ends there has none."""
        return self._runs(paths, nodes)[1]

    def ends(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        """The weight of the row that ends at each node, or 0."""
        weights = 1 if self.weights is None else self.weights[nodes[:, 0]]
        return np.where(self._ended(paths, nodes), weights, 0)

    def children(self, paths: Paths, nodes: Nodes) -> tuple[np.ndarray, np.ndarray, Below]:
        """The ranges that agree in one more token."""
        starts = self._starts(paths.shape[1])
        low, counts = self._runs(paths, nodes)
        parent = np.repeat(np.arange(len(nodes)), counts)
        place = np.arange(len(parent)) + np.repeat(low - (np.cumsum(counts) - counts), counts)
        ranges = np.stack([starts[place], starts[place + 1]], axis=1).astype(np.int64)
        return parent, self.rows[starts[place], paths.shape[1]], ranges

    def counts(self, paths: Paths, nodes: Nodes) -> list[int]:
        """How many rows are in each range."""
        found: list[int] = (nodes[:, 1] - nodes[:, 0]).tolist()
        return found

    def draw(self, paths: Paths, nodes: Nodes, index: list[int]) -> list[list[int] | None]:
        """The rows by their place in the range."""
        rows = self.rows[nodes[:, 0] + np.array(index, dtype=np.int64)]
        return [row[row >= 0].tolist() for row in rows]
