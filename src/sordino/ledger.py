"""The privacy ledger of a run: what it planned to spend, and a journal of every step that was begun.

ε is never stored as the truth: the ledger keeps the event of one step and how often it happened, from which
ε is computed again, also together with other runs on the same data.
"""

import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import msgspec

from sordino.errors import RunError
from sordino.results import decode, encode
from sordino.run import disk_errors, write_atomic

__all__ = ["Entry", "Journal", "read_ledger", "started_in", "write_ledger"]

_SCHEMA = 1
# What a start is on disk. A crash of the machine can leave zeros where a line was about to be.
_START = re.compile(rb"[0-9\x00]*")


class Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """One mechanism that spent ε on the data with `fingerprint`.

    `unit` is what is protected (record, subject, cluster), `relation` which data sets are neighbours;
    `mechanism` the settings, for people; `step_event` the event of ONE step as `dp.events.encode_event` writes
    it, or of as many steps as `mechanism["steps_per_event"]` says. `started` counts steps that were begun,
    finished or not. With `secret_recorded_seed`, sampling and noise came from a seed that was set: the guarantee
    then assumes that the seed stays secret. `warnings` say what else came out of the run that is not covered.
    """

    id: str
    run: str
    created: str
    fingerprint: str
    unit: str
    relation: Literal["add-or-remove-one", "replace-one"]
    delta: float
    mechanism: dict[str, Any]
    step_event: dict[str, Any]
    planned: int
    started: int
    status: Literal["running", "finished", "stopped"]
    secret_recorded_seed: bool
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what cannot have been: raises `ValueError`."""
        if not 0 < self.delta < 1:
            raise ValueError(f"`delta` is {self.delta}, not in (0, 1)")
        if min(self.planned, self.started) < 0:
            raise ValueError(f"there are {self.planned} planned and {self.started} started steps")
        if self.status == "finished" and self.started < self.planned:
            raise ValueError(f"it is finished after {self.started} of {self.planned} steps")
        covered = self.mechanism.get("steps_per_event", 1)
        if not isinstance(covered, int) or isinstance(covered, bool) or covered < 1:
            raise ValueError(f"its event covers {covered!r} steps")

    def events(self, steps: int) -> int:
        """How often `step_event` happens in `steps` steps: once that it covers were begun, it counts as a whole."""
        return -(-steps // int(self.mechanism.get("steps_per_event", 1)))


class _Ledger(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    schema: int
    entries: tuple[Entry, ...]


def read_ledger(path: Path) -> tuple[Entry, ...]:
    """The entries of `ledger.json`; raises `RunError` where it is missing, damaged, or of another schema."""
    hint = "Restore it: without it, nothing says what this run spent."
    if not path.exists():
        raise RunError(f"There is no ledger at {path}.", hint)
    ledger = decode(path.read_bytes(), _Ledger, str(path))
    if ledger.schema != _SCHEMA:
        message = f"{path} has schema {ledger.schema}; this Sordino reads schema {_SCHEMA}."
        raise RunError(message, "Use the version of Sordino that wrote it.")
    ids = [entry.id for entry in ledger.entries]
    if len(set(ids)) < len(ids):
        raise RunError(f"{path} is damaged: it has {len(ids)} entries, but {len(set(ids))} ids.", hint)
    return ledger.entries


def write_ledger(path: Path, entries: Iterable[Entry]) -> None:
    """Write `ledger.json`: after a crash it holds the old entries or the new, never a part.

    Raises `RunError` for entries that no one could tell apart, or that could not be read again.
    """
    kept = tuple(entries)
    ids = [entry.id for entry in kept]
    if len(set(ids)) < len(ids):
        raise RunError(f"The ledger at {path} would have {len(ids)} entries, but {len(set(ids))} ids.", "Rename one.")
    write_atomic(path, encode(_Ledger(schema=_SCHEMA, entries=kept)))


class Journal:
    """Every step that was begun, on disk before it is taken: a crash may cost ε, but never hides it.

    An append-only text file, a line a start. A step that is taken again after a crash is a start of its
    own. Whoever writes holds the run's lock. Raises `RunError` where the file is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._started = started_in(path)
        with disk_errors(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
            size = os.fstat(self._file).st_size
            # A line that a crash tore is closed by the next start, so that each has a line of its own.
            self._torn = size > 0 and os.pread(self._file, 1, size - 1) != b"\n"
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)

    @property
    def started(self) -> int:
        """How many steps were begun, as the file says; a torn last line is one of them."""
        return self._started

    def start(self, step: int) -> None:
        """Put on disk that `step` begins; when this returns, it may be taken."""
        data = b"\n" * self._torn + b"%d\n" % step
        self._started, self._torn = self._started + 1, True  # where writing fails, a part may be there
        with disk_errors(self._path):
            while data:
                data = data[os.write(self._file, data) :]
            os.fsync(self._file)
        self._torn = False

    def close(self) -> None:
        """Close the file; every start is on disk already."""
        os.close(self._file)


def started_in(path: Path) -> int:
    """How many steps the journal at `path` says were begun; raises `RunError` where it is damaged."""
    if not path.exists():
        return 0
    lines = path.read_bytes().split(b"\n")
    if not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines, 1):
        if not _START.fullmatch(line):
            message = f"{path} is damaged: line {number} is {line[:40]!r}, not the number of a step."
            raise RunError(message, "Restore it: without it, nothing says how many steps were taken.")
    return len(lines)
