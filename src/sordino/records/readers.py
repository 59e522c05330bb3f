"""From a file to rows of named values, each with its place in the file: JSON, CSV, TSV, Parquet, plain text.

Reading is strict: a file that is not what it says raises `DataError` with the line, and no row is skipped.
A file is gone through once to check it, and again whenever its rows are: no more than one is held.
"""

import csv
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, overload

import msgspec

from sordino.errors import ConfigError, DataError, did_you_mean

__all__ = ["Lazy", "Row", "Table", "kind_of", "read_table", "scanned"]


@dataclass(frozen=True, slots=True)
class Row:
    """The values of one row by column, and its `place` as a person finds it: "line 12"."""

    place: str
    values: Mapping[str, object]


class Lazy(Sequence[Row]):
    """Rows that are read from the start whenever somebody goes through them; `size` is how many there are."""

    def __init__(self, read: Callable[[], Iterator[Row]], size: int) -> None:
        """See the class."""
        self.read, self.size = read, size

    def __len__(self) -> int:
        """The number of rows."""
        return self.size

    @overload
    def __getitem__(self, at: int) -> Row: ...
    @overload
    def __getitem__(self, at: slice) -> list[Row]: ...
    def __getitem__(self, at: int | slice) -> Row | list[Row]:
        """One row, or a list of those of a slice; all before it are read too."""
        if isinstance(at, slice):
            return list(self)[at]
        return next(itertools.islice(self, range(self.size)[at], None))

    def __iter__(self) -> Iterator[Row]:
        """Read the rows, one after another."""
        return self.read()


@dataclass(frozen=True, kw_only=True)
class Table:
    """All rows of a file in their order.

    `columns` has every column of any row; `blank` counts lines that hold nothing, `skipped` the entries
    of a folder that are no `files`.
    """

    columns: tuple[str, ...]
    rows: Sequence[Row]
    blank: int = 0
    skipped: int = 0
    files: str = "text files"


def scanned(read: Callable[[], Iterator[Row]], columns: Sequence[str] = (), blank: int = 0) -> Table:
    """The table of the rows that `read` gives, gone through once for their columns, unless named, and number."""
    names = dict.fromkeys(columns)
    count = 0
    for row in read():
        if not columns:
            names.update(dict.fromkeys(row.values))
        count += 1
    return Table(columns=tuple(names), rows=Lazy(read, count), blank=blank)


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
JSON_HINT = "Write one JSON object a line, or one array of objects."
FILE_HINT = "Check that it is the right file."
BATCH = 1024


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


def _check_text(path: Path, source: str) -> None:
    """Refuse what is not UTF-8, or holds a NUL byte."""
    offset, nul = 0, 0
    with path.open("rb") as file:
        for line, data in enumerate(file, 1):
            try:
                data.decode()
            except UnicodeDecodeError as error:
                byte = error.start + 1
                where = f"invalid UTF-8 at byte {byte} of the line (byte {offset + byte} of the file)."
                raise DataError(f"{source}, line {line}: {where}", "Convert the file to UTF-8.") from error
            if not nul and b"\0" in data:
                nul = line
            offset += len(data)
    if nul:
        raise DataError(f"{source}, line {nul}: a NUL byte.", "It is not a text file, or not in UTF-8.")


def _read_text(path: Path, source: str) -> str:
    """The whole file as text; a byte-order mark is tolerated."""
    _check_text(path, source)
    return path.read_bytes().decode().removeprefix("\ufeff")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines; they end at line feeds alone: JSON and prose may hold the other separators Unicode knows."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            yield number, line.removesuffix("\n").removesuffix("\r")


def _blank_lines(path: Path) -> int:
    return sum(not line.strip() for _, line in _lines(path))


def _read_jsonl(path: Path, source: str) -> Table:
    _check_text(path, source)
    if next((line.lstrip() for _, line in _lines(path) if line.strip()), "")[:1] == "[":
        return _json_items(path, source, "")

    def rows() -> Iterator[Row]:
        for number, line in _lines(path):
            if line.strip():
                yield Row(f"line {number}", _object(_decode(line, source, number), f"{source}, line {number}"))

    return scanned(rows, blank=_blank_lines(path))


