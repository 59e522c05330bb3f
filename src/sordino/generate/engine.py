"""Requests to what is written: which way of reading the model allows, and how many rows at a time."""

from collections.abc import Callable, Sequence

import numpy as np

from sordino.generate.aligned import write_aligned
from sordino.generate.probe import Probe
from sordino.generate.refill import Waiting, write_refilling
from sordino.generate.request import Generation, Request
from sordino.generate.slots import Slots
from sordino.generate.writing import Writing
from sordino.model import Model

__all__ = ["write"]

# Rows of a batch at most, and the bytes that they and those who wait to be put into them may take.
_ROWS = 256
_MEMORY = {"cpu": 1 << 30, "cuda": 8 << 30, "mps": 2 << 30}
# Rows at a time where the cache is the model's own.
_ALIGNED = 64
# A beginning that all prefixes share is read apart if it has so many tokens, and saves so many.
_COMMON, _SAVED = 16, 64


def write(
    model: Model, requests: Sequence[Request], seed: int, rows: int | None, tick: Callable[[int], None]
) -> list[Generation]:
    """Answer `requests`, which the model can answer, in the fastest way that has the logits of whole texts."""
    if not requests:
        return []
    writing = Writing(requests, model.tokenizer, seed)
    with model.active() as module:
        longest = max(len(r.prefix) + r.length for r in requests) - 1  # the last token is not read
        probe = Probe(module, longest, _vocabulary(model), model.device)
        if not _in_slots(model, probe, writing, rows, tick):
            order = sorted(range(len(requests)), key=lambda i: (len(requests[i].prefix), requests[i].length))
            write_aligned(module, writing, order, rows or _ALIGNED, kept=probe.own_cache(), tick=tick)
    return [writing.generation(i) for i in range(len(requests))]


def _in_slots(model: Model, probe: Probe, writing: Writing, rows: int | None, tick: Callable[[int], None]) -> bool:
    """Answer all of `writing` in rows that are refilled; False, and nothing done, where the model does not allow it."""
    prefixes = list({r.prefix.astype(np.int64).tobytes(): r.prefix for r in writing.requests}.values())
    shared = _common(prefixes)
    if shared < _COMMON or shared * (len(prefixes) - 1) < _SAVED:
        shared = 0
    like = probe.slots(common=shared > 0)
    if like is None:
        return False
    room = int(like.lengths[0]) + 2  # the probe but for its last token, and one that is not read
    # A row has room for its own tokens and for those of one that waits, and copies of its logits.
    fit = _MEMORY.get(model.device.type, _MEMORY["cpu"]) // (2 * room * like.token_bytes + 32 * _vocabulary(model))
    count = min(rows or max(1, min(_ROWS, fit)), len(writing.requests))
    slots = Slots(probe.module, count, room, like)
    write_refilling(writing, Waiting(probe.module, writing, count, shared), slots, tick)
    return True


def _common(prefixes: Sequence[np.ndarray]) -> int:
    """How many first tokens all `prefixes` share; the last one of the shortest is not counted."""
    shortest = min(map(len, prefixes)) - 1
    same = np.ones(shortest, dtype=bool)
    for prefix in prefixes[1:]:
        same &= prefixes[0][:shortest] == prefix[:shortest]
    return int(np.logical_and.accumulate(same).sum())


def _vocabulary(model: Model) -> int:
    return int(model.module.get_input_embeddings().weight.shape[0])
