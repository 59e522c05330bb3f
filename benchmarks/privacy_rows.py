"""The rows of the tables that benchmarks/privacy.py makes: what each says of one result."""

from collections.abc import Callable, Mapping
from typing import Any

from page import figure

# One pass over the records serves them all; the audit's report names what was left out.
ATTACKS = ("loss", "reference", "min_k", "min_k_plus_plus")
Result = Mapping[str, Any]
Row = tuple[str, Callable[[Result], str]]


def metric(name: str) -> Callable[[Result], str]:
    """The figure `name` of a result."""
    return lambda result: figure(result["metrics"].get(name))


def exposure(result: Result, side: str, level: int) -> str:
    """The mean exposure, in bits, of canaries that stood `level` times in the data, or would have."""
    found = [c[side] for c in result["canaries"] if c["repetitions"] == level]
    return figure(found[0]) if found else "none planted"


def claim(result: Result) -> str:
    """The ε of the run's own ledger."""
    private = result["privacy"]
    return f"{private['epsilon']:.3g}, δ = {private['delta']:.1g}" if private else "∞"


def seconds(result: Result) -> str:
    """CPU seconds of training."""
    value = result["cpu_seconds"]["training"]
    return "resumed" if value is None else f"{value:.0f}"


def pace(result: Result) -> str:
    """CPU time a target token, in microseconds."""
    value = result["cpu_seconds"]["token"]
    return "resumed" if value is None else f"{1e6 * value:.0f}"


ROWS: tuple[Row, ...] = (
    ("perplexity, validation", metric("utility.perplexity")),
    ("… before tuning", metric("utility.base_perplexity")),
    ("AUC, strongest attack", metric("membership.auc")),
    *((f"AUC, `{name}`", metric(f"membership.{name}.auc")) for name in ATTACKS),
    ("TPR at 10 % FPR, strongest", metric("membership.tpr@0.1fpr")),
    ("TPR at 2 % FPR, strongest", metric("membership.tpr@0.02fpr")),
    ("ε claimed", claim),
    ("ε̂, lower bound from the audit", lambda r: f"{r['metrics']['epsilon.lower']['value']:.2f}"),
    ("prefix extraction, members", metric("extraction.prefix.rate")),
    ("… non-members", metric("extraction.prefix.non-members")),
    ("canary exposure at 16×, bits of 10", lambda r: exposure(r, "included", 16)),
    ("… left out", lambda r: exposure(r, "left_out", 16)),
    ("verdict", lambda r: str(r["verdict"])),
    ("steps", lambda r: str(r["training"]["step"])),
    ("CPU seconds, training", seconds),
    ("CPU µs a target token, training", pace),
)
