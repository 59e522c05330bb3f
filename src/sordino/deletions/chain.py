"""An append-only file of lines, each with the digest of all before it: what was changed afterwards is noticed.

A line is on disk before `append` returns. One that a crash tore is closed by the next, which says how many it closes,
and counts for nothing: nobody was told that it was written. `head.json` has the number of lines and the last digest, so
that lines which were cut off at the end are missed; it may be one line behind, where a crash came between the two.

The digests are keyed with the salt of the folder. They show what was edited, removed or put in another order by
whoever does not go on to compute all of them, and the head, anew.
"""

import fcntl
import hashlib
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import Any

import msgspec

from sordino.errors import RunError
from sordino.results import decode, encode
from sordino.run import disk_errors, write_atomic

__all__ = ["Chain", "Entry"]

_SALT, _LEDGER, _HEAD, _LOCK = "salt", "ledger.jsonl", "head.json", ".lock"
_RESTORE = "Restore the folder from a copy: without it, nothing says what was deleted."


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One line: its `number` from 1, what happened to which request, and the digest of all lines `before`.

    `closes` counts torn lines right before it.
    """

    number: int
    before: str
    time: str
    request: str
    state: str
    data: dict[str, Any] = {}
    closes: int = 0


class _Head(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    entries: int
    digest: str


@dataclass(frozen=True)
class _Read:
    """The entries, the digest over all lines up to the last of them, torn lines after it, and whether one is open."""

    entries: tuple[Entry, ...]
    digests: tuple[str, ...]
    torn: tuple[bytes, ...]
    open: bool


class Chain:
    """The chained file in `folder`, which is made, for its owner alone, when the first line is written."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.path = folder / _LEDGER

    @property
    def exists(self) -> bool:
        """Whether anything was ever written."""
        return self.path.exists()

    @cached_property
    def salt(self) -> bytes:
        """32 random bytes that are drawn once for the folder; raises `RunError` where they are gone or damaged."""
        path = self.folder / _SALT
        try:
            salt = bytes.fromhex(path.read_text())
        except (OSError, ValueError) as error:
            raise RunError(f"{path} holds no salt ({type(error).__name__}).", _RESTORE) from error
        if len(salt) != 32:
            raise RunError(f"{path} holds {len(salt)} bytes, not a salt of 32.", _RESTORE)
        return salt

    def entries(self) -> tuple[Entry, ...]:
        """All lines, oldest first; raises `RunError` where one was edited, removed or put elsewhere."""
        if not self.exists:
            if (self.folder / _HEAD).exists():
                raise RunError(f"{self.path} was removed.", _RESTORE)
            return ()
        with self._locked(fcntl.LOCK_SH):
            return self._read().entries

    @contextmanager
    def writing(self) -> Iterator[tuple[Entry, ...]]:
        """Hold the file for writing, for as long as others write, if need be; gives all lines so far."""
        with disk_errors(self.folder):
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            # A folder that something else made beforehand, or that a umask opened.
            self.folder.chmod(0o700)
        with self._locked(fcntl.LOCK_EX):
            if not (self.folder / _SALT).exists() and not self._data():
                write_atomic(self.folder / _SALT, secrets.token_hex(32).encode(), mode=0o600)
            if not self.exists and (self.folder / _HEAD).exists():
                raise RunError(f"{self.path} was removed.", _RESTORE)
            yield self._read().entries

    def append(self, request: str, state: str, data: Mapping[str, Any]) -> Entry:
        """Put one line on disk; whoever calls holds the file by `writing`."""
        found = self._read()
        entry = Entry(
            number=len(found.entries) + 1,
            before=self._digest(found.digests[-1] if found.digests else "", *found.torn),
            time=datetime.now(UTC).isoformat(timespec="milliseconds"),
            request=request,
            state=state,
            data=dict(data),
            closes=len(found.torn),
        )
        line = msgspec.json.encode(entry)
        with disk_errors(self.path):
            _put(self.path, b"\n" * found.open + line + b"\n")
        head = _Head(entries=entry.number, digest=self._digest(entry.before, line))
        write_atomic(self.folder / _HEAD, encode(head), mode=0o600)
        return entry

    @contextmanager
    def _locked(self, how: int) -> Iterator[None]:
        handle = os.open(self.folder / _LOCK, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(handle, how)
            yield
        finally:
            os.close(handle)

    def _data(self) -> bytes:
        return self.path.read_bytes() if self.exists else b""

    def _digest(self, before: str, *lines: bytes) -> str:
        for line in lines:
            before = hashlib.blake2b(before.encode() + line, digest_size=32, key=self.salt).hexdigest()
        return before

    def _read(self) -> _Read:
        *lines, rest = self._data().split(b"\n")
        parsed = [_parsed(line) for line in lines]
        # A line says how many before it are torn, so they are told apart from the end.
        valid, at, torn = [], len(lines) - 1, 0
        while at >= 0 and parsed[at] is None:
            at, torn = at - 1, torn + 1
        while at >= 0:
            valid.append(at)
            entry = parsed[at]
            at -= 1 + (entry.closes if entry is not None and 0 <= entry.closes <= at else 0)
        entries: list[Entry] = []
        digests: list[str] = []
        before, start = "", 0
        for place in reversed(valid):
            entry = parsed[place]
            before = self._digest(before, *lines[start:place])
            if entry is None or (entry.before, entry.number, entry.closes) != (before, len(entries) + 1, place - start):
                message = (
                    f"{self.path} was changed after it was written: line {place + 1} does not follow those before."
                )
                raise RunError(message, _RESTORE)
            before, start = self._digest(before, lines[place]), place + 1
            entries.append(entry)
            digests.append(before)
        self._check_head(digests)
        open_ = (rest,) if rest else ()
        return _Read(tuple(entries), tuple(digests), (*lines[len(lines) - torn :], *open_), bool(rest))

    def _check_head(self, digests: list[str]) -> None:
        path = self.folder / _HEAD
        head = decode(path.read_bytes(), _Head, str(path)) if path.exists() else _Head(entries=0, digest="")
        behind = len(digests) - head.entries
        if behind not in (0, 1):
            lines = f"{self.path} has {len(digests)} whole lines, and {path.name} tells of {head.entries}"
            raise RunError(f"{lines}: lines were removed.", _RESTORE)
        if head.entries and digests[head.entries - 1] != head.digest:
            message = (
                f"{self.path} was changed after it was written: line {head.entries} is another than {path.name} tells."
            )
            raise RunError(message, _RESTORE)


def _parsed(line: bytes) -> Entry | None:
    try:
        return msgspec.json.decode(line, type=Entry)
    except (msgspec.DecodeError, msgspec.ValidationError, UnicodeDecodeError):
        return None


def _put(path: Path, data: bytes) -> None:
    """Append `data`; it is on disk, and so is the name of the file, when this returns."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        while data:
            data = data[os.write(handle, data) :]
        os.fsync(handle)
    finally:
        os.close(handle)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
