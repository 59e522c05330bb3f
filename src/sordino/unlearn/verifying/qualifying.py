"""Qualification of a method: on simulated requests from the records of a run, unlearning against training anew.

Each seed has a request of its own, drawn from the subjects that were trained on and have asked for nothing: the method
is carried out on it, the run is trained anew without it under another seed, and both are asked about the same records.
What is compared is the metrics of both, seed by seed (`sordino.unlearn.verifying.verification.requalify`).
"""

import dataclasses
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from sordino.errors import UnlearningError
from sordino.evidence import digest
from sordino.records.store import load as load_split
from sordino.results import Cost, DeletionRequest, Margins, Qualification, decode, encode
from sordino.run import Run, write_atomic
from sordino.unlearn.base import Child, Deletion, Method, Say, Ticker, create_child, finish_child
from sordino.unlearn.verifying.comparing import seed_metrics
from sordino.unlearn.verifying.verification import LEAST_SEEDS, requalify

__all__ = ["fitting", "qualifications", "qualify"]

_FOLDER = "qualifications"
# Part of every id: what was found under another definition is not found again.
_DEFINITION = "qualification/1"
# Simulated requests that cannot be carried out, as one whose records others have as well, are drawn anew.
_TRIES = 20


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """The metrics of one model, and the tokens that making it took."""

    metrics: Mapping[str, float]
    tokens: int


@dataclass(frozen=True, kw_only=True)
class _Drawn:
    """The simulated request of each seed."""

    requests: tuple[DeletionRequest, ...]


def qualify(  # noqa: PLR0913 - what is simulated, how often, how it is judged, and who is told
    run: Run,
    method: str,
    settings: Mapping[str, Any],
    *,
    seeds: int = LEAST_SEEDS,
    subjects: int = 1,
    margins: Margins | None = None,
    generator: int = 0,
    say: Say = lambda text: None,
    ticker: Ticker = lambda name, total: lambda done: None,
) -> Qualification:
    """Hold `method` with `settings` against training `run` anew: `seeds` models of each, on requests of `subjects`.

    It goes on where it was interrupted, and is written to `deletions/qualifications/` beside the run. With fewer than
    five seeds the outcome is "inconclusive". Requests are drawn by NumPy's generator seeded with `generator`, never of
    subjects that asked to be deleted. Raises `UnlearningError` where there are too few subjects to draw from.
    """
    from sordino.unlearn.methods import discover, named

    if min(seeds, subjects) < 1:
        message = f"{seeds} seeds and {subjects} subjects were asked for."
        raise UnlearningError(message, "It takes one of each at least, and five seeds to say anything.")
    methods = discover()
    chosen = named(method, methods)
    asked = _Asked(
        run=run, method=chosen, retrain=methods["retrain"], settings={**chosen.defaults, **settings},
        margins=margins or Margins(), seeds=_seeds(generator, seeds), subjects=subjects, generator=generator, say=say,
        ticker=ticker,
    )  # fmt: skip
    path = asked.home / f"{asked.id}.json"
    if path.exists():
        return decode(path.read_bytes(), Qualification, str(path))
    found = requalify(_measured(asked))
    write_atomic(path, encode(found), mode=0o600)
    shutil.rmtree(asked.work, ignore_errors=True)
    return found


def qualifications(out: Path) -> list[Qualification]:
    """All qualifications beside the runs in `out`, the newest first; raises `RunError` for a damaged one."""
    paths = (out / "deletions" / _FOLDER).glob("*.json")
    found = [decode(path.read_bytes(), Qualification, str(path)) for path in sorted(paths)]
    return sorted(found, key=lambda one: one.created, reverse=True)


def fitting(run: Run, method: str, settings: Mapping[str, Any], named: str | None = None) -> Qualification | None:
    """The newest qualification of `method` with these `settings` on the model and manifest of `run`, or that `named`.

    None where there is none. Raises `UnlearningError` where the one that is `named` is of something else.
    """
    found = [q for q in qualifications(run.path.parent) if named is None or q.id.startswith(named)]
    fits = [q for q in found if _fits(q, run, method, settings)]
    if named is not None and not fits:
        what = "is of another model, method or settings" if found else "is not there"
        raise UnlearningError(f"The qualification {named} {what}.", "`sordino unlearn qualify` makes one.")
    return fits[0] if fits else None


