"""The batches of many adapters as few passes: which rows go together, and how they become one tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sordino.serialize import Tokens
from sordino.train.collate import Batch

__all__ = ["Corpus", "Pass", "passes", "worth"]

# A token has this many products a weight and about so many come out of a core in a second; a block's calls cost
# so much even for a single token. How much padding is taken along to save a pass follows; results do not depend on it.
_PRODUCTS, _RATE, _CALLS = 6, 4e10, 1.5e-3


@dataclass(frozen=True)
class Pass:
    """A forward and backward pass: group g is of adapter `chosen[g]`, and has rows `rows[g]` (units, rows a unit).

    Rows are places in the corpus, -1 for an empty one. `width` is in tokens.
    """

    chosen: tuple[int, ...]
    rows: np.ndarray
    width: int


@dataclass(frozen=True)
class _Slot:
    """What cannot be divided: some units of one adapter, each the places of its records."""

    adapter: int
    units: Sequence[Sequence[int]]
    width: int
    deep: int


def worth(parameters: int, blocks: int) -> int:
    """How many tokens of padding cost as much as one pass more."""
    return int(blocks * _CALLS * _RATE / (_PRODUCTS * parameters))


def passes(
    batches: Mapping[int, Sequence[Sequence[int]]], lengths: np.ndarray, *, limit: int, spare: int, most: int = 1 << 30
) -> list[Pass]:
    """The `batches` of a step (adapter: units: places) in passes of at most `limit` padded tokens and `most` units.

    Adapters whose records have similar lengths go together: a pass more is made where that saves `spare` tokens of
    padding. A unit longer than the limit has a pass of its own.
    """
    slots = [slot for adapter, units in batches.items() for slot in _slots(adapter, units, lengths, limit, most)]
    slots.sort(key=lambda slot: (-slot.width, slot.adapter))
    found: list[Pass] = []
    group: list[_Slot] = []
    for slot in slots:
        if group:
            now, then = _padded(group), _padded([*group, slot])
            alone = _padded([slot])
            units = max(len(s.units) for s in [*group, slot]) * (len(group) + 1)
            if then > limit or then - now - alone > spare or units > most:
                found.append(_pass(group))
                group = []
        group.append(slot)
    return [*found, _pass(group)] if group else found


def _slots(
    adapter: int, units: Sequence[Sequence[int]], lengths: np.ndarray, limit: int, most: int
) -> list[_Slot]:  # fmt: skip
    if not units:
        return []
    width = max(int(lengths[place]) for unit in units for place in unit)
    deep = max(map(len, units))
    size = max(1, min(most, limit // (width * deep)))
    if size >= len(units):
        return [_Slot(adapter, units, width, deep)]
    # Similar ones together, so that each piece is only as wide as its own.
    order = sorted(units, key=lambda unit: (max(int(lengths[place]) for place in unit), len(unit)))
    return [s for i in range(0, len(order), size) for s in _slots(adapter, order[i : i + size], lengths, limit, most)]


def _padded(group: Sequence[_Slot]) -> int:
    return len(group) * max(len(s.units) for s in group) * max(s.deep for s in group) * max(s.width for s in group)


def _pass(group: Sequence[_Slot]) -> Pass:
    rows = np.full((len(group), max(len(s.units) for s in group), max(s.deep for s in group)), -1, dtype=np.int64)
    for g, slot in enumerate(group):
        for u, unit in enumerate(slot.units):
            rows[g, u, : len(unit)] = unit
    return Pass(tuple(s.adapter for s in group), rows, max(s.width for s in group))


class Corpus:
    """The tokens of all records in flat arrays, from which any rows are a batch without a loop over them."""

    def __init__(self, tokens: Sequence[Tokens], pad: int, device: torch.device) -> None:
        self.pad, self.device = pad, device
        self.lengths = np.array([len(t) for t in tokens], dtype=np.int64)
        self.targets = np.array([int(t.target[1:].sum()) for t in tokens], dtype=np.int64)
        self._offsets = np.concatenate([[0], np.cumsum(self.lengths)[:-1]])
        self._ids = np.concatenate([t.ids for t in tokens]).astype(np.int64)
        self._target = np.concatenate([t.target for t in tokens])
        self._target[self._offsets] = False  # the first token is context only

    def batch(self, rows: np.ndarray, width: int) -> tuple[Batch, np.ndarray]:
        """A batch of records `rows` (R), -1 for an empty row, and the row of each scored position (N).

        An empty row is one token of padding that is not masked: attention over nothing is no number.
        """
        at, empty = np.arange(width)[None], rows < 0
        lengths = np.where(empty, 0, self.lengths[rows])[:, None]
        inside = at < lengths
        places = np.where(inside, self._offsets[rows][:, None] + at, 0)
        ids = np.where(inside, self._ids[places], self.pad)
        scored = np.flatnonzero(inside & self._target[places])
        inside[:, 0] = True
        batch = Batch(
            input_ids=torch.from_numpy(ids).to(self.device),
            attention_mask=torch.from_numpy(inside.astype(np.int64)).to(self.device),
            positions=torch.from_numpy(scored - 1).to(self.device),
            wanted=torch.from_numpy(ids.ravel()[scored]).to(self.device),
            padded=not inside.all(),
        )
        return batch, scored // width
