"""Salted hashes of what was deleted, and which records they mean.

A subject is known by its name where a column of the data names units; where units are records or so many rows, a name
says nothing of another reading of the data, and its records are known by what they say. So are records: an id that was
given anew brings nothing back. What somebody else holds too, word for word, is blocked under the id it had alone.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sordino.deletions.chain import Entry
from sordino.errors import RunError
from sordino.manifest import content_digests, keyed_digest
from sordino.records import Example
from sordino.results import DeletionRequest

__all__ = ["LIFTED", "Kind", "Marks", "Tombstones", "asked_of", "name_hash", "named_units"]

Kind = Literal["subject", "record"]

LIFTED = "reconsented"
"""What a line says that lifts tombstones, in the place of a state."""


def named_units(unit: str) -> bool:
    """Whether units of the kind `unit` have names of their own: not where each is a record, or so many rows."""
    return unit != "record" and not unit.startswith("rows-of-")


def name_hash(salt: bytes, kind: Kind, name: str, unit: str) -> str:
    """32 hex digits for a subject (of units of the kind `unit`) or a record (whatever its unit)."""
    return keyed_digest(salt, kind, unit if kind == "subject" else "", name)[:16].hex()


def _content_hash(salt: bytes, content: str, name: str = "") -> str:
    """32 hex digits for a content whoever has it, or only as the record `name`."""
    return keyed_digest(salt, "content", name, content)[:16].hex()


def asked_of(request: DeletionRequest, examples: Sequence[Example]) -> npt.NDArray[np.bool_]:
    """Which of `examples` are of those who ask; canaries are nobody's."""
    import pyarrow.compute as pc

    from sordino.records.columns import Held, Rows
    from sordino.records.placed import batches, examples_of, schema

    rows = examples if isinstance(examples, Rows) else Rows(Held(batches(examples), schema()), examples_of)
    column = rows.column("unit" if request.kind == "subject" else "id").to_pylist()
    names = set(request.names)
    own = np.asarray(pc.not_equal(rows.column("role"), "canary").to_numpy(), dtype=bool)
    found: npt.NDArray[np.bool_] = own & np.fromiter((name in names for name in column), dtype=bool, count=len(rows))
    return found


@dataclass(frozen=True, kw_only=True)
class Marks:
    """What a request is known by, all salted: its `names`, and of its records (id, content, which of the names).

    A content that others hold too is hashed with the id. `unit` is the kind of the units of its data.
    """

    kind: Kind
    unit: str
    names: tuple[str, ...]
    records: tuple[tuple[str, str, int], ...]

    @classmethod
    def of(cls, request: DeletionRequest, examples: Sequence[Example], unit: str, salt: bytes) -> "Marks":
        """Those of `request` to a run that holds `examples`, trained on or not."""
        asked = asked_of(request, examples)
        mine: list[tuple[str, str, int]] = []
        others: set[str] = set()
        place = {name: number for number, name in enumerate(request.names)}
        for own, (unit_of, name, content) in zip(asked.tolist(), content_digests(examples), strict=True):
            if own:
                mine.append((name, content, place[unit_of if request.kind == "subject" else name]))
            else:
                others.add(content)
        return cls(
            kind=request.kind,
            unit=unit,
            names=tuple(name_hash(salt, request.kind, name, unit) for name in request.names),
            records=tuple(
                (
                    name_hash(salt, "record", name, unit),
                    _content_hash(salt, content, name if content in others else ""),
                    number,
                )
                for name, content, number in mine
            ),
        )

    @classmethod
    def read(cls, data: Mapping[str, Any]) -> "Marks":
        """Those that a line of the ledger holds; raises `RunError` where it is not as this version writes it."""
        try:
            records = tuple((str(name), str(content), int(number)) for name, content, number in data["records"])
            return cls(kind=data["kind"], unit=data["unit"], names=tuple(data["names"]), records=records)
        except (KeyError, TypeError, ValueError) as error:
            message = f"A request in the ledger of deletions cannot be read ({type(error).__name__})."
            raise RunError(message, "Use the version of Sordino that wrote it.") from error

    @property
    def written(self) -> dict[str, Any]:
        """What a line of the ledger says of them."""
        return {"kind": self.kind, "unit": self.unit, "names": list(self.names), "records": [*map(list, self.records)]}


