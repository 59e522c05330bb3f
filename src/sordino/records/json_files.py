"""JSON: one object a line, an array of objects, or an object whose one key has such an array."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec

from sordino.errors import DataError
from sordino.records.tables import Row, Table, blank_lines, check_text, kind_of, read_text, scanned, text_lines

__all__ = ["read_json", "read_jsonl"]

JSON_HINT = "Write one JSON object a line, or one array of objects."


def read_jsonl(path: Path, source: str) -> Table:
    """JSON lines, or an array of objects."""
    check_text(path, source)
    if next((line.lstrip() for _, line in text_lines(path) if line.strip()), "")[:1] == "[":
        return _json_items(path, source, "")

    def rows() -> Iterator[Row]:
        for number, line in text_lines(path):
            if line.strip():
                yield Row(f"line {number}", _object(_decode(line, source, number), f"{source}, line {number}"))

    return scanned(rows, blank=blank_lines(path))


def _object(item: Any, where: str) -> dict[str, object]:
    if not isinstance(item, dict):
        raise DataError(f"{where}: {kind_of(item)}, not an object.", JSON_HINT)
    return item


def read_json(path: Path, source: str) -> Table:
    """JSON lines, an array of objects, or an object whose one key has such an array."""
    check_text(path, source)
    filled = (line for _, line in text_lines(path) if line.strip())
    first, more = next(filled, ""), next(filled, None) is not None
    if first.lstrip()[:1] != "{":
        return read_jsonl(path, source)
    key = _list_key(path, source, first, more)
    return read_jsonl(path, source) if key is None else _json_items(path, source, key)


def _list_key(path: Path, source: str, first: str, more: bool) -> str | None:
    """The key of an object that has a list of records; None where the file is JSON lines."""
    try:
        whole = msgspec.json.decode(first.encode())
        if more:
            return None  # a line is an object, and there are others
    except (msgspec.DecodeError, RecursionError) as error:
        if "truncated" not in str(error):
            return None  # reading it as lines says where it is wrong
        whole = _decode(read_text(path, source), source, 1)
        if len(whole) != 1:
            listed = ", ".join(map(repr, whole))
            message = f"{source} is one object with {len(whole)} keys: {listed}."
            raise DataError(message, f"{JSON_HINT} An object may hold the array under its only key.") from None
    (key, items), *others = whole.items() if isinstance(whole, dict) and whole else [("", None)]
    if others or not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        return None
    # One record on one line may have its messages as its only key.
    return None if not more and all({"role", "content"} <= item.keys() for item in items) else key or None


def _json_items(path: Path, source: str, key: str) -> Table:
    """The objects of the array that is the file, or that is under `key` in it, each decoded when asked for."""
    text = read_text(path, source)
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
