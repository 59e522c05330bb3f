"""A split in one Parquet file: every record, its placement, and the notices; readable by its owner alone."""

import os
from pathlib import Path

import msgspec

from sordino.errors import RunError
from sordino.records.columns import Filed, Rows
from sordino.records.placed import batches, examples_of, schema
from sordino.records.split import Split
from sordino.results import Notice

__all__ = ["load", "save"]

VERSION = b"4"
# Version 1 has no labels, versions 1 and 2 no rejected answers, and none before 4 spans; they are read as such.
UNMARKED, UNREJECTED, UNLABELLED = b"3", b"2", b"1"
VERSION_KEY, NOTICES_KEY = b"sordino.split", b"sordino.notices"


def save(split: Split, path: Path | str) -> None:
    """Write `split` to `path` as Parquet (zstd), mode 0600; `load` gives back an equal split."""
    import pyarrow.parquet as pq

    metadata = {VERSION_KEY: VERSION, NOTICES_KEY: msgspec.json.encode(split.notices)}
    # Created for its owner alone: a file made readable and then closed could be read in between.
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), 0o600)
        with pq.ParquetWriter(file, schema().with_metadata(metadata), compression="zstd") as writer:
            for batch in batches(split.examples):
                writer.write_batch(batch)


def load(path: Path | str) -> Split:
    """The split written by `save`; raises `RunError` when it is missing, damaged or another version.

    Rows are read when somebody asks for them.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
        found = file.schema_arrow
        metadata = found.metadata or {}
        version = metadata.get(VERSION_KEY)
        third = schema().remove(schema().get_field_index("spans"))
        second = third.remove(third.get_field_index("rejected"))
        first = second.remove(second.get_field_index("label"))
        known = {VERSION: schema(), UNMARKED: third, UNREJECTED: second, UNLABELLED: first}
        if version not in known or not found.equals(known[version]):
            hint = "It was written by another version, or is another file."
            raise RunError(f"{path} is not a split of version {VERSION.decode()}.", hint)
        notices = msgspec.json.decode(metadata[NOTICES_KEY], type=tuple[Notice, ...])
        return Split(examples=Rows(Filed(file, path), examples_of), notices=notices)
    except FileNotFoundError as error:
        raise RunError(f"{path} does not exist.", "Was the run prepared?") from error
    except (pa.ArrowException, msgspec.DecodeError, OSError, KeyError) as error:
        if isinstance(error, RunError):
            raise
        raise RunError(
            f"{path} cannot be read as a split: {error}.", "It is damaged: prepare the run again."
        ) from error
