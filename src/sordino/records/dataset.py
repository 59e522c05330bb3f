"""From a data configuration to a data set: ids, units and duplicates, with everything left out counted."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from sordino.errors import ConfigError, DataError
from sordino.records.columns import Held, Rows, pack, records_of, schema
from sordino.records.marked import spans_of
from sordino.records.readers import read_table
from sordino.records.record import DataConfig, Dataset, Record, content_digest, record_id
from sordino.records.saved import hub_name, is_saved, read_hub, read_saved
from sordino.records.shapes import (
    Shape,
    column_value,
    count_extra_keys,
    find_shape,
    label_of,
    rejected_of,
    to_messages,
)
from sordino.records.tables import Row, Table, kind_of
from sordino.results import Notice

__all__ = ["read", "suggest_columns"]

LABELS = ("label", "category", "intent")
UNITS = ("unit", "customer", "patient", "client", "author", "user", "subject", "sender", "speaker")

ID_NAMES = ("id", "record_id", "uuid")


def read(config: DataConfig, base: Path | None = None) -> Dataset:
    """The records that `config` describes; a relative path starts at `base` (default: here).

    Empty records are left out and exact duplicates merged into the first, both counted in notices.
    Raises `DataError` for what cannot be read or used, with its line, and `ConfigError`.
    """
    _check_units(config)
    source = str(config.path)
    table = _open(config, base)
    shape = find_shape(config, table.columns, source)
    collected = _Collector(config=config, source=source, table=table, shape=shape)
    try:
        batches = tuple(pack(collected.records()))
    except OSError as error:
        message = f"{source} cannot be read: {error.strerror or error}."
        raise DataError(message, "Was it moved or changed while it was read?") from error
    if not batches:
        message = f"{source} holds no usable record: all {len(table.rows):,} are empty."
        raise DataError(message, f"They were read as {shape}: are these the right columns?")
    return Dataset(
        records=Rows(Held(batches, schema()), records_of),
        unit_kind=config.unit or (f"rows-of-{config.unit_rows}" if config.unit_rows else "record"),
        notices=_notices(collected),
        source=source,
    )


def _open(config: DataConfig, base: Path | None) -> Table:
    """The table of rows that `config.path` names, wherever it is."""
    name = hub_name(config.path)
    if name is not None:
        return read_hub(name, config)
    path = Path(config.path).expanduser()
    path = path if base is None else base / path
    if config.format in ("auto", "datasets") and is_saved(path):
        return read_saved(path, config.path, config)
    for key in ("subset", "split", "revision"):
        if getattr(config, key) is not None:
            hint = "It is for data sets on the hub (hub:owner/name) or saved with save_to_disk."
            raise ConfigError(f"data.{key} is '{getattr(config, key)}', but {config.path} has none.", hint)
    if config.format == "datasets" and path.exists():
        hint = "Such a folder has a dataset_info.json and a state.json, or a dataset_dict.json."
        raise DataError(f"{config.path} is no data set saved with save_to_disk.", hint)
    return read_table(path, config.path, "auto" if config.format == "datasets" else config.format)


def suggest_columns(path: Path | str, *, labelled: bool = False) -> dict[str, str]:
    """Which columns of the data at `path` fit which key of `data`: the shape, an id, a unit, a label.

    `path` is anything that `data.path` may be. A label is looked for only where the records are to be
    `labelled`. Where no column has a usual name, the one with the longest texts is taken for the text.
    Raises `DataError` for a file that cannot be read or can be read in several ways.
    """
    table = _open(DataConfig(path=str(path)), None)
    if table.columns in (("text",), ("text", "file")):
        return {}
    seen = _look_through(table)
    found = _suggest_shape(table, str(path), seen.letters)
    for name in table.columns if labelled else ():
        if name.lower() in LABELS and name not in found.values():
            found.setdefault("label", name)
    for name in table.columns:
        plain = name.lower().removesuffix("_id").removesuffix(" id")
        if name.lower() in ID_NAMES and len(seen.ids[name]) == len(table.rows):
            found.setdefault("id", name)
        elif plain in UNITS and name not in seen.unfit:
            found.setdefault("unit", name)
    return found


@dataclass(kw_only=True)
class _Seen:
    """What one look at all rows tells of each column: how much text, which ids, and which can be no units."""

    letters: Counter[str] = field(default_factory=Counter)
    ids: dict[str, set[str]] = field(default_factory=dict)
    unfit: set[str] = field(default_factory=set)


def _look_through(table: Table) -> _Seen:
    seen = _Seen(ids={name: set() for name in table.columns if name.lower() in ID_NAMES})
    for row in table.rows:
        for name in table.columns:
            value = row.values.get(name)
            if isinstance(value, str):
                seen.letters[name] += len(value)
            elif not isinstance(value, int):
                seen.unfit.add(name)
            if name in seen.ids:
                seen.ids[name].add(str(value))
    return seen


def _suggest_shape(table: Table, source: str, texts: Counter[str]) -> dict[str, str]:
    usual = {"text", "prompt", "messages", "question", "instruction"} & set(table.columns)
    if not usual and any(texts.values()):
        return {"text": max(table.columns, key=lambda name: texts[name])}
    shape = find_shape(DataConfig(path=source), table.columns, source)
    keys = ("prompt", "completion") if shape.kind == "pair" else (shape.kind,)
    return dict(zip(keys, shape.columns, strict=True))


@dataclass(kw_only=True)
class _Collector:
    """Makes records of rows one after another and knows the earlier ones by digests alone."""

    config: DataConfig
    source: str
    table: Table
    shape: Shape
    kept: int = 0
    empty: int = 0
    merged: int = 0
    shared: int = 0
    extra: Counter[str] = field(default_factory=Counter)
    _ids: dict[bytes, int] = field(default_factory=dict)  # digest of an id -> which of those below it is
    _contents_of: bytearray = field(default_factory=bytearray)  # of each id, the digests of its content and unit
    _units_of: bytearray = field(default_factory=bytearray)
    _rows_of: list[int] = field(default_factory=list)
    _contents: set[bytes] = field(default_factory=set)
    _owned: set[bytes] = field(default_factory=set)  # content and unit together

    def records(self) -> Iterator[Record]:
        """The records, without empty ones and exact duplicates; raises `DataError` for a reused id."""
        config, source = self.config, self.source
        for number, row in enumerate(self.table.rows):
            messages = to_messages(self.shape, row, source)
            count_extra_keys(self.shape, row, self.extra)
            if messages is None:
                self.empty += 1
                continue
            unit = _unit(config, row, number, source)
            label = None if config.label is None else label_of(row, config.label, source)
            rejected = None if config.rejected is None else rejected_of(row, config.rejected, messages, source)
            digest = content_digest(messages, label, rejected)
            if config.id is not None:
                name = _name(row, config.id, source)
                self._check_id(name, name if unit is None else unit, digest, number)
            else:
                name = digest if unit is None else record_id(messages, unit, label, rejected)
            if self._is_new(bytes.fromhex(digest), unit):
                self.kept += 1
                owner = name if unit is None else unit
                spans = () if config.spans is None else spans_of(row, config.spans, messages, source, name)
                yield Record(id=name, messages=messages, unit=owner, label=label, rejected=rejected, spans=spans)

    def _is_new(self, content: bytes, unit: str | None) -> bool:
        """Whether nobody, or no record of this unit, had the content before; it then has."""
        if unit is None:
            known = content in self._contents
        else:
            owned = _digest(unit, content)
            known = owned in self._owned
            self._owned.add(owned)
            self.shared += not known and content in self._contents
        self._contents.add(content)
        self.merged += known
        return not known

    def _check_id(self, name: str, unit: str, digest: str, number: int) -> None:
        at = self._ids.setdefault(_digest(name), len(self._rows_of))
        content, owner = bytes.fromhex(digest), _digest(unit)
        if at == len(self._rows_of):
            self._contents_of += content
            self._units_of += owner
            self._rows_of.append(number)
            return
        known = slice(16 * at, 16 * at + 16)
        same = bytes(self._contents_of[known]) == content
        if not same or bytes(self._units_of[known]) != owner:
            differs = "unit" if same else "content"
            here, first = (self.table.rows[row].place for row in (number, self._rows_of[at]))
            message = f"{self.source}, {here}: the id '{name}' already names the record at {first}"
            hint = "Ids must be unique: choose another id column, or none."
            raise DataError(f"{message}, which has another {differs}.", hint)


def _digest(text: str, more: bytes = b"") -> bytes:
    return hashlib.blake2b(more + text.encode(), digest_size=16).digest()


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


def _notices(collected: _Collector) -> tuple[Notice, ...]:
    config, table, shape, extra = collected.config, collected.table, collected.shape, collected.extra
    extra_keys = sorted(extra)
    read_columns = {*shape.columns, config.id, config.unit, config.label, config.rejected, config.spans}
    unread = [name for name in table.columns if name not in read_columns]
    empty = collected.empty + table.blank
    found = 0 if shape.named or table.columns == ("text",) else collected.kept
    merged, shared = collected.merged, collected.shared
    counted = [
        ("data-shape", found, f"No column was named: records were read as {shape}."),
        ("unread-columns", len(unread), f"Columns not read: {_listed(unread)}."),
        ("unread-keys", sum(extra.values()), f"Messages have keys not read: {_listed(extra_keys)}."),
        ("skipped-files", table.skipped, f"{_counted(table.skipped, *_ENTRIES)} no {table.files}."),
        ("empty-records", empty, f"{_counted(empty, *_EMPTY)} left out."),
        ("duplicates-merged", merged, f"{_counted(merged, *_MERGED)} merged into the first."),
        (
            "shared-content",
            shared,
            f"{shared:,} records repeat the content of another unit: they share a coin.",
        ),
    ]
    return tuple(Notice(kind=kind, count=count, message=text) for kind, count, text in counted if count)


_ENTRIES = ("entry of the folder is", "entries of the folder are")
_EMPTY = ("empty record or blank line was", "empty records or blank lines were")
_MERGED = ("exact duplicate was", "exact duplicates were")


def _counted(count: int, one: str, many: str) -> str:
    return f"{count:,} {one if count == 1 else many}"


def _listed(names: Sequence[str], most: int = 12) -> str:
    rest = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(f"'{name}'" for name in names[:most]) + rest