@dataclass
class Tombstones:
    """What was deleted and what was lifted, each with the number of the line that said so last; 0 is never.

    `said` has the contents that went with a name; `units` the kinds of units of all data that was asked about.
    """

    salt: bytes
    subjects: dict[str, int] = field(default_factory=dict)
    records: dict[str, int] = field(default_factory=dict)
    contents: dict[str, int] = field(default_factory=dict)
    lifted: dict[str, int] = field(default_factory=dict)
    said: dict[str, set[str]] = field(default_factory=dict)
    units: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, entries: Iterable[Entry], salt: bytes) -> "Tombstones":
        """Those of all requests that were ever carried out, whatever became of them afterwards."""
        made = cls(salt)
        asked: dict[str, Marks] = {}
        for entry in entries:
            if entry.state == "received":
                asked[entry.request] = Marks.read(entry.data)
                # Whoever lifts something names a subject, and does not know how its data was read.
                made.units.add(asked[entry.request].unit)
            elif entry.state == "executed":
                made.put(asked[entry.request], entry.number)
            elif entry.state == LIFTED:
                made.lifted.update(dict.fromkeys(entry.data["names"], entry.number))
        return made

    def put(self, marks: Marks, number: int) -> None:
        """Let what `marks` mean be blocked from line `number` on."""
        (self.subjects if marks.kind == "subject" else self.records).update(dict.fromkeys(marks.names, number))
        for name, content, owner in marks.records:
            self.records[name] = self.contents[content] = number
            self.said.setdefault(name, set()).add(content)
            self.said.setdefault(marks.names[owner], set()).add(content)

    def lifts(self, kind: Kind, name: str) -> set[str]:
        """All hashes that are lifted with `name`: its own, and those of what it said, whatever its id is by now."""
        found = self.hashes(kind, name)
        return {*found, *(content for one in found for content in self.said.get(one, ()))}

    def hashes(self, kind: Kind, name: str) -> list[str]:
        """The hashes under which `name` is here."""
        known = self.subjects if kind == "subject" else self.records
        units = sorted(self.units) if kind == "subject" else [""]
        return [found for unit in units if (found := name_hash(self.salt, kind, name, unit)) in known]

    def holds(self, kind: Kind, name: str) -> bool:
        """Whether `name` is blocked now."""
        known = self.subjects if kind == "subject" else self.records
        return any(known[found] > self.lifted.get(found, 0) for found in self.hashes(kind, name))

    def blocked(self, examples: Sequence[Example], unit: str) -> npt.NDArray[np.bool_]:
        """Which of `examples`, whose units are of the kind `unit`, were deleted and not lifted since."""
        found = np.zeros(len(examples), dtype=bool)
        if not self.subjects and not self.records:
            return found
        named = named_units(unit)
        last: dict[str, tuple[int, int]] = {}  # of each unit, when it was deleted and when lifted
        for at, (owner, name, content) in enumerate(content_digests(examples)):
            if owner not in last:
                hashed = name_hash(self.salt, "subject", owner, unit)
                last[owner] = (self.subjects.get(hashed, 0) if named else 0, self.lifted.get(hashed, 0))
            deleted, lifted = last[owner]
            for hashed in (_content_hash(self.salt, content), _content_hash(self.salt, content, name)):
                said = self.contents.get(hashed, 0)
                deleted = max(deleted, said if said > self.lifted.get(hashed, 0) else 0)
            if deleted > lifted:
                found[at] = deleted > self.lifted.get(name_hash(self.salt, "record", name, unit), 0)
        return found


def covered(marks: Collection[Marks], kind: Kind, names: Sequence[str], salt: bytes) -> list[str]:
    """Those of `names` that any of `marks` mean: by themselves, or a record as one of a subject's."""
    known = {mark for one in marks if one.kind == kind for mark in one.names}
    if kind == "record":
        known |= {name for one in marks for name, _, _ in one.records}
    units = {one.unit for one in marks} if kind == "subject" else {""}
    return [name for name in names if any(name_hash(salt, kind, name, unit) in known for unit in units)]
