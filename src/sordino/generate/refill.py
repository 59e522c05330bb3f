"""Rows that take the next waiting request as soon as theirs is done."""

from collections import deque
from collections.abc import Callable, Iterator
from itertools import groupby
from typing import Any

import numpy as np
import torch

from sordino.generate.slots import Prefilled, Slots, last_only, prefill
from sordino.generate.writing import Writing

__all__ = ["Waiting", "write_refilling"]

# Tokens of prefixes that are read at once.
_AT_ONCE = {"cpu": 4096, "cuda": 32768, "mps": 16384}


class Waiting:
    """Requests in their order; their prefixes are read before their turn, many at once and each distinct one once.

    The first `shared` tokens of all prefixes, if any, are read once for all.
    """

    def __init__(self, module: Any, writing: Writing, rows: int, shared: int) -> None:
        self.module, self.writing, self.rows, self.shared = module, writing, rows, shared
        self.device = next(module.parameters()).device
        requests = writing.requests
        # The longest first: they need most room, and those that finish last leave few rows empty.
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].prefix) - requests[i].length)
        groups: dict[bytes, list[int]] = {}
        for i in order:
            groups.setdefault(requests[i].prefix.astype(np.int64).tobytes(), []).append(i)
        self.groups = deque(groups.values())
        self.ready: deque[tuple[int, Prefilled, int]] = deque()
        self.common: Any = None
        if shared:
            ids = torch.from_numpy(requests[0].prefix[:shared].astype(np.int64))[None].to(self.device)
            self.common = module(input_ids=ids, use_cache=True, **last_only(module)).past_key_values

    def __bool__(self) -> bool:
        """Whether a request is left."""
        return bool(self.ready or self.groups)

    def take(self, count: int) -> list[tuple[int, Prefilled, int]]:
        """Up to `count` requests: the number of each, and where among which prefilled ones its prefix is."""
        taken: list[tuple[int, Prefilled, int]] = []
        while len(taken) < count and self:
            if not self.ready:
                self._read_on()
            taken.append(self.ready.popleft())
        return taken

    def _read_on(self) -> None:
        groups = [self.groups.popleft() for _ in range(min(self.rows, len(self.groups)))]
        for batch in self._batches(groups):
            made = prefill(self.module, [self._prefix(group) for group in batch], self.common, self.shared)
            self.ready.extend((i, made, place) for place, group in enumerate(batch) for i in group)

    def _prefix(self, group: list[int]) -> np.ndarray:
        return self.writing.requests[group[0]].prefix

    def _batches(self, groups: list[list[int]]) -> Iterator[list[list[int]]]:
        """Prefixes of similar length together, padded to no more tokens than are read at once."""
        budget, batch = _AT_ONCE.get(self.device.type, 4096), list[list[int]]()
        for group in sorted(groups, key=lambda g: -len(self._prefix(g))):
            width = len(self._prefix(batch[0] if batch else group)) - self.shared
            if batch and width * (len(batch) + 1) > budget:
                yield batch
                batch = []
            batch.append(group)
        yield batch


def write_refilling(writing: Writing, waiting: Waiting, slots: Slots, tick: Callable[[int], None]) -> None:
    """Answer all that is `waiting` in the rows of `slots`."""
    numbers = np.zeros(len(slots.alive), dtype=np.int64)
    while True:
        free = np.flatnonzero(~slots.alive)
        if len(free) and waiting:
            _fill(writing, slots, free, numbers, waiting.take(len(free)))
        alive = np.flatnonzero(slots.alive)
        if not len(alive):
            return
        if 2 * len(alive) <= len(numbers):
            # Nobody waits: rows that are free are not to be read any more.
            slots.keep(alive)
            numbers, alive = numbers[alive], np.arange(len(alive))
        logits = slots.step()
        if len(alive) < len(numbers):
            logits = logits[torch.from_numpy(alive).to(logits.device)]
        tokens, done = writing.add(numbers[alive], logits)
        slots.follow(alive, tokens, done)
        if done.any():
            tick(int(done.sum()))


def _fill(
    writing: Writing, slots: Slots, free: np.ndarray, numbers: np.ndarray, taken: list[tuple[int, Prefilled, int]]
) -> None:
    """Put the requests `taken` into the first of the `free` rows, and write down who is where."""
    begun = 0
    for _, group in groupby(taken, key=lambda one: id(one[1])):
        some = list(group)
        rows = free[begun : begun + len(some)]
        numbers[rows] = [i for i, _, _ in some]
        last = np.array([writing.requests[i].prefix[-1] for i, _, _ in some], dtype=np.int64)
        slots.fill(rows, some[0][1], np.array([place for _, _, place in some]), last)
        begun += len(some)
