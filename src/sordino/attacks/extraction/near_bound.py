"""How likely is a sampler to write a passage nearly? A lower bound, by a beam search that stays near the passage."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int

from sordino.attacks.base import extraction
from sordino.errors import AuditError

if TYPE_CHECKING:
    from sordino.decoding import Decoding
    from sordino.model import Model

__all__ = ["Following", "NearBound", "beam_search", "near_bound"]

Following = Callable[[Int[np.ndarray, "paths depth"]], Float[np.ndarray, "paths V"]]
"""`(paths)` of one depth -> ln of the probability with which the sampler draws each next token."""


@dataclass(frozen=True, kw_only=True)
class NearBound:
    """Lower bounds on the probability of texts within each edit distance, in tokens, of a passage.

    `within` (distance + 1): within 0, 1, … tokens; `within[0]` is exactly the probability of the passage itself.
    `sequences` are the distinct texts summed up and `forwards` the paths read. Where the search was `complete`,
    the bounds are the probabilities themselves.
    """

    within: Float[np.ndarray, " distances"]
    sequences: int
    forwards: int
    complete: bool

    @property
    def verbatim(self) -> float:
        """The probability of the passage itself."""
        return float(self.within[0])

    @property
    def lower(self) -> float:
        """The bound for the distance asked for."""
        return float(self.within[-1])


@dataclass
class _Level:
    """Paths of one depth not read yet: tokens, ln p, and edit distances to each beginning of the passage (T + 1)."""

    paths: np.ndarray
    logp: np.ndarray
    rows: np.ndarray
    dropped: bool = field(default=False)

    def push(self, paths: np.ndarray, logp: np.ndarray, rows: np.ndarray, most: int) -> None:
        """Add paths; all but the `most` likeliest are dropped."""
        self.logp = np.concatenate([self.logp, logp])
        keep = np.argsort(-self.logp, kind="stable")[:most]
        self.dropped |= len(keep) < len(self.logp)
        self.paths = np.concatenate([self.paths, paths])[keep]
        self.rows, self.logp = np.concatenate([self.rows, rows])[keep], self.logp[keep]

    def pop(self, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Take the `count` likeliest paths."""
        taken = self.paths[:count], self.logp[:count], self.rows[:count]
        self.paths, self.logp, self.rows = self.paths[count:], self.logp[count:], self.rows[count:]
        return taken


class _Search:
    """The state of one search: levels of paths to be read, and what was found."""

    def __init__(self, suffix: np.ndarray, distance: int, beam: int) -> None:
        self.suffix, self.distance, self.beam = suffix, distance, beam
        self.length = len(suffix)
        self.tokens = np.unique(suffix)
        self.levels = [
            _Level(np.empty((0, d), np.int64), np.empty(0), np.empty((0, self.length + 1), np.int64))
            for d in range(self.length)
        ]
        self.mass, self.sequences, self.forwards = np.zeros(distance + 1), 0, 0

    def distances(self, rows: np.ndarray) -> np.ndarray:
        """Rows of the Levenshtein table (n, classes, T + 1) one token on: each token of the passage, then any other."""
        same = np.concatenate([self.tokens[:, None] == self.suffix, np.zeros((1, self.length), dtype=bool)])
        step = np.minimum(rows[:, None, 1:] + 1, rows[:, None, :-1] + ~same)
        first = np.broadcast_to(rows[:, None, :1] + 1, (len(rows), len(same), 1))
        places = np.arange(self.length + 1)
        # A token of the passage left out costs one more than the entry before.
        made: np.ndarray = np.minimum.accumulate(np.concatenate([first, step], axis=2) - places, axis=2) + places
        return made

    def read(
        self, taken: tuple[np.ndarray, np.ndarray, np.ndarray], following: Following, skip: int = -1
    ) -> np.ndarray:
        """Go one token on from paths of one depth; the child `skip` is not put among those to be read. Returns ln p."""
        paths, before, rows = taken
        depth = paths.shape[1]
        self.forwards += len(paths)
        logp = before[:, None] + following(paths)
        kind = np.full(logp.shape[1], len(self.tokens))
        kind[self.tokens] = np.arange(len(self.tokens))
        made = self.distances(rows)
        # What is still to come can equal the rest of the passage, but for what it is longer or shorter by.
        least = (made + abs(np.arange(self.length + 1) - depth - 1)).min(axis=2)
        good = (least[:, kind] <= self.distance) & (logp > -np.inf)
        if depth + 1 == self.length:
            found = np.broadcast_to(made[:, :, -1][:, kind], logp.shape)[good]
            self.mass += np.bincount(found, weights=np.exp(logp[good]), minlength=self.distance + 1)
            self.sequences += int(good.sum())
            return logp
        if skip >= 0:
            good[:, skip] = False
        parent, token = np.nonzero(good)
        best = np.argsort(-logp[parent, token], kind="stable")[: self.beam + 1]  # one more: to know that some were left
        parent, token = parent[best], token[best]
        grown = np.concatenate([paths[parent], token[:, None]], axis=1)
        self.levels[depth + 1].push(grown, logp[parent, token], made[parent, kind[token]], self.beam)
        return logp

    def own_path(self, following: Following) -> None:
        """Read along the passage itself, so that it is always among what is found."""
        paths, logp, rows = np.empty((1, 0), np.int64), np.zeros(1), np.arange(self.length + 1)[None]
        for token in self.suffix:
            if logp[0] == -np.inf:
                return
            children = self.read((paths, logp, rows), following, skip=int(token))
            rows = self.distances(rows)[:, np.searchsorted(self.tokens, token)]
            paths, logp = np.append(paths, [[token]], axis=1), children[:, token]


