"""The trie of a format's strings as tokens, made by walking the vocabulary through the format's automaton.

Every way to spell a string in tokens is a path; the one that the tokenizer itself takes is the candidate, the
others count for nothing. So no candidate is missed and none counted twice, however tokens merge.
"""

import numpy as np

from sordino.attacks.places import Place
from sordino.attacks.tries import Below, Nodes, Paths
from sordino.attacks.vocabulary import Walk
from sordino.errors import AuditError

__all__ = ["WalkTrie"]

_END = -1


class WalkTrie:
    """The strings of a `walk` in their `place`; with `end`, that token closes each of them.

    A node is a state of the walk, or −1 after the end. Made at the places where the search is, it is never whole.
    """

    def __init__(self, walk: Walk, place: Place, end: int | None) -> None:
        self.walk, self.place, self.end = walk, place, end

    @property
    def size(self) -> int:
        """How many strings there are."""
        return self.walk.form.size

    def root(self) -> Nodes:
        """Before the first token."""
        return np.zeros((1, 1), dtype=np.int64)

    def _moves(self, state: int) -> tuple[np.ndarray, np.ndarray]:
        tokens, after = self.walk.moves(state)
        if self.end is None or not self.walk.ends(state):
            return tokens, after
        return np.append(tokens, np.int32(self.end)), np.append(after, _END)

    def spells(self, tokens: list[int], text: str) -> bool:
        """Whether these tokens, without the end, are a path to the end of just this string."""
        state = 0
        for token in tokens:
            known, after = self.walk.moves(state)
            # A token has one text, and a text leads to one state.
            place = np.flatnonzero(known == token)
            if not len(place):
                return False
            state = int(after[place[0]])
        return self.walk.ends(state) and self.walk.text(tokens) == text

    def fan(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        """How many tokens may follow each node."""
        states, back = np.unique(nodes[:, 0], return_inverse=True)
        found = [0 if state == _END else len(self._moves(state)[0]) for state in states.tolist()]
        return np.array(found, dtype=np.int64)[back]

    def children(self, paths: Paths, nodes: Nodes) -> tuple[np.ndarray, np.ndarray, Below]:
        """All tokens that may follow, one after the other for each node."""
        moves = [self._moves(state) for state in nodes[:, 0].tolist()]
        parent = np.repeat(np.arange(len(nodes)), [len(tokens) for tokens, _ in moves])
        token = np.concatenate([tokens for tokens, _ in moves])
        return parent, token, np.concatenate([after for _, after in moves])[:, None]

    def ends(self, paths: Paths, nodes: Nodes) -> np.ndarray:
        """1 where a path is a whole string in the tokenizer's own tokens, else 0."""
        states = nodes[:, 0].tolist()
        done = [s == _END if self.end is not None else self.walk.ends(s) for s in states]
        found = np.zeros(len(nodes), dtype=np.int64)
        rows = np.flatnonzero(done)
        if len(rows):
            own = [self._spelled(path) for path in paths[rows].tolist()]
            texts = [self.walk.text(path) for path in own]
            found[rows] = [ids == path for ids, path in zip(self.place.rows(texts), own, strict=True)]
        return found

    def _spelled(self, path: list[int]) -> list[int]:
        return path if self.end is None else path[:-1]

    def counts(self, paths: Paths, nodes: Nodes) -> list[int]:
        """How many strings go on from each node, in whatever tokens."""
        return [self.walk.count(state) for state in nodes[:, 0].tolist()]

    def draw(self, paths: Paths, nodes: Nodes, index: list[int]) -> list[list[int] | None]:
        """The strings of these numbers; None where the tokenizer's own tokens do not begin with the path."""
        begun = paths.tolist()
        rests = [self.walk.nth(i, state) for i, state in zip(index, nodes[:, 0].tolist(), strict=True)]
        made = self.place.rows([self.walk.text(path) + rest for path, rest in zip(begun, rests, strict=True)])
        if None in made:
            message = f"Some strings of the format {self.walk.form.pattern!r} change how the text before them is split."
            raise AuditError(message, "Widen the span and the format to begin after a space.")
        last = [] if self.end is None else [self.end]
        return [
            [*ids, *last] if ids is not None and ids[: len(path)] == path else None
            for ids, path in zip(made, begun, strict=True)
        ]