def _fits(found: Qualification, run: Run, method: str, settings: Mapping[str, Any]) -> bool:
    card = run.card
    same = (found.method, found.weights, found.root) == (method, card.model.get("weights"), _root(card.data))
    return same and msgspec.to_builtins(found.settings) == msgspec.to_builtins(dict(settings))


def _root(data: Mapping[str, Any]) -> str | None:
    root = data.get("manifest", {}).get("root")
    return None if root is None else str(root)


def _seeds(generator: int, count: int) -> tuple[int, ...]:
    words = (np.random.SeedSequence([generator, i]).generate_state(1)[0] for i in range(count))
    return tuple(int(word) >> 1 for word in words)


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """What is to be qualified, on what, and where it is kept."""

    run: Run
    method: Method
    retrain: Method
    settings: Mapping[str, Any]
    margins: Margins
    seeds: tuple[int, ...]
    subjects: int
    generator: int
    say: Say
    ticker: Ticker

    @property
    def id(self) -> str:
        """The same question has the same id, and finds what was begun."""
        card = self.run.card
        return digest(
            _DEFINITION, str(card.model.get("weights")), str(_root(card.data)), self.method.name,
            msgspec.json.encode(self.settings, order="deterministic"), msgspec.json.encode(self.margins),
            str(self.seeds), str(self.subjects), str(self.generator),
        )[:16]  # fmt: skip

    @property
    def home(self) -> Path:
        """Where qualifications are; only the owner can read it."""
        deletions = self.run.path.parent / "deletions"
        for folder in (deletions, deletions / _FOLDER):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        return deletions / _FOLDER

    @property
    def work(self) -> Path:
        """Where models lie until they were asked."""
        return self.home / self.id

    @property
    def apart(self) -> Run:
        """The run where no ledger of deletions is beside it: it may have been replaced, and is asked all the same."""
        self.work.mkdir(mode=0o700, exist_ok=True)
        return Run(_linked(self.run, self.work))


def _linked(run: Run, folder: Path) -> Path:
    """`run` in `folder`: what comes of a run looks for it beside itself."""
    path = folder / run.path.name
    if not path.is_symlink():
        path.symlink_to(run.path.resolve(), target_is_directory=True)
    return path


def _measured(asked: _Asked) -> Qualification:
    deletions = _requests(asked)
    tick = asked.ticker(f"qualification of {asked.method.name}, models", 3 * len(asked.seeds))
    unlearned: list[_Kept] = []
    retrained: list[_Kept] = []
    untouched: list[_Kept] = []
    for number, (seed, deletion) in enumerate(zip(asked.seeds, deletions, strict=True)):
        asked.say(f"qualification: seed {number + 1} of {len(asked.seeds)}")
        kinds: tuple[tuple[list[_Kept], str, Callable[[Path], tuple[Run, int]]], ...] = (
            (untouched, "untouched", lambda folder: (asked.run, 0)),
            (unlearned, "unlearned", _maker(asked, asked.method, deletion, seed)),
            (retrained, "retrained", _maker(asked, asked.retrain, deletion, seed)),
        )
        for rows, kind, make in kinds:
            rows.append(_kept(asked, deletion, asked.work / f"{number:03d}-{kind}", make))
            tick(1)
    card = asked.run.card
    return Qualification(
        id=asked.id,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=card.name,
        weights=str(card.model["weights"]),
        root=_root(card.data),
        method=asked.method.name,
        tier=asked.method.tier,
        settings=msgspec.to_builtins(asked.settings),
        margins=asked.margins,
        subjects=asked.subjects,
        generator=asked.generator,
        seeds=asked.seeds,
        unlearned=tuple(one.metrics for one in unlearned),
        retrained=tuple(one.metrics for one in retrained),
        untouched=tuple(one.metrics for one in untouched),
        tokens=sum(one.tokens for one in (*unlearned, *retrained)),
    )


