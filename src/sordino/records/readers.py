"""From a file to rows of named values, each with its place in the file: JSON, CSV, TSV, Parquet, plain text.

Reading is strict: a file that is not what it says raises `DataError` with the line, and no row is skipped.
"""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from sordino.errors import ConfigError, DataError, did_you_mean

__all__ = ["Row", "Table", "kind_of", "read_table"]


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one row by column, and its `place` as a person finds it: "line 12"."""

    place: str
    values: Mapping[str, object]


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of a file in their order.

    `columns` has every column of any row; `blank` counts lines that hold nothing, `skipped` the entries
    of a folder that are no text files.
    """

    columns: tuple[str, ...]
    rows: Sequence[Row]
    blank: int = 0
    skipped: int = 0


SUFFIXES = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".tab": "tsv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".txt": "text",
    ".md": "text",
}
DOCUMENTS = (".txt", ".md")
JSON_HINT = "Write one JSON object a line, or one array of objects."
FILE_HINT = "Check that it is the right file."


def read_table(path: Path, source: str, file_format: str = "auto") -> Table:
    """The rows of the file or folder at `path`, called `source` in messages.

    `file_format` is jsonl, csv, tsv, parquet, text, text-folder, or auto: by the suffix. Raises
    `DataError` for whatever cannot be read, `ConfigError` for a format that does not exist.
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
        table = READERS[kind](path, source)
    except OSError as error:
        message = f"{source} cannot be read: {error.strerror or error}."
        raise DataError(message, "Check the path and its permissions.") from error
    if not table.rows:
        blank = f", only {table.blank:,} blank lines" if table.blank else ""
        raise DataError(f"{source} holds no record{blank}.", FILE_HINT)
    return table


def kind_of(value: object) -> str:
    """What a value is, in words for a message: "a number", "null"."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), f"a {type(value).__name__}")


def _recognise(path: Path, source: str) -> str:
    if path.is_dir():
        return "text-folder"
    kind = SUFFIXES.get(path.suffix.lower())
    if kind is None:
        what = f"the suffix '{path.suffix}'" if path.suffix else "no suffix"
        hint = f"Set data.format to one of: {', '.join(READERS)}."
        raise DataError(f"{source} has {what}, which tells no format.", hint)
    return kind


def _check_kind(path: Path, source: str, kind: str) -> None:
    if kind == "text-folder":
        if not path.is_dir():
            hint = "Set data.format: text to read a file with a record a line."
            raise DataError(f"{source} is not a folder, which the format text-folder reads.", hint)
    elif path.is_dir():
        hint = "Name a file, or set data.format: text-folder for a folder with a text file a record."
        raise DataError(f"{source} is a folder, but the format {kind} reads one file.", hint)
    elif not path.is_file():
        hint = "Name a file: pipes and devices cannot be read twice the same."
        raise DataError(f"{source} is not a regular file.", hint)


def _read_text(path: Path, source: str) -> str:
    """The whole file as text: UTF-8, a byte-order mark tolerated, no NUL bytes."""
    data = path.read_bytes()
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        at = error.start
        line, byte = data.count(b"\n", 0, at) + 1, at - data.rfind(b"\n", 0, at)
        message = f"{source}, line {line}: invalid UTF-8 at byte {byte} of the line (byte {at + 1} of the file)."
        raise DataError(message, "Convert the file to UTF-8.") from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise DataError(f"{source}, line {line}: a NUL byte.", "It is not a text file, or not in UTF-8.")
    return text.removeprefix("\ufeff")


def _lines(text: str) -> list[str]:
    """Lines end at line feeds alone: JSON and prose may hold the other separators Unicode knows."""
    lines = text.split("\n")
    return [line.removesuffix("\r") for line in (lines if lines[-1] else lines[:-1])]


def _read_jsonl(path: Path, source: str) -> Table:
    text = _read_text(path, source)
    blank = 0
    if text.lstrip()[:1] == "[":
        items = [(f"item {number}", item) for number, item in enumerate(_decode(text, source, 1), 1)]
    else:
        lines = _lines(text)
        filled = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
        items = [(f"line {number}", _decode(line, source, number)) for number, line in filled]
        blank = len(lines) - len(filled)
    for place, item in items:
        if not isinstance(item, dict):
            raise DataError(f"{source}, {place}: {kind_of(item)}, not an object.", JSON_HINT)
    columns = tuple(dict.fromkeys(key for _, item in items for key in item))
    return Table(columns=columns, rows=[Row(place, item) for place, item in items], blank=blank)


