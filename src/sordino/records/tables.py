"""Tables of rows with their places, gone through again and again rather than held; and text files line by line."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import overload

from sordino.errors import DataError

__all__ = ["Lazy", "Row", "Table", "blank_lines", "check_text", "kind_of", "read_text", "scanned", "text_lines"]


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


def kind_of(value: object) -> str:
    """What a value is, in words for a message: "a number", "null"."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    if isinstance(value, int | float) and not isinstance(value, bool):
        return "a number"
    return names.get(type(value), f"a {type(value).__name__}")


def check_text(path: Path, source: str) -> None:
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


def read_text(path: Path, source: str) -> str:
    """The whole file as text; a byte-order mark is tolerated."""
    check_text(path, source)
    return path.read_bytes().decode().removeprefix("\ufeff")


def text_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Numbered lines; they end at line feeds alone: JSON and prose may hold the other separators Unicode knows."""
    with path.open(encoding="utf-8-sig", newline="\n") as file:
        for number, line in enumerate(file, 1):
            yield number, line.removesuffix("\n").removesuffix("\r")


def blank_lines(path: Path) -> int:
    """How many lines hold nothing."""
    return sum(not line.strip() for _, line in text_lines(path))
