"""Examples: records with their placements, as columns that are written to disk as they are."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sordino.records.columns import Held, Rows, pack, records_of
from sordino.records.columns import schema as record_schema
from sordino.records.record import Record

__all__ = [
    "Example",
    "Role",
    "batches",
    "examples_of",
    "extended",
    "labels_of",
    "schema",
    "taken_ids",
    "tallied",
    "unit_of",
    "where",
]

Role = Literal["train", "candidate", "validation", "canary", "excluded"]


@dataclass(frozen=True, kw_only=True)
class Example:
    """A record, its role, and whether it is trained on.

    `included` is True for "train", the coin for "candidate" and "canary", False for "validation" and
    "excluded". `group` is what shares a coin: the oldest unit of the near-duplicate cluster.
    `repetitions` is how often a canary stands in the training data.
    """

    record: Record
    role: Role
    included: bool
    group: str
    repetitions: int = 1


def unit_of(example: Example, kind: str) -> str:
    """The unit of `kind` (record, subject, cluster) that an example belongs to; all copies of a canary are one."""
    return {"record": example.record.id, "subject": example.record.unit, "cluster": example.group}[kind]


def schema() -> Any:
    """The Arrow schema of examples, which is that of the file."""
    import pyarrow as pa

    placement = [
        ("role", pa.string()),
        ("included", pa.bool_()),
        ("group", pa.string()),
        ("repetitions", pa.int64()),
    ]
    name, unit, *content = record_schema()
    return pa.schema([name, unit, *(pa.field(*pair) for pair in placement), *content])


def examples_of(batch: Any) -> Iterator[Example]:
    """The examples of the rows of `batch`."""
    columns = (batch.column(name).to_pylist() for name in ("role", "included", "group", "repetitions"))
    for record, role, included, group, repetitions in zip(records_of(batch), *columns, strict=True):
        yield Example(record=record, role=role, included=included, group=group, repetitions=repetitions)


def batches(examples: Sequence[Example]) -> Iterator[Any]:
    """`examples` as RecordBatches of their schema."""
    import pyarrow as pa

    if isinstance(examples, Rows):
        for chunk in range(len(examples.chunks.starts) - 1) if examples.numbers is None else ():
            yield examples.chunks.read(chunk)
        if examples.numbers is not None:
            yield from examples.batches()
        return
    at = 0
    for batch in pack(example.record for example in examples):
        here, at = examples[at : at + batch.num_rows], at + batch.num_rows
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns |= {
            "role": pa.array([e.role for e in here], pa.string()),
            "included": pa.array([e.included for e in here], pa.bool_()),
            "group": pa.array([e.group for e in here], pa.string()),
            "repetitions": pa.array([e.repetitions for e in here], pa.int64()),
        }
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema().names], schema=schema())


def where(examples: Sequence[Example], role: Role | None, included: bool | None = None) -> Sequence[Example]:
    """Those of `examples` with this role, if one is given, that are included or not, if that is given."""
    if not isinstance(examples, Rows):
        kept = (e for e in examples if role is None or e.role == role)
        return tuple(e for e in kept if included is None or e.included is included)
    keep = np.ones(len(examples), dtype=bool)
    if role is not None:
        import pyarrow.compute as pc

        keep &= pc.equal(examples.column("role"), role).to_numpy()
    if included is not None:
        keep &= examples.column("included").to_numpy() == included
    return examples.take(np.flatnonzero(keep))


def taken_ids(examples: Sequence[Example], names: Sequence[str]) -> set[str]:
    """Those of `names` that are ids of `examples`."""
    if not isinstance(examples, Rows):
        return {example.record.id for example in examples} & set(names)
    import pyarrow as pa
    import pyarrow.compute as pc

    column = examples.column("id")
    return set(column.filter(pc.is_in(column, pa.array(names, pa.string()))).to_pylist())


def _rows(examples: Sequence[Example]) -> Rows[Example]:
    return examples if isinstance(examples, Rows) else Rows(Held(batches(examples), schema()), examples_of)


def tallied(examples: Sequence[Example]) -> dict[str, int]:
    """How many records, units and coins play which role; of canaries, how many copies are trained on."""
    import pyarrow.compute as pc

    rows = _rows(examples)
    role, included = rows.column("role"), rows.column("included")
    own, candidate = pc.not_equal(role, "canary"), pc.equal(role, "candidate")
    copies = rows.column("repetitions").filter(pc.and_(pc.invert(own), included))

    def count(mask: Any) -> int:
        return int(pc.sum(mask).as_py() or 0)

    return {
        "records": count(own),
        "units": int(pc.count_distinct(rows.column("unit").filter(own)).as_py()),
        "trained": count(pc.and_(own, included)),
        "members": count(pc.and_(candidate, included)),
        "non-members": count(pc.and_not(candidate, included)),
        "coins": int(pc.count_distinct(rows.column("group").filter(candidate)).as_py()),
        "validation": count(pc.equal(role, "validation")),
        "excluded": count(pc.equal(role, "excluded")),
        "canaries": len(rows) - count(own),
        "canary copies": count(copies),
    }


def labels_of(examples: Sequence[Example]) -> tuple[str, ...]:
    """The classes that any record has, sorted: whose coin fell in must not decide which there are."""
    import pyarrow.compute as pc

    return tuple(sorted(pc.unique(_rows(examples).column("label").drop_null()).to_pylist()))


def extended(examples: Sequence[Example], more: Iterable[Example]) -> Sequence[Example]:
    """`examples`, then `more`."""
    added = tuple(more)
    if not isinstance(examples, Rows):
        return (*examples, *added)
    return Rows(Held([*batches(examples), *batches(added)], schema()), examples_of)
