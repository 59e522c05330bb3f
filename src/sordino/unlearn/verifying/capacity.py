"""How many units a run's own guarantee of differential privacy covers at once, and how many of them are left.

A model that is (ε, δ)-close to one trained without k units has, to that degree, forgotten them already: unlearning in
the sense of Guo et al. 2020 (arXiv:1911.03030) without a step. That is so for units that were chosen without looking at
the model (Gupta et al. 2021, arXiv:2106.04378); the certificate says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from sordino.dp.accounting import Relation, composed, decode_event, deltas, repeated
from sordino.dp.groups import gaussian_delta, gaussian_mu
from sordino.errors import ConfigError, UnlearningError
from sordino.ledger import read_ledger, started_in
from sordino.records import Example
from sordino.records.placed import unit_of
from sordino.run import Run
from sordino.unlearn.base import Deletion

if TYPE_CHECKING:
    import dp_accounting

__all__ = ["Capacity", "Guarantee", "capacity", "check_capacity", "guarantee_of"]

# The bound is least at or near ε*/k: these lie on the grid, beside points between them.
_LARGEST, _STEPS = 4096, 4000
# Beyond this ε, e^ε says nothing any more.
_MOST_EPSILON = 100.0
_NEXT = "Use the exact tier, train anew, or ask for a weaker guarantee."


@dataclass(frozen=True, kw_only=True)
class Guarantee:
    """What the ledger of a run promises for one `unit` (record, subject, cluster) under `relation`: its events.

    `notes` are sentences on what the promise assumes or does not cover.
    """

    event: "dp_accounting.DpEvent"
    unit: str
    relation: Relation
    notes: tuple[str, ...] = ()

    def at(self, epsilon: float) -> "_Curve":
        """All that is needed to say what groups have at a target ε; the whole δ(ε) curve is computed once.

        Raises `ConfigError` for an ε that cannot be meant.
        """
        if not 0 < epsilon <= _MOST_EPSILON:
            raise ConfigError(f"`epsilon` is {epsilon}.", f"It must be above 0, and {_MOST_EPSILON:g} at most.")
        return _Curve(self, epsilon)


@dataclass(frozen=True)
class _Curve:
    guarantee: Guarantee
    epsilon: float

    @cached_property
    def mu(self) -> float | None:
        return gaussian_mu(self.guarantee.event, self.guarantee.relation)

    @cached_property
    def points(self) -> tuple[np.ndarray, np.ndarray]:
        """ε from 0 to the target, and the δ of each."""
        even = np.linspace(0.0, self.epsilon, _STEPS + 1)
        grid = np.unique(np.concatenate([even, self.epsilon / np.arange(1, _LARGEST + 1)]))
        return grid, np.array(deltas(self.guarantee.event, grid.tolist(), relation=self.guarantee.relation))

    def delta(self, size: int) -> float:
        """δ for `size` units at the target ε, an upper bound; 1 where it says nothing.

        kμ-GDP where that is a theorem: Gaussian noise, no sampling (Dong et al. 2019, arXiv:1905.02383). Else the least
        of δ(ε)(e^{kε} − 1)/(e^ε − 1) over all ε ≤ target/k (Vadhan 2017, lemma 2.2): each (ε, δ(ε)) is a guarantee.
        """
        if size < 1:
            raise ConfigError(f"`size` is {size}.", "A group has at least one unit.")
        if self.mu is not None:
            return gaussian_delta(size * self.mu, self.epsilon)
        grid, single = self.points
        kept = grid <= self.epsilon / size
        ratio = np.full(int(kept.sum()), float(size))
        above = grid[kept] > 0
        ratio[above] = np.expm1(size * grid[kept][above]) / np.expm1(grid[kept][above])
        return float(min(1.0, (single[kept] * ratio).min()))

    def largest(self, delta: float, most: int) -> int:
        """The largest group, of `most` units at most, whose δ is `delta` at most; 0 where one unit has more."""
        low, high = 0, 1
        while high <= most and self.delta(high) <= delta:
            low, high = high, 2 * high
        high = min(high, most + 1)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if self.delta(middle) <= delta else (low, middle)
        return low


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """At (`epsilon`, `delta`) the guarantee covers `largest` units together; `spent` were deleted under it before.

    `reached` is the δ that all of them have once the present request is among them.
    """

    epsilon: float
    delta: float
    unit: str
    relation: Relation
    largest: int
    spent: int
    asked: int
    reached: float
    method: str
    notes: tuple[str, ...] = ()

    @property
    def remaining(self) -> int:
        """How many units may still be deleted under it, the present request not counted."""
        return max(0, self.largest - self.spent)

    def sentence(self) -> str:
        """What is promised, as a certificate says it."""
        gone = self.spent + self.asked
        return (
            f"The weights are (ε = {self.epsilon:g}, δ = {self.reached:.3g})-close to those of a training "
            f"{_REFERENCE[self.relation].format(gone, self.unit + 's')} ({self.method}); at δ = {self.delta:g} "
            f"{self.largest:,} can be covered, of which {max(0, self.largest - gone):,} are left."
        )


_REFERENCE = {
    "add-or-remove-one": "without {:,} {}",
    "replace-one": "in which others stand in the places of {:,} {}",
}
_REPLACED = (
    "The guarantee is about one unit for another: the training it is compared with has others in the places of those "
    "who go, not fewer units. That model has not seen them either."
)
_SEEDED = "The noise came from a seed that was set: the guarantee holds for whoever does not know it."


def guarantee_of(run: Run) -> Guarantee:
    """What the ledger of `run` promises, all its entries composed, with every step that was begun.

    Raises `UnlearningError` where there is none, or where its entries are not about the same units and neighbours.
    """
    path = run.path / "ledger.json"
    if not path.exists():
        message = "The run has no ledger: it was not trained under differential privacy, or was tuned since."
        raise UnlearningError(message, "Use another tier.")
    entries = read_ledger(path)
    kinds = {(entry.unit, entry.relation) for entry in entries}
    if len(kinds) != 1:
        what = "nothing" if not kinds else f"{len(kinds)} different kinds of units or neighbours"
        raise UnlearningError(f"The ledger of the run is about {what}.", _NEXT)
    [(unit, relation)] = kinds
    journal = run.private / "dp_steps"
    begun = started_in(journal) if journal.exists() else 0
    # A journal of the only entry may know of steps that the ledger was not told of before a crash.
    steps = [max(entry.started, begun if len(entries) == 1 else entry.planned) for entry in entries]
    unfinished = [entry for entry in entries if entry.status == "running"]
    if unfinished or not any(steps):
        raise UnlearningError("The training that the ledger is about has not ended.", "End it first.")
    notes = [warning for entry in entries for warning in entry.warnings]
    notes += [_SEEDED] * any(entry.secret_recorded_seed for entry in entries)
    notes += [_REPLACED] * (relation == "replace-one")
    events = [repeated(decode_event(e.step_event), e.events(n)) for e, n in zip(entries, steps, strict=True)]
    return Guarantee(event=composed(events), unit=unit, relation=relation, notes=tuple(notes))


def capacity(
    guarantee: Guarantee, epsilon: float, delta: float, *, units: int, spent: int = 0, asked: int = 0
) -> Capacity:
    """How many of `units` a `guarantee` covers at (`epsilon`, `delta`); `spent` are gone, `asked` are to go.

    Raises `ConfigError` for values that cannot be meant.
    """
    if not 0 < delta < 1:
        raise ConfigError(f"`delta` is {delta}.", "It must be in (0, 1), and well below one in the number of units.")
    if min(spent, asked) < 0:
        raise ConfigError(f"{spent} units are said to be spent and {asked} to be asked for.", "Counts are 0 or more.")
    curve = guarantee.at(epsilon)
    exact = curve.mu is not None
    return Capacity(
        epsilon=epsilon,
        delta=delta,
        unit=guarantee.unit,
        relation=guarantee.relation,
        largest=curve.largest(delta, units),
        spent=spent,
        asked=asked,
        reached=curve.delta(max(1, spent + asked)),
        method=f"exact: kμ-GDP, μ = {curve.mu:.6g}" if exact else "group privacy, least bound on the whole δ(ε) curve",
        notes=guarantee.notes,
    )


def check_capacity(deletion: Deletion, epsilon: float, delta: float, spent: int = 0) -> Capacity:
    """What is left for `deletion` at (`epsilon`, `delta`), after `spent` units were deleted under the same guarantee.

    Raises `UnlearningError`, with the next tier to take, where there is no guarantee, where it protects another kind of
    unit than is asked for, or where it does not cover so many units.
    """
    guarantee, asked = guarantee_of(deletion.run), _units(deletion.forget, deletion.request.kind)
    if guarantee.unit != deletion.request.kind:
        message = f"The guarantee of the run protects each {guarantee.unit}, and {deletion.request.kind}s are to go."
        raise UnlearningError(message, _NEXT)
    trained = asked + _units(deletion.retain, guarantee.unit)
    found = capacity(guarantee, epsilon, delta, units=trained + spent, spent=spent, asked=asked)
    if asked > found.remaining:
        message = (
            f"At ε = {epsilon:g} and δ = {delta:g} the guarantee covers {found.largest:,} {found.unit}s; {spent:,} "
            f"were deleted under it, {found.remaining:,} are left, and {asked:,} are to go."
        )
        raise UnlearningError(message, _NEXT)
    return found


def _units(examples: Sequence[Example], kind: str) -> int:
    return len({unit_of(example, kind) for example in examples})
