"""The ledger of deletion requests beside the runs: each is a transaction, from its receipt to its certificate.

`OUT/deletions/` (mode 700) has `ledger.jsonl`, whose lines hold salted hashes, counts, run names, digests and no names,
and for each request a private folder of what is known of it: request.json has the names.
"""

import fcntl
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from sordino.deletions.chain import Chain, Entry
from sordino.deletions.tombstones import LIFTED, Kind, Marks, Tombstones, covered
from sordino.errors import RunError, UnlearningError
from sordino.records import Example
from sordino.records.store import load
from sordino.results import DeletionRequest, State, decode, encode
from sordino.run import Run, write_atomic

__all__ = ["FOLDER", "Deletions", "Standing"]

FOLDER = "deletions"
_FILE = "request.json"
_NEXT: dict[State | None, tuple[State, ...]] = {
    None: ("received",),
    "received": ("planned", "failed"),
    "planned": ("executed", "failed"),
    "executed": ("verified", "failed"),
    "verified": ("verified", "certified", "failed"),  # again, with a qualification that was not there yet
    "certified": ("certified",),  # again, once what still holds the deleted was removed
    "failed": ("received",),
}
_DONE: tuple[State, ...] = ("executed", "verified", "certified")
_ID = re.compile(r"[0-9A-Za-z][0-9A-Za-z._-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a request stands: its `state`, when it was `received` and last `changed`, how many names it has.

    `data` is what its lines said since it was last received, later ones over earlier ones; `executed` is whether it
    was ever carried out.
    """

    id: str
    run: str
    kind: Kind
    count: int
    state: State
    received: str
    changed: str
    executed: bool = False
    data: dict[str, Any] = field(default_factory=dict)

    @property
    def open(self) -> bool:
        """Whether something is left to do."""
        return self.state not in ("certified", "failed")


class Deletions:
    """The ledger in `folder`; `Deletions.open` finds it, and nothing is made before something is written.

    Every method raises `RunError` where the ledger was changed after it was written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder
        self._chain = Chain(folder)

    @classmethod
    def open(cls, out: Path | str) -> "Deletions":
        """The ledger beside the runs in `out`."""
        return cls(Path(out) / FOLDER)

    def receive(self, request: DeletionRequest) -> Standing:
        """Write down that `request` came, and its names in its folder; one that failed may come anew.

        Raises `RunError` where its run is not beside the ledger, `UnlearningError` where it stands in another state.
        """
        _check_id(request.id)
        run = Run.open(self.path.parent / request.run)
        with self._chain.writing() as entries:
            _check_next(request.id, _state(entries, request.id), "received")
            examples, unit = load(run.records).examples, str(run.card.data.get("unit", "record"))
            marks = Marks.of(request, examples, unit, self._chain.salt)
            folder = self.folder(request.id)
            folder.mkdir(mode=0o700, exist_ok=True)
            folder.chmod(0o700)
            # The names first: a line that nobody can follow up is worse than a folder without a line.
            write_atomic(folder / _FILE, encode(request), mode=0o600)
            told = {"run": request.run, "count": len(request.names), **marks.written}
            self._chain.append(request.id, "received", told)
        return self.standing(request.id)

    def advance(self, request: str, state: State, **data: Any) -> Standing:
        """Write down that `request` reached `state`, with `data`: plain values that name nobody.

        Raises `UnlearningError` where that state does not follow the one it is in, or for data that is not plain.
        """
        if state == "received":
            raise UnlearningError("A request is received by `receive`.", "Give the whole request.")
        with self._chain.writing() as entries:
            _check_next(request, _state(entries, request), state)
            self._chain.append(request, state, _plain(data))
        return self.standing(request)

    def state(self, request: str) -> State | None:
        """The state of a request; None of one that was never received."""
        return _state(self._chain.entries(), request)

    def standing(self, request: str) -> Standing:
        """Where a request stands; raises `UnlearningError` for one that was never received."""
        for found in self.requests():
            if found.id == request:
                return found
        raise UnlearningError(
            f"There is no request {request!r} in {self.path}.", "`sordino unlearn ledger` lists them."
        )

    def requests(self) -> tuple[Standing, ...]:
        """All requests, in the order in which they were first received."""
        found: dict[str, list[Entry]] = {}
        for entry in self._chain.entries():
            if entry.state != LIFTED:
                found.setdefault(entry.request, []).append(entry)
        return tuple(_standing(lines) for lines in found.values())

    def open_requests(self) -> tuple[Standing, ...]:
        """Those that are neither certified nor failed."""
        return tuple(found for found in self.requests() if found.open)

    def history(self) -> tuple[Entry, ...]:
        """All lines, oldest first."""
        return self._chain.entries()

    def request(self, request: str) -> DeletionRequest:
        """The request with its names, from its private folder; raises `RunError` where that is gone."""
        path = self.folder(request) / _FILE
        if not path.exists():
            raise RunError(f"The request {request!r} has no {_FILE} in {self.path}.", "Restore it, or ask anew.")
        return decode(path.read_bytes(), DeletionRequest, str(path))

    @property
    def salt(self) -> bytes | None:
        """The private salt of the folder's hashes; None where nothing was ever written."""
        return self._chain.salt if self._chain.exists else None

    def marks(self, request: str) -> Marks | None:
        """The salted hashes of a request as it was last received; None of one that never was."""
        entries = self._chain.entries()
        return Marks.read(_received(entries, request).data) if _state(entries, request) else None

    def folder(self, request: str) -> Path:
        """The private folder of a request, whether it is there or not."""
        _check_id(request)
        return self.path / request

    @contextmanager
    def lock(self, request: str) -> Iterator[Path]:
        """Hold the folder of a request that was received; raises `RunError` where another process does."""
        self.standing(request)
        folder = self.folder(request)
        with (folder / ".lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise RunError(f"Another process works on the request {request!r}.", "Wait for it.") from error
            yield folder

    def blocked(self, examples: Sequence[Example], unit: str) -> npt.NDArray[np.bool_]:
        """Which of `examples` were deleted; `unit` is the kind of their units, as `Dataset.unit_kind` says it."""
        entries = self._chain.entries()
        if not any(entry.state == "executed" for entry in entries):
            return np.zeros(len(examples), dtype=bool)
        return Tombstones.of(entries, self._chain.salt).blocked(examples, unit)

    def deleted(self, names: Sequence[str], kind: Kind, runs: Sequence[str], *, but: str = "") -> list[str]:
        """Those of `names` that requests to one of `runs` deleted and nothing lifted; failed requests do not count.

        `but` is a request that is not looked at.
        """
        entries = self._chain.entries()
        standings = self._carried_out(entries, runs, but)
        if not standings:
            return []
        marks = [Marks.read(_received(entries, one.id).data) for one in standings]
        tombs = Tombstones.of(entries, self._chain.salt)
        return [name for name in covered(marks, kind, names, self._chain.salt) if tombs.holds(kind, name)]

    def carried_out(self, runs: Sequence[str], *, but: str = "") -> tuple[Standing, ...]:
        """Requests to one of `runs` that are executed, verified or certified, without the request `but`."""
        return tuple(self._carried_out(self._chain.entries(), runs, but))

    def spent(self, run: str) -> int:
        """How many units were deleted under a guarantee of differential privacy in `run` and those it came of.

        What was trained anew has a guarantee of its own, and never saw those who went before.
        """
        made = {one.data["child"]: one for one in self.requests() if one.executed and "child" in one.data}
        total = 0
        while (one := made.pop(run, None)) is not None and one.data.get("tier") != "exact":
            if one.data.get("tier") == "dp":
                total += int(one.data["subjects" if one.kind == "subject" else "records"])
            run = one.run
        return total

    def reconsent(self, names: Sequence[str], kind: Kind, reason: str) -> int:
        """Let subjects or records that were deleted be trained on again, for a `reason` that names nobody; how many.

        Raises `UnlearningError` where some of `names` are not deleted, or no reason is given.
        """
        if not names or not reason.strip():
            raise UnlearningError("To let deleted records back takes names and a reason.", "Say who agreed, and when.")
        if any(re.search(rf"(?<!\w){re.escape(name)}(?!\w)", reason) for name in names):
            raise UnlearningError("The reason holds a name.", "The ledger names nobody: refer to a file of yours.")
        with self._chain.writing() as entries:
            tombs = Tombstones.of(entries, self._chain.salt)
            unknown = sum(not tombs.holds(kind, name) for name in names)
            if unknown:
                message = f"{unknown} of {len(names)} names are no deleted {kind}s."
                raise UnlearningError(message, "Give names as they were deleted, and each kind by itself.")
            hashes = sorted(set().union(*(tombs.lifts(kind, name) for name in names)))
            self._chain.append("", LIFTED, {"kind": kind, "names": hashes, "count": len(set(names)), "reason": reason})
        return len(set(names))

    def _carried_out(self, entries: Sequence[Entry], runs: Sequence[str], but: str) -> list[Standing]:
        found: dict[str, list[Entry]] = {}
        for entry in entries:
            if entry.state != LIFTED and entry.request != but:
                found.setdefault(entry.request, []).append(entry)
        standings = [_standing(lines) for lines in found.values()]
        return [one for one in standings if one.run in runs and one.state in _DONE]


def _standing(lines: Sequence[Entry]) -> Standing:
    start = max(place for place, line in enumerate(lines) if line.state == "received")
    hidden = ("names", "records", "run", "kind", "unit", "count")
    data = {k: v for line in lines[start:] for k, v in line.data.items() if line.state != "received" or k not in hidden}
    first, last = lines[start], lines[-1]
    return Standing(
        id=last.request,
        run=first.data["run"],
        kind=first.data["kind"],
        count=first.data["count"],
        state=_as_state(last.state),
        received=first.time,
        changed=last.time,
        executed=any(line.state == "executed" for line in lines),
        data=data,
    )


def _received(entries: Sequence[Entry], request: str) -> Entry:
    return [e for e in entries if e.request == request and e.state == "received"][-1]


def _as_state(state: str) -> State:
    found: State = msgspec.convert(state, State)
    return found


def _state(entries: Sequence[Entry], request: str) -> State | None:
    mine = [e.state for e in entries if e.request == request and e.state != LIFTED]
    return _as_state(mine[-1]) if mine else None


def _check_next(request: str, old: State | None, new: State) -> None:
    if new in _NEXT[old]:
        return
    if old is None:
        raise UnlearningError(f"The request {request!r} was never received.", "`sordino unlearn plan` receives one.")
    following = " or ".join(_NEXT[old])
    hint = f"What may follow is: {following}." if following else "Make a new request."
    raise UnlearningError(f"The request {request!r} is {old}: it cannot become {new}.", hint)


def _check_id(request: str) -> None:
    if not _ID.fullmatch(request):
        message = f"{request!r} is no id of a request."
        raise UnlearningError(message, "Ids have letters, digits, '.', '_' and '-', 64 at most.")


def _plain(data: dict[str, Any]) -> dict[str, Any]:
    try:
        made: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(data))
    except (TypeError, ValueError, msgspec.EncodeError) as error:
        raise UnlearningError(f"The ledger cannot hold this: {error}.", "Give plain values.") from error
    return made
