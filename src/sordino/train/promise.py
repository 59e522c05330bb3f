"""What a private training promises, and keeps so that nobody can take it back: plan, secret, journal, ledger."""

import hashlib
import os
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import msgspec

from sordino.config import RunConfig, TrainConfig
from sordino.dp.accounting import composed, decode_event, repeated, spend
from sordino.dp.engine import Mode
from sordino.dp.mechanism import Mechanism
from sordino.dp.plan import DPPlan, steps_of
from sordino.errors import RunError
from sordino.ledger import Entry, Journal, read_ledger, started_in, write_ledger
from sordino.records import Example
from sordino.records.placed import unit_of
from sordino.results import RunCard
from sordino.run import Run

__all__ = ["Promise", "earlier", "members_of", "plan_for", "together", "uncovered"]

_SECRET, _JOURNAL, _LEDGER = "dp_secret", "dp_steps", "ledger.json"


def members_of(examples: Sequence[Example], owners: Sequence[int], kind: str) -> list[list[int]]:
    """The sequences of each unit of `kind`, as places in `owners`, which says whose example each sequence is of."""
    names = [unit_of(example, kind) for example in examples]
    found: dict[str, list[int]] = {}
    for place, owner in enumerate(owners):
        found.setdefault(names[owner], []).append(place)
    return list(found.values())


def uncovered(train: TrainConfig) -> tuple[str, ...]:
    """What comes out of such a training beside the weights, and is no part of what is promised."""
    if train.monitor is None:
        return ()
    often = "step" if train.monitor.every == 1 else f"{train.monitor.every} steps"
    return (
        f"Canaries were scored every {often}: if anything about the training was changed because of it, the guarantee "
        "does not cover that choice.",
    )


def plan_for(config: RunConfig, units: int) -> DPPlan:
    """The plan of a run on `units` units; `config.dp` must be set."""
    assert config.dp is not None
    steps = steps_of(units, config.train.batch_size, config.train.epochs)
    return DPPlan.of(config.dp, units=units, batch=config.train.batch_size, steps=steps)


@dataclass(frozen=True)
class Promise:
    """The plan of `run`, written to its ledger before the first step."""

    run: Run
    plan: DPPlan
    entry: Entry

    @classmethod
    def of(cls, run: Run, card: RunCard, plan: DPPlan, warnings: tuple[str, ...] = ()) -> "Promise":
        """The promise of a run that begins, or the one it made when it began; `warnings` go to its ledger.

        Raises `RunError` where the plan is no longer the one in the ledger, or where the ledger of another
        run beside it is damaged: that is to be known before anything is spent, not after.
        """
        earlier(run.path.parent, str(card.data["fingerprint"]), run.path)
        recorded = plan.recorded()
        event = recorded.pop("event")
        if _path(run).exists():
            [entry] = read_ledger(_path(run))
            if (entry.mechanism, entry.step_event, entry.planned) != (recorded, event, plan.steps):
                message = f"The ledger of {run.path} promises another mechanism than this data and configuration make."
                raise RunError(message, "Restore them, or start a new run; what was spent stays spent.")
            return cls(run, plan, entry)
        entry = Entry(
            id=uuid.uuid4().hex,
            run=card.name,
            created=datetime.now(UTC).isoformat(timespec="seconds"),
            fingerprint=str(card.data["fingerprint"]),
            unit=plan.settings.unit,
            relation=plan.settings.relation,
            delta=plan.delta,
            mechanism=recorded,
            step_event=event,
            planned=plan.steps,
            started=0,
            status="running",
            secret_recorded_seed=plan.settings.seed is not None,
            warnings=warnings,
        )
        write_ledger(_path(run), [entry])
        return cls(run, plan, entry)

    @contextmanager
    def mechanism(self, module: Any, mode: Mode, scale: float = 1.0) -> Iterator[Mechanism]:
        """The mechanism on `module`, taking up where the journal says it was left, perhaps in another `mode`."""
        with closing(Journal(self._journal)) as journal:
            yield Mechanism(self.plan, module, self._secret(), journal, mode=mode, scale=scale)

    def _secret(self) -> bytes:
        seed, path = self.plan.settings.seed, self.run.private / _SECRET
        if seed is not None:
            return hashlib.blake2b(f"sordino/{seed}".encode(), digest_size=32).digest()
        if not path.exists():
            started = started_in(self._journal)
            if started >= self.plan.steps:
                return os.urandom(32)  # no step is left that it could serve
            if started:
                message = f"The secret of {self.run.path} is gone, so its training cannot go on."
                raise RunError(message, "Start a new run; what was spent stays spent.")
            self.run.write_private(_SECRET, os.urandom(32))
        return path.read_bytes()

    def keep(self, clip_norm: float | None = None) -> dict[str, Any]:
        """End it: count what was spent in the ledger and destroy the secret; returns what the run card tells.

        `clip_norm` is where an adaptive one ended.
        """
        started = started_in(self._journal)
        status: Literal["finished", "stopped"] = "finished" if started >= self.plan.steps else "stopped"
        write_ledger(_path(self.run), [msgspec.structs.replace(self.entry, started=started, status=status)])
        (self.run.private / _SECRET).unlink(missing_ok=True)
        before = earlier(self.run.path.parent, self.entry.fingerprint, self.run.path)
        return {
            **self.plan.described(),
            "steps": started,
            **({} if clip_norm is None else {"last clip norm": round(clip_norm, 6)}),
            "seeded": self.entry.secret_recorded_seed,
            **({"warnings": list(self.entry.warnings)} if self.entry.warnings else {}),
            **together(before, self.plan),
        }

    @property
    def _journal(self) -> Path:
        return self.run.private / _JOURNAL


def earlier(out: Path, fingerprint: str, but: Path | None = None) -> list[Entry]:
    """What other runs in `out` spent on the data with `fingerprint`, each with the steps it has begun."""
    found: dict[str, Entry] = {}
    for path in sorted(out.glob(f"*/{_LEDGER}")):
        if but is not None and path.parent == but:
            continue
        for entry in read_ledger(path):
            if entry.fingerprint == fingerprint:
                journal = path.parent / "private" / _JOURNAL
                # Where the journal went away with private/, all that was planned counts as spent.
                started = started_in(journal) if journal.exists() else max(entry.started, entry.planned)
                # A deletion that leaves a model as it is copies its ledger: that was spent once.
                known = found.get(entry.id)
                if known is None or started < known.started:
                    found[entry.id] = msgspec.structs.replace(entry, started=started)
    return [entry for entry in found.values() if entry.started]


def together(before: Sequence[Entry], plan: DPPlan) -> dict[str, Any]:
    """ε of `plan` and what was spent `before` on the same data, for whoever sees all these models; {} if nothing was.

    Runs with another unit or other neighbours promise something else and cannot be added up: they are counted.
    """
    if not before:
        return {}
    settings = plan.settings
    alike = [e for e in before if (e.unit, e.relation) == (settings.unit, settings.relation)]
    others = {"earlier runs with another promise": len(before) - len(alike)} if len(alike) < len(before) else {}
    if not alike:
        return others
    events = [repeated(decode_event(e.step_event), e.events(e.started)) for e in alike]
    spent = spend(composed([*events, plan.event()]), delta=plan.delta, relation=settings.relation)
    return {"earlier runs on this data": len(alike), "epsilon with earlier runs": round(spent.epsilon, 4), **others}


def _path(run: Run) -> Path:
    return run.path / _LEDGER
