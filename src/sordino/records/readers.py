"""From a file or a folder to rows of named values, each with its place: JSON, CSV, TSV, Parquet, plain text.

Reading is strict: a file that is not what it says raises `DataError` with the line, and no row is skipped.
A file is gone through once to check it, and again whenever its rows are: no more than one is held.
"""

import csv
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from sordino.errors import ConfigError, DataError, did_you_mean
from sordino.records.json_files import read_json, read_jsonl
from sordino.records.tables import Lazy, Row, Table, blank_lines, check_text, read_text, scanned, text_lines

__all__ = ["read_table"]

SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".md": "text",
}
DOCUMENTS = (".txt", ".md")
NAMES = {"jsonl": "JSONL", "csv": "CSV", "tsv": "TSV", "json": "JSON", "parquet": "Parquet"}  # what a shard may be
FILE_HINT = "Check that it is the right file."
BATCH = 1024


def read_table(path: Path, source: str, file_format: str = "auto") -> Table:
    """The rows of the file or folder at `path`, called `source` in messages.

    `file_format` is jsonl, csv, tsv, json, parquet, text, text-folder, or auto: by the suffix. A folder may
    hold shards, all of one format, which are read in the order of their names. Raises `DataError` for
    whatever cannot be read, `ConfigError` for a format that does not exist.
    """
    if file_format not in ("auto", *READERS):
        hint = did_you_mean(file_format, ("auto", *READERS))
        raise ConfigError(f"No data format named '{file_format}'.", hint)
    try:
        if not path.exists():
            hint = "Check data.path; a relative path starts at the current folder."
            raise DataError(f"{source} does not exist.", hint)
        kind = _recognise(path, source) if file_format == "auto" else file_format
        _check_kind(path, source, kind)
        shards = path.is_dir() and kind in NAMES
        table = _read_shards(path, source, kind) if shards else READERS[kind](path, source)
    except OSError as error:
        message = f"{source} cannot be read: {error.strerror or error}."
        raise DataError(message, "Check the path and its permissions.") from error
    if not table.rows:
        blank = f", only {table.blank:,} blank lines" if table.blank else ""
        raise DataError(f"{source} holds no record{blank}.", FILE_HINT)
    return table


def _recognise(path: Path, source: str) -> str:
    if path.is_dir():
        return _recognise_folder(path, source)
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        what = f"the suffix '{path.suffix}'" if path.suffix else "no suffix"
        hint = f"Set data.format to one of: {', '.join(READERS)}."
        raise DataError(f"{source} has {what}, which tells no format.", hint)
    return kind


def _recognise_folder(path: Path, source: str) -> str:
    """A format of shards, or text-folder; a README among shards is no document."""
    files = [entry for entry in path.iterdir() if entry.is_file()]
    kinds = sorted({SUFFIXES.get(file.suffix.lower(), "") for file in files} & NAMES.keys())
    documents = [f for f in files if f.suffix.lower() in DOCUMENTS and not f.stem.lower().startswith("readme")]
    if not kinds:
        return "text-folder"
    if documents or len(kinds) > 1:
        found = [NAMES[kind] for kind in kinds] + ["text"] * bool(documents)
        hint = f"Keep one kind, or set data.format to one of: {', '.join(kinds + ['text-folder'] * bool(documents))}."
        raise DataError(f"{source} holds files of several kinds: {', '.join(found)}.", hint)
    return kinds[0]


def _shards(path: Path, kind: str) -> list[Path]:
    """The files of one format in a folder, in the order of their names."""
    files = (entry for entry in path.iterdir() if SUFFIXES.get(entry.suffix.lower()) == kind and entry.is_file())
    return sorted(files, key=lambda entry: entry.name)


def _read_shards(path: Path, source: str, kind: str) -> Table:
    """All shards as one table; an empty one holds no rows."""
    files = _shards(path, kind)
    tables = [(file.name, READERS[kind](file, f"{source}/{file.name}")) for file in files]

    def rows() -> Iterator[Row]:
        for name, table in tables:
            for row in table.rows:
                yield Row(f"{name}, {row.place}", row.values)

    return Table(
        columns=tuple(dict.fromkeys(column for _, table in tables for column in table.columns)),
        rows=Lazy(rows, sum(len(table.rows) for _, table in tables)),
        blank=sum(table.blank for _, table in tables),
        skipped=sum(1 for _ in path.iterdir()) - len(files),
        files=f"{NAMES[kind]} files",
    )


