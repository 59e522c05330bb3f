"""Work that takes model time, in parts that are kept as they are done: an interrupted audit goes on with them."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec
import numpy as np

from sordino.results import encode
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.signals import Statistics, Store

__all__ = ["SHARD", "in_parts", "in_shards", "statistics_in_shards"]

SHARD = 1_000
"""Records of a pass between two results on disk."""

T = TypeVar("T")
Tick = Callable[[int], None]


def in_parts(  # noqa: PLR0913 - what is done, and where it is kept
    run: Run,
    path: str,
    count: int,
    size: int,
    work: Callable[[int, int], list[T]],
    kind: type[T],
    *,
    tick: Tick = lambda done: None,
) -> list[T]:
    """`work(start, stop)` of `count` things, `size` at a time, from private/`path`/ as far as it is there.

    `path` ends in a key of all that the results depend on; `kind` is what one result is read back as. `tick` is told
    of what was there.
    """
    found: list[T] = []
    for start in range(0, count, size):
        stop = min(start + size, count)
        name = f"{path}/{start}-{stop}.json"
        file = run.private / name
        if file.exists():
            tick(stop - start)
        else:
            run.write_private(name, encode(work(start, stop)))
        found += msgspec.json.decode(file.read_bytes(), type=list[kind])  # type: ignore[valid-type]
    return found


def in_shards(
    store: Store,
    key: str,
    tokens: Sequence[Tokens],
    measure: Callable[[Sequence[Tokens]], Mapping[str, np.ndarray]],
    tick: Tick,
) -> dict[str, np.ndarray]:
    """`measure` of all `tokens`: columns with a row a target, or a record, in the order of the records.

    Of more than `SHARD` records each shard is put into `store` beside `key` when it is done. Whoever stores the
    whole drops them (`Store.drop`).
    """
    if len(tokens) <= SHARD:
        return dict(measure(tokens))
    found = []
    for start in range(0, len(tokens), SHARD):
        some, name = tokens[start : start + SHARD], f"{key}.{start}-{min(start + SHARD, len(tokens))}"
        part = store.arrays(name)
        if part is None:
            part = dict(measure(some))
            store.put_arrays(name, part, {"records": len(some)})
        else:
            tick(len(some))
        found.append(part)
    return {column: np.concatenate([part[column] for part in found]) for column in found[0]}


Measured = tuple[Statistics, Mapping[str, np.ndarray]]
"""Statistics, and more columns with a row a target."""


def statistics_in_shards(
    store: Store, key: str, tokens: Sequence[Tokens], measure: Callable[[Sequence[Tokens]], Measured], tick: Tick
) -> Measured:
    """`in_shards` of a pass that makes `Statistics`, and what else comes from it."""

    def columns(some: Sequence[Tokens]) -> dict[str, np.ndarray]:
        made, more = measure(some)
        return {"counts": np.diff(made.offsets), **made.present(), **{f"more.{name}": v for name, v in more.items()}}

    made: dict[str, Any] = in_shards(store, key, tokens, columns, tick)
    offsets = np.concatenate([[0], np.cumsum(made.pop("counts"))]).astype(np.int64)
    more = {name.removeprefix("more."): made.pop(name) for name in list(made) if name.startswith("more.")}
    return Statistics(offsets=offsets, **made), more