def beam_search(
    following: Following, suffix: Int[np.ndarray, " T"], *, distance: int, beam: int
) -> NearBound:  # fmt: skip
    """Add up the probabilities of texts of T tokens within `distance` of `suffix` that a beam search finds.

    At each depth the passage's own path is read, and the likeliest of those that can still end within the distance,
    in rounds of 1, 2, 4, … until `beam` (rounded up to a power of 2) are read. A narrower beam reads a part of what a
    wider one does, so the bound only grows with it. Texts of T tokens exclude each other: their sum is a lower bound.
    """
    width = 1 << (beam - 1).bit_length()
    search = _Search(np.asarray(suffix, dtype=np.int64), distance, width)
    search.own_path(following)
    spent, size = 1, 1
    while spent < width:
        for level in search.levels:
            if len(level.logp):
                search.read(level.pop(size), following)
        spent, size = spent + size, 2 * size
    left = any(len(level.logp) or level.dropped for level in search.levels)
    return NearBound(
        within=np.cumsum(search.mass), sequences=search.sequences, forwards=search.forwards, complete=not left
    )


@extraction(
    paper="Cooper et al. 2026, arXiv:2603.24917; Hayes et al. 2025, arXiv:2410.19482",
    access="log-probabilities",
    cost="up to 2 · beam · suffix_tokens paths a record asked about (audit.near_bound)",
    suite="all",
    on="model",
)
def near_bound(
    model: "Model",
    prefix: Int[np.ndarray, " P"],
    suffix: Int[np.ndarray, " T"],
    decoding: "Decoding",
    *,
    distance: int = 5,
    beam: int = 16,
) -> NearBound:
    """Bound from below how likely a sampler is to write, after a prefix, what is nearly the true suffix.

    Nearly is within `distance` tokens to insert, delete or replace; as many tokens as the suffix has are drawn by
    `decoding`. What differs from the published search (the beam is held open in rounds, every text found is counted)
    makes the bound grow with `beam`. Raises `AuditError` for an empty prefix or suffix, or a beam or distance that
    cannot be meant.
    """
    from sordino.continuation import Continuation
    from sordino.decoding import every_logprob

    if not len(prefix) or not len(suffix) or distance < 0 or beam < 1:
        message = f"No bound can be had of {len(suffix)} tokens after {len(prefix)}, distance {distance}, beam {beam}."
        raise AuditError(message, "Give a prefix and a suffix, a distance of 0 or more, and a beam of 1 or more.")
    with model.active() as module:
        after = Continuation(module, np.asarray(prefix), model.device)

        def following(paths: np.ndarray) -> np.ndarray:
            found: np.ndarray = every_logprob(after.every(paths), decoding).cpu().numpy()
            return found

        return beam_search(following, suffix, distance=distance, beam=beam)