def _object(item: Any, where: str) -> dict[str, object]:
    if not isinstance(item, dict):
        raise DataError(f"{where}: {kind_of(item)}, not an object.", JSON_HINT)
    return item


def _read_json(path: Path, source: str) -> Table:
    """JSON lines, an array of objects, or an object whose one key has such an array."""
    _check_text(path, source)
    filled = (line for _, line in _lines(path) if line.strip())
    first, more = next(filled, ""), next(filled, None) is not None
    if first.lstrip()[:1] != "{":
        return _read_jsonl(path, source)
    key = _list_key(path, source, first, more)
    return _read_jsonl(path, source) if key is None else _json_items(path, source, key)


def _list_key(path: Path, source: str, first: str, more: bool) -> str | None:
    """The key of an object that has a list of records; None where the file is JSON lines."""
    try:
        whole = msgspec.json.decode(first.encode())
        if more:
            return None  # a line is an object, and there are others
    except (msgspec.DecodeError, RecursionError):
        text = _read_text(path, source)
        try:
            msgspec.json.decode(text.encode(), type=dict[str, msgspec.Raw])
        except msgspec.DecodeError:
            return None  # neither lines nor one object: reading it as lines says where
        whole = _decode(text, source, 1)
        if len(whole) != 1:
            listed = ", ".join(map(repr, whole))
            message = f"{source} is one object with {len(whole)} keys: {listed}."
            raise DataError(message, f"{JSON_HINT} An object may hold the array under its only key.") from None
    (key, items), *others = whole.items() if isinstance(whole, dict) and whole else [("", None)]
    if others or not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    # One record on one line may have its messages as its only key.
    return None if not more and all({"role", "content"} <= item.keys() for item in items) else key


def _json_items(path: Path, source: str, key: str) -> Table:
    """The objects of the array that is the file, or that is under `key` in it, each decoded when asked for."""
    text = _read_text(path, source)
    kind: Any = dict[str, list[msgspec.Raw]] if key else list[msgspec.Raw]
    try:
        found = msgspec.json.decode(text.encode(), type=kind)
        items = found[key] if key else found
        for item in items:
            msgspec.json.decode(item)
    except (msgspec.DecodeError, RecursionError):
        # Decoded as a whole, to be told where it is wrong.
        _decode(text, source, 1)
        raise

    def rows() -> Iterator[Row]:
        for number, item in enumerate(items, 1):
            yield Row(f"item {number}", _object(msgspec.json.decode(item), f"{source}, item {number}"))

    return scanned(rows)


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
    _check_text(path, source)
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
    _check_text(path, source)
    return _tabular(lambda: ((n, line.split("\t") if line else []) for n, line in _lines(path)), source)


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
    _check_text(path, source)

    def rows() -> Iterator[Row]:
        return (Row(f"line {number}", {"text": line}) for number, line in _lines(path) if line.strip())

    return scanned(rows, ("text",), blank=_blank_lines(path))


def _read_folder(path: Path, source: str) -> Table:
    entries = sorted(path.iterdir(), key=lambda entry: entry.name)
    files = [entry for entry in entries if entry.suffix.lower() in DOCUMENTS and entry.is_file()]
    if not files:
        hint = "A folder is read as one record a file with the suffix .txt or .md."
        raise DataError(f"{source} holds no text file among its {len(entries):,} entries.", hint)

    def rows() -> Iterator[Row]:
        for file in files:
            yield Row(file.name, {"text": _read_text(file, f"{source}/{file.name}"), "file": file.name})

    return replace(scanned(rows, ("text", "file")), skipped=len(entries) - len(files))


READERS = {
    "jsonl": _read_jsonl,
    "csv": _read_csv,
    "tsv": _read_tsv,
    "json": _read_json,
    "parquet": _read_parquet,
    "text": _read_lines,
    "text-folder": _read_folder,
}
