"""Everything beside a run that holds what a request asks to delete: weights, checkpoints, signals, scores, exports.

Found are the run, its ancestors, other runs in the same folder that hold the same records or units, earlier attempts at
the same request, and exports that were written down. Links are never followed.
"""

import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from sordino.deletions import FOLDER, Deletions, asked_of
from sordino.deletions.tombstones import Marks, Tombstones
from sordino.manifest import FILE as MANIFEST
from sordino.records import Example
from sordino.records.columns import Rows
from sordino.records.store import load
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.unlearn.requests.exports import FILE as EXPORTS
from sordino.unlearn.requests.exports import exported_digest, exports_of
from sordino.unlearn.requests.resolving import lineage

__all__ = ["Asked", "Holding", "HoldingKind", "Relation", "holdings", "is_inside", "kept_child", "masks_for"]

HoldingKind = Literal[
    "checkpoint", "weights", "merge", "export", "signal store", "scores", "records", "shadow", "request folder"
]
Relation = Literal["run", "ancestor", "sibling", "attempt", "qualification", "request"]

# What stays of a run: aggregates, and what names or quotes nobody's record.
_KEPT = (
    "records.parquet", MANIFEST, EXPORTS, "canaries.json", "audit_canaries.json", "losses.jsonl", "memorisation.jsonl",
    "dp_steps", ".lock",
)  # fmt: skip
# What only a model that was trained on the deleted can hold of them.
_TRAINED: Mapping[str, HoldingKind] = {
    "checkpoints": "checkpoint",
    "shards": "checkpoint",
    "new_tokens.safetensors": "weights",
}
_NUMBERS: Mapping[str, HoldingKind] = {"signals": "signal store", "shadows": "shadow", "references": "shadow"}
_SPREAD = ("checkpoints", "signals", "shadows")
_WHY: Mapping[HoldingKind, str] = {
    "checkpoint": "weights and optimizer state from while it was trained on them",
    "weights": "trained on them",
    "signal store": "may hold numbers of their tokens: its key does not tell whose",
    "scores": "may hold scores or passages of them",
    "shadow": "models and numbers of trainings on some of them",
    "records": "has their texts; it is written anew without them",
    "merge": "a merged model that was trained on them",
    "export": "an exported model that was trained on them",
    "request folder": "names who asked, and has scores without names: the evidence of the request, which is kept",
}


@dataclass(frozen=True, kw_only=True)
class Holding:
    """Something that holds the deleted: `path` relative to the folder of the runs, what `kind` it is, `why`, `bytes`.

    Exports that lie elsewhere have a `path` under "elsewhere/"; `place` is where it is on this machine, which no
    certificate should say. `run` is the name of the run it is of, and `relation` what that is to the request.
    Not `removable` is what stays whoever asks, and `why` says for what reason.
    """

    path: str
    kind: HoldingKind
    why: str
    bytes: int
    run: str
    relation: Relation
    place: Path = field(repr=False)
    removable: bool = True
    removed: bool = False


def is_inside(out: Path, place: Path) -> bool:
    """Whether `place` lies in the folder `out` without a link on the way; it may be a link itself."""
    return place.parent.resolve().is_relative_to(out.resolve())


def _size(place: Path) -> int:
    """Bytes of a file, or of all files under a folder; a link has its own."""
    if place.is_symlink() or not place.is_dir():
        return place.lstat().st_size
    paths = (Path(folder) / name for folder, _, names in os.walk(place) for name in names)
    return sum(path.lstat().st_size for path in paths)


def kept_child(run: Run, request: DeletionRequest) -> tuple[str, ...]:
    """The names of the runs that replace `run`, which nothing is ever taken from.

    The ledger says which it is (`child` of the state "executed"); where it does not, all that came of the request.
    """
    book = Deletions.open(run.path.parent)
    if book.state(request.id) is not None:
        child = book.standing(request.id).data.get("child")
        if child is not None:
            return (str(child),)
    return tuple(one.path.name for one in _beside(run) if _came_of(one, request))


def _beside(run: Run) -> Iterator[Run]:
    """All runs in the folder of `run`, itself among them, but none behind a link."""
    for path in sorted(run.path.parent.iterdir()):
        if path.is_dir() and not path.is_symlink() and (path / "run.json").is_file():
            yield Run(path)