def _check_kind(path: Path, source: str, kind: str) -> None:
    if kind == "text-folder":
        if not path.is_dir():
            hint = "Set data.format: text to read a file with a record a line."
            raise DataError(f"{source} is not a folder, which the format text-folder reads.", hint)
    elif path.is_dir():
        if kind in NAMES and _shards(path, kind):
            return
        hint = "Name a file, or set data.format: text-folder for a folder with a text file a record."
        raise DataError(f"{source} is a folder, but the format {kind} reads one file.", hint)
    elif not path.is_file():
        hint = "Name a file: pipes and devices cannot be read twice the same."
        raise DataError(f"{source} is not a regular file.", hint)


def _read_csv(path: Path, source: str) -> Table:
    check_text(path, source)
    return _tabular(lambda: _csv_fields(path, source), source)


def _csv_fields(path: Path, source: str) -> Iterator[tuple[int, list[str]]]:
    before, longest = 0, path.stat().st_size + 1  # a record may be longer than the default 128 KiB
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        while True:
            limit = csv.field_size_limit(longest)
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                message = f"{source}, line {before + 1}: malformed CSV, {error}."
                hint = 'Put texts with commas or line breaks in "quotes", and double the quotes inside.'
                raise DataError(message, hint) from error
            finally:
                csv.field_size_limit(limit)  # the module's own: nobody else shall notice
            yield before + 1, row
            before = reader.line_num


def _read_tsv(path: Path, source: str) -> Table:
    # In tab-separated text a quote is a character like any other: no text needs quoting.
    check_text(path, source)
    return _tabular(lambda: ((n, line.split("\t") if line else []) for n, line in text_lines(path)), source)


def _tabular(fields: Callable[[], Iterator[tuple[int, list[str]]]], source: str) -> Table:
    """The table of (line, fields), whose first line names the columns."""
    header_line, header = next(((line, row) for line, row in fields() if row), (0, []))
    if not header:
        raise DataError(f"{source} is empty.", FILE_HINT)
    columns = tuple(name.strip() for name in header)
    twice = [name for name in columns if not name or columns.count(name) > 1]
    if twice:
        what = f"two columns are named '{twice[0]}'" if twice[0] else "a column has no name"
        hint = "The first line must name each column once."
        raise DataError(f"{source}, line {header_line}: {what}.", hint)

    def rows() -> Iterator[Row]:
        for line, row in fields():
            if not row or line == header_line:
                continue
            if len(row) != len(columns):
                message = f"{source}, line {line}: {len(row)} fields, but the header names {len(columns)} columns."
                raise DataError(message, "A separator or a quote is missing, or one too many.")
            yield Row(f"line {line}", dict(zip(columns, row, strict=True)))

    return scanned(rows, columns, blank=sum(not row for _, row in fields()))


def _read_parquet(path: Path, source: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    def batches() -> Iterator[Any]:
        try:
            with pq.ParquetFile(path) as file:
                yield file.schema_arrow.names, file.metadata.num_rows
                for group in range(file.num_row_groups):
                    for batch in file.iter_batches(BATCH, row_groups=[group]):
                        yield batch.to_pylist()
        except (pa.ArrowException, UnicodeDecodeError) as error:
            message = f"{source} is not a readable Parquet file: {str(error).rstrip('.')}."
            raise DataError(message, "Is it damaged, or another format? Then set data.format.") from error

    def rows() -> Iterator[Row]:
        values = itertools.chain.from_iterable(itertools.islice(batches(), 1, None))
        return (Row(f"row {number}", value) for number, value in enumerate(values, 1))

    names, count = next(batches())
    return Table(columns=tuple(names), rows=Lazy(rows, count))


def _read_lines(path: Path, source: str) -> Table:
    check_text(path, source)

    def rows() -> Iterator[Row]:
        return (Row(f"line {number}", {"text": line}) for number, line in text_lines(path) if line.strip())

    return scanned(rows, ("text",), blank=blank_lines(path))


def _read_folder(path: Path, source: str) -> Table:
    entries = sorted(path.iterdir(), key=lambda entry: entry.name)
    files = [entry for entry in entries if entry.suffix.lower() in DOCUMENTS and entry.is_file()]
    if not files:
        hint = "A folder is read as one record a file with the suffix .txt or .md."
        raise DataError(f"{source} holds no text file among its {len(entries):,} entries.", hint)

    def rows() -> Iterator[Row]:
        for file in files:
            yield Row(file.name, {"text": read_text(file, f"{source}/{file.name}"), "file": file.name})

    return replace(scanned(rows, ("text", "file")), skipped=len(entries) - len(files))


READERS = {
    "jsonl": read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "json": read_json,
    "parquet": _read_parquet,
    "text": _read_lines,
    "text-folder": _read_folder,
}
