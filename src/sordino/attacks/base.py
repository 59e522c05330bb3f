"""The contract of attacks, and the decorators by which they are found.

An attack is a function; the decorator wraps it in an `Attack` that says what it is and needs. Any
module in `sordino.attacks.<family>`, and any entry point of the group `sordino.attacks`, that holds
an `Attack` under its own name is part of every audit.
"""

import importlib
import inspect
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import entry_points
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike

from sordino.errors import AuditError, did_you_mean
from sordino.serialize import View
from sordino.signals import STATISTICS, Scores, Signals

__all__ = [
    "SUITES",
    "Attack",
    "Family",
    "Odds",
    "Suite",
    "Task",
    "Windows",
    "discover",
    "extraction",
    "find",
    "in_context",
    "membership",
    "offered",
]

Family = Literal["membership", "extraction", "in-context"]
Task = Literal["causal-lm", "classification"]
Suite = Literal["quick", "full", "all"]
Level = Literal["record", "unit", "dataset"]
Source = Literal["signals", "model"]
GROUP = "sordino.attacks"
SUITES: tuple[Suite, ...] = ("quick", "full", "all")
"""Which attacks an audit makes: those from at most one more pass each, all but those on shadows, all."""


@dataclass(frozen=True, kw_only=True)
class Attack:
    """An attack and what it needs.

    `access` is what the adversary must see (for example "log-probabilities"); `base` says whether
    the untuned model's signals are needed; `views` are the transforms of each record to be scored
    as well; `needs` the statistics of a token it reads, as some servers tell only `logprob`, or
    `samples`: text that the model writes; `paper` its source; `tasks` are the kinds of model on which
    it means something. `inputs` are what else the audit must provide, each a file in `sordino.audit.inputs`
    (`shadows`, `known`, `neighbours` and so on); `cost` says in words what that takes, and `suite` the
    smallest suite it is part of. A record's score depends on nothing but the record, unless the attack is
    `joint`. Of the `level` "unit" are scores of whole units, which each of their records bears; "dataset" says
    that the scores are to be judged by one test over all records, learned from half of them. An attack `on` the
    "model" is handed the model itself, to ask of it what no stored signals hold.
    """

    name: str
    family: Family
    run: Callable[..., Any]
    paper: str
    access: str
    base: bool
    views: Mapping[str, View]
    needs: frozenset[str] = frozenset(STATISTICS)
    tasks: tuple[Task, ...] = ("causal-lm",)
    inputs: frozenset[str] = frozenset()
    cost: str = "arithmetic"
    suite: Suite = "quick"
    level: Level = "record"
    joint: bool = False
    on: Source = "signals"

    def __call__(self, *args: Any, **parameters: Any) -> Any:
        """Carry out the attack."""
        return self.run(*args, **parameters)

    @property
    def summary(self) -> str:
        """The first sentence of its docstring."""
        return (inspect.getdoc(self.run) or "").split("\n\n")[0].replace("\n", " ")

    @property
    def parameters(self) -> dict[str, Any]:
        """Its keyword parameters and their defaults."""
        signature = inspect.signature(self.run)
        return {n: p.default for n, p in signature.parameters.items() if p.default is not p.empty}


def membership(  # noqa: PLR0913 - what an attack declares
    *,
    paper: str,
    access: str = "log-probabilities",
    base: bool = False,
    views: Mapping[str, View] | None = None,
    needs: Sequence[str] = STATISTICS,
    tasks: tuple[Task, ...] = ("causal-lm",),
    inputs: Sequence[str] = (),
    cost: str | None = None,
    suite: Suite = "quick",
    level: Level = "record",
    joint: bool = False,
) -> Callable[[Callable[..., Scores]], Attack]:
    """Mark `(Signals, *, parameters) -> Scores` as a membership attack; higher = more likely a member."""
    passes = len(views or {})

    def mark(function: Callable[..., Scores]) -> Attack:
        return Attack(
            name=function.__name__,
            family="membership",
            run=function,
            paper=paper,
            access=access,
            base=base,
            views=dict(views or {}),
            needs=frozenset(needs),
            tasks=tasks,
            inputs=frozenset(inputs),
            cost=cost or ("arithmetic" if not passes else f"{passes} more pass{'es' if passes > 1 else ''} a record"),
            suite=suite,
            level=level,
            joint=joint,
        )

    return mark


def offered(attack: Attack, signals: Signals) -> Signals:
    """`signals` without all that the attack has not declared: it sees what it says it sees."""
    # An attack on a data set learns from one half of the records what it does on the other.
    told = "known" in attack.inputs or attack.level == "dataset"
    known = signals.known if told else None
    if known is not None:
        known = replace(known, signals=offered(attack, replace(known.signals, known=None)))
    return replace(
        signals,
        base=None if signals.base is None or not attack.base else offered(attack, replace(signals.base, base=None)),
        views={name: view for name, view in signals.views.items() if name in attack.views},
        generated=signals.generated if "samples" in attack.needs | attack.inputs else None,
        units=signals.units if attack.level == "unit" else (),
        shadows=signals.shadows if "shadows" in attack.inputs else None,
        drawn=signals.drawn if "drawn" in attack.inputs else None,
        known=known,
        measured={name: rows for name, rows in signals.measured.items() if name in attack.inputs},
    )