def _came_of(run: Run, request: DeletionRequest) -> bool:
    return run.card.unlearning.get("request") == request.id


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A request as salted hashes; in runs of one `line` the names themselves are told apart."""

    request: DeletionRequest
    tombs: Tombstones
    line: tuple[str, ...]

    def among(self, run: Run) -> np.ndarray:
        """Which of the records that `run` holds are meant."""
        examples = load(run.records).examples
        found = self.tombs.blocked(examples, str(run.card.data.get("unit", "record")))
        return found | asked_of(self.request, examples) if run.path.name in self.line else found


def masks_for(run: Run, request: DeletionRequest) -> Asked:
    """What tells which records of any run are meant by `request` to `run`."""
    book = Deletions.open(run.path.parent)
    marks, salt = book.marks(request.id), book.salt
    if marks is None or salt is None:
        salt = secrets.token_bytes(32)
        unit = str(run.card.data.get("unit", "record"))
        marks = Marks.of(request, load(run.records).examples, unit, salt)
    tombs = Tombstones(salt)
    tombs.put(marks, 1)
    return Asked(request=request, tombs=tombs, line=tuple(one.path.name for one in lineage(run)))


@dataclass(frozen=True)
class _Search:
    """The search for holdings of `request` beside `run`."""

    run: Run
    request: DeletionRequest

    @cached_property
    def out(self) -> Path:
        return self.run.path.parent

    @cached_property
    def asked(self) -> Asked:
        return masks_for(self.run, self.request)

    def found(self) -> Iterator[Holding]:
        line = self.asked.line
        kept = kept_child(self.run, self.request)
        for run in _beside(self.run):
            if run.path.name in kept:
                continue
            relation: Relation = "sibling"
            if run.path.name in line:
                relation = "run" if run.path.name == line[0] else "ancestor"
            elif _came_of(run, self.request):
                relation = "attempt"
            yield from self.of_run(run, relation)
        yield from self.qualifications()
        folder = self.out / FOLDER / self.request.id
        if folder.is_dir() and not folder.is_symlink():
            yield replace(self.holding(folder, "request folder", self.run, "request"), removable=False)

    def of_run(self, run: Run, relation: Relation) -> Iterator[Holding]:
        if not run.records.is_file():
            return
        examples, mask = load(run.records).examples, self.asked.among(run)
        trained = relation == "attempt" or bool((mask & _included(examples)).any())
        if not trained and not mask.any():
            return
        made = [*(self.trained_on(run, relation) if trained else ()), *self.numbers(run, relation)]
        if mask.any():
            made.append(self.holding(run.records, "records", run, relation))
        if relation == "sibling":
            why = "; a model of its own: make a request to it, or ask for siblings to be purged too"
            made = [replace(one, why=one.why + why) for one in made]
        yield from made

    def trained_on(self, run: Run, relation: Relation) -> Iterator[Holding]:
        """Weights of every form."""
        for place in (run.weights, *run.path.glob(".weights.*")):
            if place.exists() or place.is_symlink():
                yield self.holding(place, "weights", run, relation)
        for name, kind in _TRAINED.items():
            for place in _places(run.private / name, spread=name in _SPREAD):
                yield self.holding(place, kind, run, relation)
        for one in exports_of(run):
            place = Path(one.path)
            if place.is_dir() and not place.is_symlink():
                found = self.holding(place, "merge" if one.merged else "export", run, relation)
                if exported_digest(place) != one.weights:
                    found = replace(found, removable=False, why="its weights are not those that were exported: look")
                yield found

    def numbers(self, run: Run, relation: Relation) -> Iterator[Holding]:
        """What was computed of records, and reports that show texts."""
        for place in sorted(run.private.iterdir()):
            if place.name in _KEPT or place.name in _TRAINED:
                continue
            # A folder that we have no name for is of a method of unlearning, which trains in it.
            other: HoldingKind = "checkpoint" if any(place.rglob("*.safetensors")) else "scores"
            kind = _NUMBERS.get(place.name, other)
            for one in _places(place, spread=place.name in _SPREAD):
                yield self.holding(one, kind, run, relation)
        revealed = run.path / "report-revealed.html"
        if revealed.exists():
            yield self.holding(revealed, "scores", run, relation)

    def qualifications(self) -> Iterator[Holding]:
        """Runs that a qualification trained, of which the deleted were among the others."""
        for card in sorted((self.out / FOLDER / "qualifications").rglob("run.json")):
            run = Run(card.parent)
            if is_inside(self.out, card) and run.records.is_file() and self.asked.among(run).any():
                yield self.holding(run.path, "weights", run, "qualification")

    def holding(self, place: Path, kind: HoldingKind, run: Run, relation: Relation) -> Holding:
        inside = is_inside(self.out, place)
        path = place.relative_to(self.out).as_posix() if place.is_relative_to(self.out) else f"elsewhere/{place.name}"
        if inside and path.startswith("elsewhere/"):
            path = place.resolve().relative_to(self.out.resolve()).as_posix()
        linked = not inside and kind not in ("merge", "export")
        return Holding(
            path=path,
            kind=kind,
            why=_WHY[kind] if not linked else "behind a link out of the folder of the runs, which is not followed",
            bytes=_size(place),
            run=run.path.name,
            relation=relation,
            place=place,
            removable=not linked,
        )


def _included(examples: Sequence[Example]) -> np.ndarray:
    assert isinstance(examples, Rows)  # which stored examples always are
    return np.array(examples.column("included").to_pylist(), dtype=bool)


def _places(place: Path, *, spread: bool) -> list[Path]:
    """`place` if it is there; where `spread`, all that is in the folder instead, hidden leftovers too."""
    if not place.exists() and not place.is_symlink():
        return []
    return sorted(place.iterdir()) if spread and place.is_dir() and not place.is_symlink() else [place]


def holdings(run: Run, request: DeletionRequest) -> tuple[Holding, ...]:
    """What is there now and holds what `request` to `run` asks to delete, run by run; whatever its state.

    The run that replaces `run` is left out. Raises `RunError` where a run beside it is damaged.
    """
    return tuple(_Search(run, request).found())
