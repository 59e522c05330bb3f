"""The run folder: what is in it, and writing it so that nothing is ever half there."""

import errno
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sordino.errors import RunError, TrainingError
from sordino.results import SCHEMA, AuditReport, RunCard, decode, encode

__all__ = ["Run", "disk_errors", "write_atomic", "write_folder"]


_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once the folder that holds the name has been flushed as well.
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """Turn a full disk, while `path` is written, into a `TrainingError` that says so."""
    try:
        yield
    except Exception as error:
        # safetensors reports a full disk with an error of its own, which only its text tells apart.
        full = any(os.strerror(code).lower() in str(error).lower() for code in _FULL)
        if not full and getattr(error, "errno", None) not in _FULL:
            raise
        message = f"The disk is full: {path} could not be written."
        hint = "Free some space; an interrupted training goes on with `sordino train --resume RUN`."
        raise TrainingError(message, hint) from error


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Write `data` so that `path` holds either its old content or all of the new, even after a crash."""
    with disk_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            temporary.chmod(mode)
            temporary.replace(path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


@contextmanager
def write_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well, and vanishes when it does not."""
    with disk_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
        old = None
        try:
            yield temporary
            for file in (p for p in temporary.rglob("*") if p.is_file()):
                with file.open("rb") as opened:
                    os.fsync(opened.fileno())
            _sync_folder(temporary)
            if path.exists():
                # A folder cannot be replaced in one step: the old one steps aside, then goes.
                old = path.with_name(f".{path.name}.old")
                shutil.rmtree(old, ignore_errors=True)
                path.rename(old)
            temporary.rename(path)
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            if old is not None and not path.exists():
                old.rename(path)
            raise
        _sync_folder(path.parent)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)


@dataclass(frozen=True)
class Run:
    """A run folder; `Run.create` makes one, `Run.open` finds one.

    run.json, audit.json, attacks/, weights/, events.jsonl and report.html may be shown;
    private/ (mode 700) may not: records and membership, losses, checkpoints, signals, scores.
    """

    path: Path

    @classmethod
    def create(cls, root: Path, name: str, key: str) -> "Run":
        """Make `root/DATE-name-KEY`, with a number after it where that is taken already."""
        stem = f"{datetime.now(UTC):%Y-%m-%d}-{name}-{key[:4]}"
        for number in range(1, 10_000):
            path = root / (stem if number == 1 else f"{stem}-{number}")
            with suppress(FileExistsError), disk_errors(path):
                path.mkdir(parents=True)
                (path / "private").mkdir(mode=0o700)
                return cls(path)
        raise RunError(f"{root / stem} and 9,999 names like it are taken.", "Choose another `name`.")

    @classmethod
    def open(cls, path: Path | str) -> "Run":
        """The run at `path`; raises `RunError` where there is none."""
        folder = Path(path)
        if not folder.exists():
            near = sorted(p.name for p in folder.parent.glob("*/run.json")) if folder.parent.exists() else []
            hint = "`sordino train run.yaml` makes one." if not near else f"There are {len(near)} runs there."
            raise RunError(f"There is no run at {folder}.", hint)
        if not (folder / "run.json").exists():
            raise RunError(
                f"{folder} is not a run folder: it has no run.json.",
                "Give the folder that `sordino train` named when it ended.",
            )
        return cls(folder)

    @property
    def private(self) -> Path:
        """The part that holds private data and secrets."""
        return self.path / "private"

    @property
    def weights(self) -> Path:
        """The fine-tuned weights: a PEFT adapter or a full model."""
        return self.path / "weights"

    @property
    def checkpoints(self) -> Path:
        """Checkpoints: weights, optimizer and random state, written together."""
        return self.private / "checkpoints"

    @property
    def records(self) -> Path:
        """The prepared records with roles, coins and groups."""
        return self.private / "records.parquet"

    @property
    def card(self) -> RunCard:
        """`run.json`; raises `RunError` where it is damaged or of another schema."""
        data = (self.path / "run.json").read_bytes()
        try:
            schema = json.loads(data).get("schema")
        except (ValueError, AttributeError) as error:
            raise RunError(f"{self.path / 'run.json'} is damaged: {error}.", "Restore it.") from error
        if schema != SCHEMA:
            message = f"{self.path} has schema {schema!r}; this Sordino reads schema {SCHEMA}."
            raise RunError(message, "Use the version of Sordino that wrote it.")
        return decode(data, RunCard, str(self.path / "run.json"))

    def write_card(self, card: RunCard) -> None:
        """Write `run.json`."""
        write_atomic(self.path / "run.json", encode(card))

    @property
    def audit(self) -> AuditReport:
        """`audit.json`; raises `RunError` where the run was not audited yet."""
        path = self.path / "audit.json"
        if not path.exists():
            raise RunError(f"{self.path} has not been audited.", f"Run `sordino audit {self.path}` first.")
        return decode(path.read_bytes(), AuditReport, str(path))

    def write_audit(self, report: AuditReport) -> None:
        """Write `audit.json` and one aggregate file an attack."""
        folder = self.path / "attacks"
        folder.mkdir(exist_ok=True)
        for attempt in report.attempts:
            write_atomic(folder / f"{attempt.name}.json", encode(attempt))
        write_atomic(self.path / "audit.json", encode(report))

    def write_private(self, name: str, data: bytes) -> Path:
        """Write a file under private/, readable by its owner only."""
        path = self.private / name
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomic(path, data, mode=0o600)
        return path

    def event(self, kind: str, **values: Any) -> None:
        """Append one line to events.jsonl."""
        line = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), "event": kind, **values}
        with disk_errors(self.path), (self.path / "events.jsonl").open("a") as file:
            file.write(json.dumps(line) + "\n")

    def tidy(self) -> None:
        """Remove what a killed process left half written: names as `write_atomic` and `write_folder` make them."""
        ours = ("run.json", "audit.json", "in-context.json", "report.html", "weights")
        for leftover in (path for name in ours for path in self.path.glob(f".{name}.*")):
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                leftover.unlink(missing_ok=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run for writing; raises `RunError` where another process does."""
        if not self.private.is_dir():
            message = f"{self.path} has no folder private/: it can be read, but not trained or audited."
            raise RunError(message, "Use the run folder as training left it.")
        with (self.private / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                message = f"Another process is working on {self.path}."
                raise RunError(message, "Wait for it, or stop it first.") from error
            yield
