"""The differential privacy that a run claims, read from its ledger, in terms the audit can test."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.dp.accounting import decode_event, repeated, spend
from sordino.dp.events import leaves
from sordino.ledger import read_ledger
from sordino.records import Example
from sordino.records.placed import unit_of
from sordino.results import AuditPlan
from sordino.run import Run

if TYPE_CHECKING:
    import dp_accounting

__all__ = ["Claimed", "claimed"]


@dataclass(frozen=True, kw_only=True)
class Claimed:
    """A claim in `words`; `epsilon` is it at the audit's own δ, or None where the coins cannot test it, and `why`."""

    words: str
    epsilon: float | None
    why: str = ""


def claimed(run: Run, candidates: Sequence[Example], plan: AuditPlan) -> Claimed | None:
    """What `run` claims; None where it claims nothing.

    A coin decides about a whole group of records, and by leaving it out or taking it in: the lower
    bound speaks of a claim about the same unit under add-or-remove-one, and of no other. What came of a
    deletion whose steps were not private claims nothing. Raises `RunError` where a run that was to be
    private has no ledger.
    """
    card = run.card
    if not card.config.get("dp") or (card.unlearning and not card.privacy):
        return None
    [entry] = read_ledger(run.path / "ledger.json")
    event = repeated(decode_event(entry.step_event), max(1, entry.events(entry.started)))
    spent = spend(event, delta=entry.delta, relation=entry.relation)
    sampler = {"poisson": "Poisson"}.get(name := str(entry.mechanism.get("sampler", "poisson")), name)
    words = (
        f"ε = {spent.epsilon:.3g} at δ = {entry.delta:.2g} for a {entry.unit} ({entry.relation}; {sampler} sampling; "
        f"{spent.accountant})"
    )
    if entry.relation != "add-or-remove-one":
        return Claimed(words=words, epsilon=None, why="Coins take records in or leave them out; they replace none.")
    units, coins = {unit_of(e, entry.unit) for e in candidates}, {e.group for e in candidates}
    if len(units) != len(coins):
        why = f"A coin decides about {len(units) / len(coins):.1f} units of the claim together (dp.unit: cluster fits)."
        return Claimed(words=words, epsilon=None, why=why)
    if plan.bound == "f-dp" and not _gaussian(event):
        why = "The f-DP bound speaks of Gaussian trade-off curves, and sampled batches give another (one-run fits)."
        return Claimed(words=words, epsilon=None, why=why)
    return Claimed(words=words, epsilon=spend(event, delta=plan.delta, relation="add-or-remove-one").epsilon)


def _gaussian(event: "dp_accounting.DpEvent") -> bool:
    """Whether the trade-off curve is exactly Gaussian: steps of Gaussian noise on everybody, and no other."""
    return all(type(step).__name__ == "GaussianDpEvent" for step in leaves(event))