def extraction(  # noqa: PLR0913 - what an attack declares
    *,
    paper: str,
    access: str = "generation",
    needs: Sequence[str] = STATISTICS,
    inputs: Sequence[str] = (),
    cost: str = "arithmetic",
    suite: Suite = "quick",
    on: Source = "signals",
) -> Callable[[Callable[..., Any]], Attack]:
    """Mark `(Signals, *, parameters) -> Windows` as an extraction attack on every window of a record.

    Of an attack with the input "drawn" the result is `Odds`. One `on` the "model" is `(Model, …, *, parameters)`
    and returns what its docstring says.
    """

    def mark(function: Callable[..., Any]) -> Attack:
        return Attack(
            name=function.__name__,
            family="extraction",
            run=function,
            paper=paper,
            access=access,
            base=False,
            views={},
            needs=frozenset(needs),
            inputs=frozenset(inputs),
            cost=cost,
            suite=suite,
            on=on,
        )

    return mark


def in_context(
    *, paper: str, access: str, cost: str, needs: Sequence[str] = (), inputs: Sequence[str] = ()
) -> Callable[[Callable[..., Scores]], Attack]:
    """Mark `(Signals) -> Scores` as an attack on who stood in the prompt; higher = more likely one who did.

    Signals are of records before and after the prompt: `measured["prompt"]`, or `generated`. It is part of no suite.
    """

    def mark(function: Callable[..., Scores]) -> Attack:
        return Attack(
            name=function.__name__,
            family="in-context",
            run=function,
            paper=paper,
            access=access,
            base=False,
            views={},
            needs=frozenset(needs),
            inputs=frozenset(inputs),
            cost=cost,
        )

    return mark


Accept = Callable[[Sequence[str], Sequence[str]], np.ndarray]
"""`(written, true)` texts of as many passages -> which of them count as extracted (bool)."""


@dataclass(frozen=True, kw_only=True)
class Windows:
    """What an extraction attack tried and got: record index and start of each suffix that came out.

    `tried` (records) counts the windows of each record; `record`, `start`, `stop` (hits) are token
    positions in the record; in `shortened` records the lengths asked for had to shrink. Where `accept` is given,
    these are no hits yet but windows to be decoded: it tells which of the texts that a model wrote there count.
    """

    tried: np.ndarray
    record: np.ndarray
    start: np.ndarray
    stop: np.ndarray
    shortened: int = 0
    accept: Accept | None = None


@dataclass(frozen=True, kw_only=True)
class Odds:
    """How likely one query gives a passage of each record, its likeliest one, under each of D decodings.

    `tried` (records) counts the windows of each record; `logprob` (records, D) is a natural logarithm, −∞ where no
    window is ever drawn or none was tried; `start` and `stop` (records, D) are token positions in the record.
    """

    tried: np.ndarray
    logprob: np.ndarray
    start: np.ndarray
    stop: np.ndarray


def discover(family: Family) -> dict[str, Attack]:
    """All attacks of a family by name: ours and those that installed packages add.

    Raises `AuditError` where two have one name, or a module holds no attack of its own name.
    """
    found: dict[str, Attack] = {}
    package = importlib.import_module(f"sordino.attacks.{family.replace('-', '_')}")
    for module in pkgutil.iter_modules(package.__path__):
        attack = getattr(importlib.import_module(f"{package.__name__}.{module.name}"), module.name, None)
        if not isinstance(attack, Attack):
            message = f"{package.__name__}.{module.name} holds no attack named '{module.name}'."
            raise AuditError(message, "File name, function name and attack name are one.")
        found[attack.name] = attack
    for entry in entry_points(group=GROUP):
        attack = entry.load()
        if isinstance(attack, Attack) and attack.family == family:
            if attack.name in found:
                message = f"Two attacks are named '{attack.name}'; one comes from {entry.value}."
                raise AuditError(message, "Uninstall or rename one.")
            found[attack.name] = attack
    return dict(sorted(found.items()))


def find(family: Family, name: str, task: str | None = None) -> Attack:
    """The attack called `name`; raises `AuditError`, with a suggestion, where there is none for the `task`."""
    attacks = discover(family)
    if name not in attacks:
        raise AuditError(f"No {family} attack named '{name}'.", did_you_mean(name, attacks))
    if task is not None and task not in attacks[name].tasks:
        serving = ", ".join(n for n, attack in attacks.items() if task in attack.tasks)
        message = f"The attack '{name}' means nothing for a model of the task {task}."
        raise AuditError(message, f"Attacks that do: {serving or 'none'}.")
    return attacks[name]


def check(signals: Signals, scores: ArrayLike, attack: Attack) -> Scores:
    """`scores` as float64; raises `AuditError` where they are not one finite number (or NaN) a record."""
    result = np.asarray(scores, dtype=np.float64)
    if result.shape != (len(signals),):
        message = f"The attack '{attack.name}' returned shape {result.shape} for {len(signals)} records."
        raise AuditError(message, "Return one score a record.")
    if np.isinf(result).any():
        message = f"The attack '{attack.name}' returned an infinite score."
        raise AuditError(message, "Guard its divisions; NaN means a record cannot be scored.")
    return result
