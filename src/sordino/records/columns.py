"""Records and examples as Arrow columns: compact while they wait, objects when somebody asks for one.

A million short records are a few hundred megabytes in columns and several times that as Python objects.
`Rows` is the sequence in between: it makes its items when they are asked for and keeps none.
"""

import bisect
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeVar, overload

import numpy as np
import numpy.typing as npt

from sordino.errors import RunError
from sordino.pii import Span
from sordino.records.record import Message, Record, content_digest

__all__ = ["Filed", "Held", "Rows", "contents", "pack", "record_rows", "records_of", "schema", "sorted_rows"]

T = TypeVar("T")
# The rows of one batch, which is also one row group on disk, and the characters that end it early.
BATCH, CHARACTERS = 8192, 16_000_000
_PIECE = 1024


def schema() -> Any:
    """The Arrow schema of records."""
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    span = pa.struct(
        [
            ("start", pa.int64()),
            ("stop", pa.int64()),
            ("kind", pa.string()),
            ("score", pa.float64()),
            ("message", pa.int32()),
        ]
    )
    return pa.schema(
        [
            ("id", pa.string()),
            ("unit", pa.string()),
            ("messages", pa.list_(message)),
            ("label", pa.string()),
            ("rejected", pa.large_string()),
            ("spans", pa.list_(span)),
        ]
    )


class Held:
    """A table in chunks of rows, held in memory: `starts` has one edge more than there are chunks."""

    def __init__(self, batches: Iterable[Any], kind: Any) -> None:
        """Hold `batches` of the schema `kind`."""
        self.batches, self.schema = tuple(batches), kind
        self.starts = _edges(batch.num_rows for batch in self.batches)

    def read(self, number: int) -> Any:
        """One chunk as a RecordBatch."""
        return self.batches[number]

    def column(self, name: str) -> Any:
        """One column of all chunks, as a ChunkedArray."""
        import pyarrow as pa

        return pa.chunked_array([b.column(name) for b in self.batches], type=self.schema.field(name).type)


class Filed:
    """A table whose chunks are the row groups of a Parquet file; the one read last is held."""

    def __init__(self, file: Any, path: Path | str) -> None:
        """Read from the open ParquetFile `file`, called `path` in messages."""
        self.file, self.path = file, path
        groups = file.metadata.num_row_groups
        self.starts = _edges(file.metadata.row_group(n).num_rows for n in range(groups))
        self._held: tuple[int, Any] = (-1, None)

    def read(self, number: int) -> Any:
        """One row group as a RecordBatch; raises `RunError` where it is damaged."""
        if self._held[0] != number:
            table = self._try(lambda: self.file.read_row_group(number))
            self._held = (number, table.combine_chunks().to_batches()[0])
        return self._held[1]

    def column(self, name: str) -> Any:
        """One column of the file, as a ChunkedArray; raises `RunError` where it is damaged."""
        return self._try(lambda: self.file.read(columns=[name])).column(name)

    def _try(self, read: Callable[[], Any]) -> Any:
        import pyarrow as pa

        try:
            return read()
        except (pa.ArrowException, OSError) as error:
            hint = "It is damaged: prepare the run again."
            raise RunError(f"{self.path} cannot be read as a split: {error}.", hint) from error


def _edges(sizes: Iterable[int]) -> list[int]:
    return [0, *np.cumsum([*sizes], dtype=np.int64).tolist()]


