"""Signals of the untuned model that a run beside this one has computed already, taken over once they are checked."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sordino.errors import RunError
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.signals import Statistics, Store

__all__ = ["Lent", "borrowed", "borrowed_arrays"]

# What two runs need not share for their untuned models to say the same.
_OWN = ("weights",)


@dataclass(frozen=True, kw_only=True)
class Lent:
    """`statistics` of an untuned model, and the name of the `run` that computed them."""

    run: str
    statistics: Statistics


def borrowed(run: Run, key: str, tokens: Sequence[Tokens], manifest: Mapping[str, object]) -> Lent | None:
    """The statistics under `key` of another run in the same folder as `run`, or None where there are none to trust.

    `key` is a digest of model, serializer, view and records, so that the same numbers have the same key. They
    are taken where, besides, everything in `manifest` agrees (the model's settings and context, torch, device),
    the file has the digest it was written with, and its tokens are `tokens`, one by one. Anything
    else is passed over: computing them again is always right.
    """
    for owner, store in _beside(run, key, manifest, "statistics"):
        try:
            found = store.get(key)
        except RunError:
            continue
        if found is not None and _about(found, tokens):
            return Lent(run=owner, statistics=found)
    return None


def borrowed_arrays(
    run: Run, key: str, tokens: Sequence[Tokens], manifest: Mapping[str, object]
) -> tuple[str, dict[str, np.ndarray]] | None:
    """The same of arrays that hold, under "token", the target that each of their rows is of."""
    ids = np.concatenate([t.ids[t.target] for t in tokens] or [np.empty(0, dtype=np.int32)])
    for owner, store in _beside(run, key, manifest, "arrays"):
        try:
            found = store.arrays(key)
        except RunError:
            continue
        if found is not None and np.array_equal(found.get("token", np.empty(0)), ids):
            return owner, found
    return None


def _beside(run: Run, key: str, manifest: Mapping[str, object], name: str) -> Iterator[tuple[str, Store]]:
    """The names and stores of other runs that have `key`, with a manifest that agrees."""
    wanted = {name: value for name, value in manifest.items() if name not in _OWN}
    for folder in sorted(run.path.parent.glob(f"*/private/signals/{key}")):
        owner, store = folder.parents[2], Store(folder.parent)
        if owner.resolve() == run.path.resolve():
            continue
        there = store.manifest(key, name)
        if all(there.get(item) == value for item, value in wanted.items()):
            yield owner.name, store


def _about(found: Statistics, tokens: Sequence[Tokens]) -> bool:
    """Whether `found` has one row for each target of `tokens`, in order."""
    counts = np.array([int(t.target.sum()) for t in tokens], dtype=np.int64)
    if not np.array_equal(found.offsets, np.concatenate([[0], np.cumsum(counts)])):
        return False
    ids = np.concatenate([t.ids[t.target] for t in tokens] or [np.empty(0, dtype=np.int32)])
    places = np.concatenate([np.flatnonzero(t.target) for t in tokens] or [np.empty(0, dtype=np.int64)])
    return bool(np.array_equal(found.token, ids) and np.array_equal(found.position, places))
