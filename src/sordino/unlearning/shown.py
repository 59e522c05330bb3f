"""What `sordino unlearn` shows: the ways of a plan, what a verification found, and what to do next."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sordino.console import say
from sordino.results import UNBOUNDED

if TYPE_CHECKING:
    from sordino.results import Estimate, Verification
    from sordino.unlearn.flow import Transaction
    from sordino.unlearn.planning import Option

__all__ = ["counted", "figure", "say_after", "show_options", "show_verification"]


def counted(count: int, what: str) -> str:
    """A number with its noun."""
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def show_options(found: Sequence["Option"], chosen: str) -> None:
    """Every way with what it costs and promises, or why it is not possible; an arrow at the one that was chosen."""
    width = max(len(one.method) for one in found)
    for one in found:
        mark = "→" if one.method == chosen else " "
        share = "" if one.share is None else f"{one.share:.1%} of training anew"
        told = "; ".join(filter(None, (share, f"promises: {one.promise}")))
        told = f"not possible. {one.refused}" if one.refused else told
        say(f"{mark} {one.tier:<11}  {one.method:<{width}}  {told}")


def say_after(found: "Verification", transaction: "Transaction") -> None:
    """What can be done next."""
    run = transaction.run.path
    if found.outcome == "fail":
        say(f"what failed is not certified; with another method: a new request to {transaction.child.path}")
        return
    if found.qualification is None and found.tier == "approximate":
        method = transaction.planned.method
        say(f"no qualification was cited: `sordino unlearn qualify {run} --method {method}`, then verify again")
    say(f"next: `sordino unlearn certify {run} --key KEY`")


def show_verification(found: "Verification") -> None:
    """The figures, the comparisons, what was tried, and the outcome with its reasons."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", *(row.name.replace("_", " ") for row in found.rows), box=None, pad_edge=False)
    for name, words in _SHOWN_METRICS.items():
        if any(name in row.metrics for row in found.rows):
            table.add_row(words, *(figure(row.metrics.get(name)) for row in found.rows))
    console.print(table)
    console.print()
    for one in found.comparisons:
        words = one.metric.replace("_", " ")
        console.print(
            f"{one.outcome:<13} {words}: {figure(one.difference)}, allowed ± {one.margin:.3g}", soft_wrap=True
        )
    for attack in found.robustness:
        name = attack.name.replace("_", " ")
        console.print(f"{'tried':<13} {name}: {figure(attack.estimate)}", soft_wrap=True, markup=False)
    for name, why in found.untried.items():
        console.print(f"{'not tried':<13} {name}: {why}", soft_wrap=True, markup=False)
    console.print(f"\n[bold]{found.outcome}[/bold]")
    for reason in found.reasons:
        console.print(f"  {reason}", soft_wrap=True, markup=False)


# Of all metrics those that tell at a glance what was forgotten; the certificate has the others too.
_SHOWN_METRICS = {
    "loss": "loss, forgotten",
    "never_loss": "loss, never trained on",
    "retain_loss": "loss, staying",
    "validation_loss": "loss, validation",
    "auc_calibrated": "AUC, calibrated",
    "extraction_strength": "extraction strength",
    "exact_memorisation": "exact memorisation",
    "rouge_l": "ROUGE-L",
}


def figure(estimate: "Estimate | None") -> str:
    """An estimate in little room: where no interval can be had, the figure alone."""
    if estimate is None:
        return ""
    if estimate.value is not None and abs(estimate.low) >= UNBOUNDED:
        return f"{estimate.value:.3g} (one subject)"
    return str(estimate)