class Rows(Sequence[T]):
    """The items that `make` builds of the rows of `chunks`, or of those at `numbers`, each when asked for."""

    def __init__(
        self,
        chunks: Held | Filed,
        make: Callable[[Any], Iterator[T]],
        numbers: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """See the class."""
        self.chunks, self.make, self.numbers = chunks, make, numbers

    def __len__(self) -> int:
        """The number of items."""
        return self.chunks.starts[-1] if self.numbers is None else len(self.numbers)

    @overload
    def __getitem__(self, at: int) -> T: ...
    @overload
    def __getitem__(self, at: slice) -> "Rows[T]": ...
    def __getitem__(self, at: int | slice) -> "T | Rows[T]":
        """One item, or those of a slice, as `Rows`."""
        if isinstance(at, slice):
            return self.take(np.arange(len(self), dtype=np.int64)[at])
        place = range(len(self))[at]
        row = place if self.numbers is None else int(self.numbers[place])
        chunk = bisect.bisect_right(self.chunks.starts, row) - 1
        return next(self.make(self.chunks.read(chunk).slice(row - self.chunks.starts[chunk], 1)))

    def __iter__(self) -> Iterator[T]:
        """Make the items one after another."""
        for batch in self.batches():
            yield from self.make(batch)

    def __eq__(self, other: object) -> bool:
        """Whether `other` is a sequence of equal items."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """How many rows there are, never their text."""
        return f"<{len(self):,} rows>"

    def take(self, places: npt.NDArray[np.int64]) -> "Rows[T]":
        """The items at `places`."""
        return Rows(self.chunks, self.make, places if self.numbers is None else self.numbers[places])

    def column(self, name: str) -> Any:
        """The values of one column, as a ChunkedArray."""
        whole = self.chunks.column(name)
        return whole if self.numbers is None else whole.take(self.numbers)

    def batches(self) -> Iterator[Any]:
        """The rows as RecordBatches of at most `_PIECE` rows."""
        starts = self.chunks.starts
        if self.numbers is not None and (np.diff(self.numbers) < 0).any():  # out of order: one by one
            for row in self.numbers.tolist():
                yield from Rows(self.chunks, self.make, np.array([row])).batches()
            return
        for chunk, (low, high) in enumerate(pairwise(starts)):
            if self.numbers is None:
                for at in range(0, high - low, _PIECE):
                    yield self.chunks.read(chunk).slice(at, _PIECE)
                continue
            first, last = np.searchsorted(self.numbers, [low, high])
            for at in range(int(first), int(last), _PIECE):
                yield self.chunks.read(chunk).take(self.numbers[at : min(at + _PIECE, last)] - low)


def contents(batch: Any) -> Iterator[tuple[Message, ...]]:
    """The messages of each row of `batch`."""
    column = batch.column("messages")
    turns, sizes = column.flatten(), np.diff(column.offsets.to_numpy())
    roles, texts = turns.field("role").to_pylist(), turns.field("content").to_pylist()
    at = 0
    for size in sizes.tolist():
        yield tuple(map(Message, roles[at : at + size], texts[at : at + size]))
        at += size


def labels(batch: Any) -> list[str | None]:
    """The label of each row of `batch`; none in tables older than labels."""
    if "label" not in batch.schema.names:
        return [None] * batch.num_rows
    found: list[str | None] = batch.column("label").to_pylist()
    return found


def rejected(batch: Any) -> list[str | None]:
    """The rejected answer of each row of `batch`; none in tables older than them."""
    if "rejected" not in batch.schema.names:
        return [None] * batch.num_rows
    found: list[str | None] = batch.column("rejected").to_pylist()
    return found


def spans(batch: Any) -> list[tuple[Span, ...]]:
    """The labelled spans of each row of `batch`; none in tables older than them."""
    if "spans" not in batch.schema.names:
        return [()] * batch.num_rows
    rows = batch.column("spans").to_pylist()
    return [tuple(Span(**span) for span in row or ()) for row in rows]


def records_of(batch: Any) -> Iterator[Record]:
    """The records of the rows of `batch`."""
    names, units = batch.column("id").to_pylist(), batch.column("unit").to_pylist()
    columns = zip(names, units, contents(batch), labels(batch), rejected(batch), spans(batch), strict=True)
    for name, unit, messages, label, other, found in columns:
        yield Record(id=name, messages=messages, unit=unit, label=label, rejected=other, spans=found)


def pack(records: Iterable[Record]) -> Iterator[Any]:
    """`records` as RecordBatches of the schema of records."""
    held: list[Record] = []
    size = 0
    for record in records:
        held.append(record)
        size += sum(len(message.content) for message in record.messages) + len(record.rejected or "")
        if len(held) == BATCH or size > CHARACTERS:
            yield _batch(held)
            held, size = [], 0
    if held:
        yield _batch(held)


def _batch(records: Sequence[Record]) -> Any:
    import pyarrow as pa

    kind = schema()
    turns = [message for record in records for message in record.messages]
    flat = pa.StructArray.from_arrays(
        [pa.array([m.role for m in turns], pa.string()), pa.array([m.content for m in turns], pa.large_string())],
        fields=list(kind.field("messages").type.value_type),
    )
    edges = _edges(len(record.messages) for record in records)
    columns = [
        pa.array([record.id for record in records], pa.string()),
        pa.array([record.unit for record in records], pa.string()),
        pa.ListArray.from_arrays(pa.array(edges, pa.int32()), flat, type=kind.field("messages").type),
        pa.array([record.label for record in records], pa.string()),
        pa.array([record.rejected for record in records], pa.large_string()),
        pa.array([[asdict(span) for span in record.spans] for record in records], kind.field("spans").type),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=kind)


def record_rows(records: Iterable[Record]) -> Rows[Record]:
    """`records` in columns; what is in columns already stays as it is."""
    if isinstance(records, Rows):
        return records
    return Rows(Held(pack(records), schema()), records_of)


def sorted_rows(records: Iterable[Record]) -> Iterator[list[tuple[str, str, str]]]:
    """(id, unit, content digest) of all records in ascending order, some thousands at a time."""
    import pyarrow as pa

    rows = record_rows(records)
    digests = [
        pa.array(list(map(content_digest, contents(batch), labels(batch), rejected(batch))), pa.string())
        for batch in rows.batches()
    ]
    columns = [rows.column("id"), rows.column("unit"), pa.chunked_array(digests, pa.string())]
    table = pa.table(columns, names=["id", "unit", "digest"])
    # Arrow orders strings by their bytes in UTF-8, which is the order of Python's strings.
    table = table.sort_by([(name, "ascending") for name in table.column_names])
    for batch in table.to_batches(BATCH):
        yield list(zip(*(column.to_pylist() for column in batch.columns), strict=True))