def _decode(text: str, source: str, first_line: int) -> Any:
    data = text.encode()
    try:
        return msgspec.json.decode(data)
    except RecursionError as error:
        raise DataError(f"{source}, line {first_line}: JSON is nested too deeply.", JSON_HINT) from error
    except msgspec.DecodeError as error:
        reason, _, byte = str(error).removeprefix("JSON is malformed: ").partition(" (byte ")
        at = int(byte.rstrip(")")) if byte else len(data)
        line = first_line + data.count(b"\n", 0, at)
        column = len(data[data.rfind(b"\n", 0, at) + 1 : at].decode(errors="replace")) + 1
        message = f"{source}, line {line}, column {column}: malformed JSON, {reason.lower()}."
        raise DataError(message, JSON_HINT) from error


def _read_csv(path: Path, source: str) -> Table:
    text = _read_text(path, source)
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    fields: list[tuple[int, list[str]]] = []
    before, limit = 0, csv.field_size_limit(len(text) + 1)  # a record may be longer than the default 128 KiB
    try:
        for row in reader:
            fields.append((before + 1, row))
            before = reader.line_num
    except csv.Error as error:
        message = f"{source}, line {before + 1}: malformed CSV, {error}."
        hint = 'Put texts with commas or line breaks in "quotes", and double the quotes inside.'
        raise DataError(message, hint) from error
    finally:
        csv.field_size_limit(limit)
    return _tabular(fields, source)


def _read_tsv(path: Path, source: str) -> Table:
    # In tab-separated text a quote is a character like any other: no text needs quoting.
    lines = enumerate(_lines(_read_text(path, source)), 1)
    return _tabular([(number, line.split("\t") if line else []) for number, line in lines], source)


def _tabular(fields: Sequence[tuple[int, list[str]]], source: str) -> Table:
    """The table of (line, fields), whose first line names the columns."""
    filled = [(line, row) for line, row in fields if row]
    if not filled:
        raise DataError(f"{source} is empty.", FILE_HINT)
    (header_line, header), *body = filled
    columns = tuple(name.strip() for name in header)
    twice = [name for name in columns if not name or columns.count(name) > 1]
    if twice:
        what = f"two columns are named '{twice[0]}'" if twice[0] else "a column has no name"
        hint = "The first line must name each column once."
        raise DataError(f"{source}, line {header_line}: {what}.", hint)
    rows = []
    for line, row in body:
        if len(row) != len(columns):
            message = f"{source}, line {line}: {len(row)} fields, but the header names {len(columns)} columns."
            raise DataError(message, "A separator or a quote is missing, or one too many.")
        rows.append(Row(f"line {line}", dict(zip(columns, row, strict=True))))
    return Table(columns=columns, rows=rows, blank=len(fields) - len(filled))


def _read_parquet(path: Path, source: str) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(path).read()
        values = table.to_pylist()
    except (pa.ArrowException, UnicodeDecodeError) as error:
        message = f"{source} is not a readable Parquet file: {str(error).rstrip('.')}."
        raise DataError(message, "Is it damaged, or another format? Then set data.format.") from error
    rows = [Row(f"row {number}", value) for number, value in enumerate(values, 1)]
    return Table(columns=tuple(table.column_names), rows=rows)


def _read_lines(path: Path, source: str) -> Table:
    lines = _lines(_read_text(path, source))
    rows = [Row(f"line {number}", {"text": line}) for number, line in enumerate(lines, 1) if line.strip()]
    return Table(columns=("text",), rows=rows, blank=len(lines) - len(rows))


def _read_folder(path: Path, source: str) -> Table:
    entries = sorted(path.iterdir(), key=lambda entry: entry.name)
    files = [entry for entry in entries if entry.suffix.lower() in DOCUMENTS and entry.is_file()]
    if not files:
        hint = "A folder is read as one record a file with the suffix .txt or .md."
        raise DataError(f"{source} holds no text file among its {len(entries):,} entries.", hint)
    texts = [(file.name, _read_text(file, f"{source}/{file.name}")) for file in files]
    rows = [Row(name, {"text": text, "file": name}) for name, text in texts]
    return Table(columns=("text", "file"), rows=rows, skipped=len(entries) - len(files))


READERS = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "parquet": _read_parquet,
    "text": _read_lines,
    "text-folder": _read_folder,
}