def _drawable(asked: _Asked) -> list[str]:
    """The units that were trained on and never asked for anything, in the order of the file."""
    from sordino.deletions import Deletions

    examples = load_split(asked.run.records).training
    units = dict.fromkeys(e.record.unit for e in examples if e.role != "canary")
    deletions = Deletions.open(asked.run.path.parent)
    requests = [deletions.request(found.id) for found in deletions.requests()]
    named = {name for request in requests for name in request.names}
    real = {e.record.unit for e in examples if e.record.unit in named or e.record.id in named}
    free = [unit for unit in units if unit not in real]
    if len(free) < 2 * asked.subjects:
        message = f"Requests of {asked.subjects} are to be drawn from {len(free)} subjects who asked for nothing."
        raise UnlearningError(message, "Draw fewer: half of them at most.")
    return free


def _requests(asked: _Asked) -> list[Deletion]:
    """The simulated request of each seed: drawn once, so that one who asks meanwhile changes none."""
    from sordino.unlearn.requests import resolve

    path = asked.work / "requests.json"
    if not path.exists():
        names, drawn = _drawable(asked), np.random.default_rng([asked.generator, len(asked.seeds)])
        made = _Drawn(requests=tuple(_drawn(asked, names, drawn) for _ in asked.seeds))
        write_atomic(path, encode(made), mode=0o600)
    return [resolve(asked.apart, request) for request in decode(path.read_bytes(), _Drawn, str(path)).requests]


def _drawn(asked: _Asked, names: Sequence[str], drawn: np.random.Generator) -> DeletionRequest:
    """The next request that can be carried out."""
    from sordino.unlearn.requests import resolve

    reason = ""
    for _ in range(_TRIES):
        chosen = tuple(names[i] for i in np.sort(drawn.choice(len(names), asked.subjects, replace=False)))
        request = DeletionRequest(
            id=digest("simulated", asked.id, *chosen), created="", run=asked.run.path.name, kind="subject",
            names=chosen, acknowledged=True,
        )  # fmt: skip
        try:
            resolve(asked.apart, request)
        except UnlearningError as error:
            reason = error.message
        else:
            return request
    message = f"{_TRIES} simulated requests of {asked.subjects} could not be carried out: {reason}"
    raise UnlearningError(message, "Draw another number of subjects.")


def _maker(asked: _Asked, method: Method, deletion: Deletion, seed: int) -> Callable[[Path], tuple[Run, int]]:
    """Carries out `method` under `seed`, in a folder; gives the run that comes of it, and the tokens it took."""

    def make(folder: Path) -> tuple[Run, int]:
        begun = [path for path in folder.glob("*/run.json") if not path.parent.is_symlink()]
        run = Run.open(begun[0].parent) if begun else create_child(deletion, method.name, folder)
        if method is asked.retrain:
            _seed(run, seed)
        if run.card.unlearning.get("cost") is None or run.card.status != "trained":
            settings = asked.settings if method is asked.method else dict(method.defaults)
            child = Child(run=run, seed=seed, settings=settings, say=asked.say, ticker=asked.ticker)
            with run.lock():
                run.tidy()
                finish_child(deletion, child, method, method.run(deletion, child))
        return run, msgspec.convert(run.card.unlearning["cost"], Cost).tokens

    return make


def _seed(run: Run, seed: int) -> None:
    """Give `run` another seed to be trained under, where it has not got it yet."""
    card = run.card
    if card.seed != seed:
        run.write_card(dataclasses.replace(card, seed=seed, config={**card.config, "seed": seed}))


def _kept(asked: _Asked, deletion: Deletion, folder: Path, make: Callable[[Path], tuple[Run, int]]) -> _Kept:
    """The metrics of one model, and the tokens it took; the model goes away once it was asked."""
    path = folder.with_suffix(".json")
    if not path.exists():
        from sordino.unlearn.measuring.scoring import score

        folder.mkdir(mode=0o700, exist_ok=True)
        _linked(asked.run, folder)
        run, tokens = make(folder)
        scores = score(run, deletion, generate=False, ticker=asked.ticker, folder=asked.work / "signals")
        write_atomic(path, encode(_Kept(metrics=seed_metrics(scores), tokens=tokens)), mode=0o600)
    shutil.rmtree(folder, ignore_errors=True)
    return decode(path.read_bytes(), _Kept, str(path))
