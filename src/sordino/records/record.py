"""What a private text is: messages, records and the units they belong to, and the data set they form."""

import hashlib
import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

from sordino.pii import Span
from sordino.results import Notice

__all__ = ["DataConfig", "Dataset", "Format", "Message", "Record", "content_digest", "record_id", "unit_words"]

Format = Literal["auto", "jsonl", "csv", "tsv", "json", "parquet", "text", "text-folder", "datasets"]


@dataclass(frozen=True)
class Message:
    """One turn: `role` is "text", "prompt", "completion", or a chat role (system, user, assistant, tool)."""

    role: str
    content: str


@dataclass(frozen=True, kw_only=True)
class Record:
    """One training text; `unit` names whom it belongs to: itself, or a patient, customer, author.

    `label` is the class that a classifier learns to give it; `rejected` the answer, in place of its last
    message, that people liked less, which nothing is trained on. `spans` are where personal data stands in it, as
    its owner labelled it: they say something of the content and are no part of it, nor of the id.
    """

    id: str
    messages: tuple[Message, ...]
    unit: str
    label: str | None = None
    rejected: str | None = None
    spans: tuple[Span, ...] = ()


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the records are and which columns hold them.

    A record is read from `text`, or from `prompt` and `completion`, or from `messages` (a list of
    {role, content}); where none is named, the usual names are looked for. `id` names the column of ids
    (default: a digest of the content), `unit` the column of whom a record belongs to (default: each
    record is its own unit); `unit_rows` makes every so many consecutive rows one unit instead. `label`
    names the column of classes, for a classifier; `rejected` that of answers which were liked less than the
    record's own: training is on the record alone, but attacks on preferences read both. `spans` names the column of
    labelled personal data: a list of {entity_type, start, end}, in characters of the text column; of a prompt with
    its completion, or of a chat, each says in which `message` (from 0) it stands.

    `path` is a file, a folder of text files or of shards of one format, a folder that `save_to_disk` of the
    `datasets` library wrote, or a data set on the hub: "hub:owner/name" or "hf://datasets/owner/name", of
    which `subset`, `split` and `revision` choose.
    """

    path: str
    format: Format = "auto"
    text: str | None = None
    prompt: str | None = None
    completion: str | None = None
    messages: str | None = None
    label: str | None = None
    rejected: str | None = None
    spans: str | None = None
    id: str | None = None
    unit: str | None = None
    unit_rows: int | None = None
    subset: str | None = None
    split: str | None = None
    revision: str | None = None


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """Records in file order, which is their age: the oldest first; those that were read wait in columns.

    `unit_kind` is "record", the name of the unit column, or "rows-of-N"; `notices` counts everything
    that was merged or left out; `source` is the path as it was given.
    """

    records: Sequence[Record]
    unit_kind: str
    notices: tuple[Notice, ...]
    source: str

    @cached_property
    def units(self) -> tuple[str, ...]:
        """The ids of the units, oldest first."""
        return tuple(dict.fromkeys(record.unit for record in self.records))

    @cached_property
    def fingerprint(self) -> str:
        """A blake2b-256 hex digest of the set of (id, unit, content digest); the order does not matter."""
        from sordino.records.columns import sorted_rows

        digest = hashlib.blake2b(b"[", digest_size=32, person=b"sordino-dataset")
        for number, rows in enumerate(sorted_rows(self.records)):
            digest.update(b"," * (number > 0) + _json(rows)[1:-1])
        digest.update(b"]")
        return digest.hexdigest()


def unit_words(kind: str) -> str:
    """A kind of unit as a person reads it: "record", "customer", "20 consecutive rows"."""
    name, _, count = kind.partition("-of-")
    return f"{count} consecutive rows" if name == "rows" and count.isdecimal() else kind


def content_digest(messages: Sequence[Message], label: str | None = None, rejected: str | None = None) -> str:
    """The blake2b-128 hex digest of the canonical content of `messages`, of the `label` and of what was `rejected`.

    Canonical content is the UTF-8 JSON text, without blanks, of [[role, content], ...], each content in
    Unicode normal form C: texts that differ only in how accents are composed are the same text. With a
    label it is [that list, label], with a rejected answer [that list, label or null, answer].
    """
    content: list[object] = [*_canonical(messages)]
    # A list of pairs, or a list of that list and one or two more: no content with a label equals one without.
    parts: list[object] = content if label is None else [content, label]
    if rejected is not None:
        parts = [content, label, unicodedata.normalize("NFC", rejected)]
    return hashlib.blake2b(_json(parts), digest_size=16).hexdigest()


def record_id(
    messages: Sequence[Message], unit: str | None = None, label: str | None = None, rejected: str | None = None
) -> str:
    """The id of a record that has none of its own: its content digest.

    Where the caller names units, the `unit` is digested too: the same text in the hands of two units
    is two records.
    """
    if unit is None:
        return content_digest(messages, label, rejected)
    parts: list[object] = [unit, _canonical(messages), *([] if label is None else [label])]
    if rejected is not None:
        parts = [unit, _canonical(messages), label, unicodedata.normalize("NFC", rejected)]
    return hashlib.blake2b(_json(parts), digest_size=16).hexdigest()


def _canonical(messages: Sequence[Message]) -> list[list[str]]:
    return [[message.role, unicodedata.normalize("NFC", message.content)] for message in messages]


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
