"""From a data configuration to a data set: ids, units and duplicates, with everything left out counted."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sordino.errors import ConfigError, DataError
from sordino.records.readers import Row, Table, kind_of, read_table
from sordino.records.record import DataConfig, Dataset, Record, content_digest, record_id
from sordino.records.shapes import Shape, column_value, count_extra_keys, find_shape, label_of, to_messages
from sordino.results import Notice

__all__ = ["read", "suggest_columns"]

LABELS = ("label", "category", "intent")
UNITS = ("unit", "customer", "patient", "client", "author", "user", "subject", "sender", "speaker")


def read(config: DataConfig, base: Path | None = None) -> Dataset:
    """The records that `config` describes; a relative path starts at `base` (default: here).

    Empty records are left out and exact duplicates merged into the first, both counted in notices.
    Raises `DataError` for what cannot be read or used, with its line, and `ConfigError`.
    """
    _check_units(config)
    source = str(config.path)
    path = Path(config.path).expanduser()
    table = read_table(path if base is None else base / path, source, config.format)
    shape = find_shape(config, table.columns, source)
    collected = _Collector(source=source, by_record=config.unit is None and config.unit_rows is None)
    for number, row in enumerate(table.rows):
        messages = to_messages(shape, row, source)
        if messages is None:
            collected.empty += 1
            continue
        unit = _unit(config, row, number, source)
        own = None if config.id is None else _name(row, config.id, source)
        label = None if config.label is None else label_of(row, config.label, source)
        name = record_id(messages, unit, label) if own is None else own
        record = Record(id=name, messages=messages, unit=name if unit is None else unit, label=label)
        collected.add(record, row.place)
    if not collected.records:
        message = f"{source} holds no usable record: all {len(table.rows):,} are empty."
        raise DataError(message, f"They were read as {shape}: are these the right columns?")
    return Dataset(
        records=tuple(collected.records),
        unit_kind=config.unit or (f"rows-of-{config.unit_rows}" if config.unit_rows else "record"),
        notices=_notices(config, table, shape, collected),
        source=source,
    )


def suggest_columns(path: Path, *, labelled: bool = False) -> dict[str, str]:
    """Which columns of the file at `path` fit which key of `data`: the shape, an id, a unit, a label.

    A label is looked for only where the records are to be `labelled`. Where no column has a usual name,
    the one with the longest texts is taken for the text. Raises `DataError` for a file that cannot be
    read or can be read in several ways.
    """
    table = read_table(Path(path), str(path))
    if table.columns in (("text",), ("text", "file")):
        return {}
    found = _suggest_shape(table, str(path))
    for name in table.columns if labelled else ():
        if name.lower() in LABELS and name not in found.values():
            found.setdefault("label", name)
    for name in table.columns:
        plain = name.lower().removesuffix("_id").removesuffix(" id")
        values = [row.values.get(name) for row in table.rows]
        if name.lower() in ("id", "record_id", "uuid") and len({str(v) for v in values}) == len(values):
            found.setdefault("id", name)
        elif plain in UNITS and all(isinstance(v, str | int) for v in values):
            found.setdefault("unit", name)
    return found


def _suggest_shape(table: Table, source: str) -> dict[str, str]:
    texts = {
        name: sum(len(v) for row in table.rows if isinstance(v := row.values.get(name), str)) for name in table.columns
    }
    usual = {"text", "prompt", "messages", "question", "instruction"} & set(table.columns)
    if not usual and any(texts.values()):
        return {"text": max(texts, key=lambda name: texts[name])}
    shape = find_shape(DataConfig(path=source), table.columns, source)
    keys = ("prompt", "completion") if shape.kind == "pair" else (shape.kind,)
    return dict(zip(keys, shape.columns, strict=True))


@dataclass(kw_only=True)
class _Collector:
    """The records so far and where they stand, by id and by content."""

    source: str
    by_record: bool
    records: list[Record] = field(default_factory=list)
    empty: int = 0
    merged: int = 0
    shared: int = 0
    _ids: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    _contents: dict[str, set[str]] = field(default_factory=dict)

    def add(self, record: Record, place: str) -> None:
        """Append `record`, or merge it into its exact duplicate; raises `DataError` for a reused id."""
        digest = content_digest(record.messages, record.label)
        unit, other, first = self._ids.setdefault(record.id, (record.unit, digest, place))
        if (unit, other) != (record.unit, digest):
            differs = "content" if other != digest else "unit"
            message = f"{self.source}, {place}: the id '{record.id}' already names the record at {first}"
            hint = "Ids must be unique: choose another id column, or none."
            raise DataError(f"{message}, which has another {differs}.", hint)
        units = self._contents.setdefault(digest, set())
        if record.unit in units or (self.by_record and units):
            self.merged += 1
            return
        self.shared += bool(units)
        units.add(record.unit)
        self.records.append(record)


def _check_units(config: DataConfig) -> None:
    if config.unit is not None and config.unit_rows is not None:
        message = f"data.unit ('{config.unit}') and data.unit_rows ({config.unit_rows}) are both set."
        raise ConfigError(message, "Keep the one that says whom a record belongs to.")
    if config.unit_rows is not None and config.unit_rows < 1:
        hint = "Set how many consecutive rows form a unit."
        raise ConfigError(f"data.unit_rows is {config.unit_rows}.", hint)


def _unit(config: DataConfig, row: Row, number: int, source: str) -> str | None:
    if config.unit_rows is not None:
        first = number - number % config.unit_rows + 1
        return f"rows-{first}-{first + config.unit_rows - 1}"
    return None if config.unit is None else _name(row, config.unit, source)


def _name(row: Row, column: str, source: str) -> str:
    """The id in `column`: a text that is not blank, or a whole number."""
    value = column_value(row, column, source)
    if isinstance(value, bool) or not isinstance(value, str | int):
        where = f"{source}, {row.place}: column '{column}'"
        hint = "Ids and units are texts or whole numbers, and every record needs them."
        raise DataError(f"{where} is {kind_of(value)}.", hint)
    name = str(value)
    if not name.isascii() and name != name.encode(errors="replace").decode():
        message = f"{source}, {row.place!r}: column '{column}' is not valid Unicode."
        raise DataError(message, "Rename the file in UTF-8.")  # only names of files can be so
    if not name.strip() or "\0" in name:
        hint = "Every record needs its id and its unit."
        raise DataError(f"{source}, {row.place}: column '{column}' is blank.", hint)
    return name


def _notices(config: DataConfig, table: Table, shape: Shape, collected: _Collector) -> tuple[Notice, ...]:
    read_columns = {*shape.columns, config.id, config.unit, config.label}
    unread = [name for name in table.columns if name not in read_columns]
    extra = count_extra_keys(shape, table.rows)
    empty = collected.empty + table.blank
    found = 0 if shape.named or table.columns == ("text",) else len(collected.records)
    merged, shared = collected.merged, collected.shared
    counted = [
        ("data-shape", found, f"No column was named: records were read as {shape}."),
        ("unread-columns", len(unread), f"Columns not read: {_listed(unread)}."),
        ("unread-keys", sum(extra.values()), f"Messages have keys not read: {_listed(list(extra))}."),
        ("skipped-files", table.skipped, f"{table.skipped:,} entries of the folder are no text files."),
        ("empty-records", empty, f"{empty:,} empty records or blank lines were left out."),
        ("duplicates-merged", merged, f"{merged:,} exact duplicates were merged into the first."),
        (
            "shared-content",
            shared,
            f"{shared:,} records repeat the content of another unit: they share a coin.",
        ),
    ]
    return tuple(Notice(kind=kind, count=count, message=text) for kind, count, text in counted if count)


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + rest
