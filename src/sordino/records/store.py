"""A split in one Parquet file: every record, its placement, and the notices; readable by its owner alone."""

import os
from pathlib import Path
from typing import Any

import msgspec

from sordino.errors import RunError
from sordino.records.record import Message, Record
from sordino.records.split import Example, Split
from sordino.results import Notice

__all__ = ["load", "save"]

VERSION = b"2"
# Version 1 has no labels, and is read as such.
UNLABELLED = b"1"
VERSION_KEY, NOTICES_KEY = b"sordino.split", b"sordino.notices"


def save(split: Split, path: Path | str) -> None:
    """Write `split` to `path` as Parquet (zstd), mode 0600; `load` gives back an equal split."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {
            "id": example.record.id,
            "unit": example.record.unit,
            "role": example.role,
            "included": example.included,
            "group": example.group,
            "repetitions": example.repetitions,
            "messages": [{"role": m.role, "content": m.content} for m in example.record.messages],
            "label": example.record.label,
        }
        for example in split.examples
    ]
    metadata = {VERSION_KEY: VERSION, NOTICES_KEY: msgspec.json.encode(split.notices)}
    table = pa.Table.from_pylist(rows, schema=_schema().with_metadata(metadata))
    # Created for its owner alone: a file made readable and then closed could be read in between.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        pq.write_table(table, file, compression="zstd")


def load(path: Path | str) -> Split:
    """The split written by `save`; raises `RunError` when it is missing, damaged or another version."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        metadata = table.schema.metadata or {}
        version = metadata.get(VERSION_KEY)
        known = {VERSION: _schema(), UNLABELLED: _schema().remove(_schema().get_field_index("label"))}
        if version not in known or not table.schema.equals(known[version]):
            hint = "It was written by another version, or is another file."
            raise RunError(f"{path} is not a split of version {VERSION.decode()}.", hint)
        notices = msgspec.json.decode(metadata[NOTICES_KEY], type=tuple[Notice, ...])
        return Split(examples=tuple(map(_example, table.to_pylist())), notices=notices)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist.", "Was the run prepared?") from error
    except (pa.ArrowException, msgspec.DecodeError, OSError, KeyError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{path} cannot be read as a split: {error}.", "It is damaged: prepare the run again."
        ) from error


def _schema() -> Any:
    import pyarrow as pa

    message = pa.struct([("role", pa.string()), ("content", pa.large_string())])
    return pa.schema(
        [
            ("id", pa.string()),
            ("unit", pa.string()),
            ("role", pa.string()),
            ("included", pa.bool_()),
            ("group", pa.string()),
            ("repetitions", pa.int64()),
            ("messages", pa.list_(message)),
            ("label", pa.string()),
        ]
    )


def _example(row: dict[str, Any]) -> Example:
    messages = tuple(Message(turn["role"], turn["content"]) for turn in row["messages"])
    return Example(
        record=Record(id=row["id"], messages=messages, unit=row["unit"], label=row.get("label")),
        role=row["role"],
        included=row["included"],
        group=row["group"],
        repetitions=row["repetitions"],
    )
