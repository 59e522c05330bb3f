"""The slower way that needs nothing of a cache but that it goes on: batches without padding, from start to end.

Prefixes that share a batch are read as far as the shortest goes; of longer ones the rest is given token by token.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.generate.slots import last_only
from sordino.generate.writing import Writing
from sordino.model import unwrapped

__all__ = ["Reading", "write_aligned"]

# Prefixes that are decoded together differ by so many tokens at most, each of which is a step for all.
_REACH = 16


class Reading:
    """A batch of texts of one length, read on by a token each; with `kept` from the model's own cache."""

    def __init__(self, module: nn.Module, ids: Tensor, *, kept: bool) -> None:
        self.module, self.ids, self.kept = module, ids, kept
        self.last = self._whole()

    def _whole(self) -> Any:
        return self.module(input_ids=self.ids, use_cache=self.kept, **last_only(self.module))

    @property
    def logits(self) -> Tensor:
        """Logits (B, V) of the next token."""
        logits: Tensor = self.last.logits[:, -1]
        return logits

    def read(self, tokens: Tensor) -> None:
        """Go on with `tokens` (B, 1)."""
        if not self.kept:
            self.ids = torch.cat([self.ids, tokens], dim=1)
            self.last = self._whole()
            return
        past = self.last.past_key_values
        # Virtual tokens are in the cache; PEFT would put them there again.
        self.last = unwrapped(self.module)(input_ids=tokens, past_key_values=past, use_cache=True)


def write_aligned(
    module: nn.Module, writing: Writing, order: Sequence[int], rows: int, *, kept: bool, tick: Callable[[int], None]
) -> None:
    """Answer the requests `order`, sorted by the length of their prefixes, `rows` at a time."""
    begun, prefixes = 0, [r.prefix for r in writing.requests]
    while begun < len(order):
        width = len(prefixes[order[begun]])
        chosen = [i for i in order[begun : begun + rows] if len(prefixes[i]) <= width + _REACH]
        _write_batch(module, writing, np.array(chosen), width, kept=kept)
        begun += len(chosen)
        tick(len(chosen))


def _write_batch(module: nn.Module, writing: Writing, numbers: np.ndarray, width: int, *, kept: bool) -> None:
    prefixes = [writing.requests[i].prefix for i in numbers]
    late = np.array([len(p) - width for p in prefixes])
    forced = np.zeros((len(numbers), int(late.max())), dtype=np.int64)
    for row, prefix in enumerate(prefixes):
        forced[row, : late[row]] = prefix[width:]
    device = next(module.parameters()).device
    begin = np.stack([p[:width] for p in prefixes]).astype(np.int64)
    reading = Reading(module, torch.from_numpy(begin).to(device), kept=kept)
    alive, step = np.ones(len(numbers), dtype=bool), 0
    while True:
        tokens = forced[:, step].copy() if step < forced.shape[1] else np.zeros(len(numbers), dtype=np.int64)
        rows = np.flatnonzero(alive & (late <= step))
        if len(rows):
            on = torch.from_numpy(rows).to(device)
            tokens[rows], done = writing.add(numbers[rows], reading.logits[on])
            alive[rows[done]] = False
        if not alive.any():
            return
        reading.read(torch.from_numpy(tokens)[:, None].to(device))
        step += 1
