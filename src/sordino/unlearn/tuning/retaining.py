"""Records that stay, drawn for the steps of unlearning: each once before any comes again."""

from collections.abc import Iterator, Sequence
from functools import cached_property

from sordino.errors import UnlearningError
from sordino.records import Example
from sordino.serialize import Serializer, Tokens
from sordino.unlearn.tuning.opening import Streams, seeded

__all__ = ["Retained"]


class Retained:
    """What the generator of `seed` draws from `examples`, without replacement until all were drawn.

    Places in `held` are left out, and canaries, which are of no use to anybody. Of a record that is trained in pieces,
    one is drawn. All follows from the arguments, so that an interrupted run draws the same.
    """

    def __init__(
        self, examples: Sequence[Example], serializer: Serializer, seed: int, *, held: frozenset[int] = frozenset()
    ) -> None:
        self.examples, self.serializer, self.seed, self.held = examples, serializer, seed, held
        self.taken: list[tuple[int, Tokens]] = []

    def ready(self, count: int) -> None:
        """Draw the first `count`; raises `UnlearningError` where there is nothing to draw from."""
        stream = self._stream
        while len(self.taken) < count:
            self.taken.append(next(stream))

    def take(self, start: int, count: int) -> list[Tokens]:
        """The `count` sequences from the `start`-th draw on."""
        self.ready(start + count)
        return [tokens for _, tokens in self.taken[start : start + count]]

    def owners(self, start: int, count: int) -> list[int]:
        """The places in `examples` of the same draws."""
        self.ready(start + count)
        return [owner for owner, _ in self.taken[start : start + count]]

    @cached_property
    def _stream(self) -> Iterator[tuple[int, Tokens]]:
        return self._drawn()

    def _drawn(self) -> Iterator[tuple[int, Tokens]]:
        rng = seeded(self.seed, Streams.RETAIN)
        while True:
            found = 0
            for place in rng.permutation(len(self.examples)).tolist():
                if place in self.held or self.examples[place].role == "canary":
                    continue
                tokens = self.serializer.encode(self.examples[place].record)
                usable = [p for p in tokens.pieces(self.serializer.max_length) if p.target[1:].any()]
                if usable:
                    found += 1
                    yield place, usable[int(rng.integers(len(usable)))]
            if not found:
                message = "No record stays that a model could be kept useful on."
                raise UnlearningError(message, "Set alpha to 0 to go without, or train anew.")
