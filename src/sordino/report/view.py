"""What the page shows, chosen from a report: rows of figures, cards of attacks, groups of provenance.

Everything here is plain text or an SVG of our own; what an invalid split withholds never gets further.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from sordino.report import plots, text
from sordino.report.effort_plot import effort_svg
from sordino.report.memorisation_plot import memorisation_svg
from sordino.results import Attempt, AuditReport, CanaryLevel, Estimate, Notice, RunCard

__all__ = [
    "MANY",
    "Card",
    "Row",
    "cards",
    "confidence_text",
    "figures",
    "key_figures",
    "metrics",
    "notices",
    "provenance",
    "ranking",
    "tradeoff",
]


MANY = 12
"""So many attacks that all but the strongest are folded."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure as the page shows it; `words` explains it, `control` (named `beside`) stands beside it.

    `realised` are the false-positive rates at which a TPR was really measured, on the model and its control.
    """

    label: str
    metric: str
    estimate: Estimate
    control: Estimate | None
    words: str
    beside: str = "untuned base"
    realised: tuple[str, str] = ("", "")


@dataclass(frozen=True, kw_only=True)
class Card:
    """One attack as the page shows it; `hidden` counts figures withheld for an invalid split."""

    attempt: Attempt
    slug: str
    figure: str
    rows: tuple[Row, ...]
    parameters: tuple[tuple[str, str], ...]
    methods: tuple[str, ...]
    hidden: int


def cards(report: AuditReport) -> list[Card]:
    """Collect what the page shows of every attack: in the report's order, where there are many the best first."""
    made = [_card(report, attempt, position) for position, attempt in enumerate(report.attempts, start=1)]
    return sorted(made, key=partial(_rank, report)) if len(made) > MANY else made


def _rank(report: AuditReport, card: Card) -> tuple[bool, bool, float]:
    """Order the strongest membership attack first, the others by AUC, then all other attacks."""
    attempt = card.attempt
    area = attempt.estimates["auc"].value if "auc" in attempt.estimates else None
    return attempt.family != "membership", attempt.name != report.strongest, -(area or 0.0)


def _card(report: AuditReport, attempt: Attempt, position: int) -> Card:
    """Collect what the page shows of one attack; an invalid split takes membership figures and curve away."""
    name, slug = f"{attempt.family}.{attempt.name}", f"attack-{position}"
    shown = [metric for metric in attempt.estimates if not text.withheld(report, f"{name}.{metric}")]
    hidden = len(attempt.estimates) - len(shown)
    # A realised FPR stands in the row of its TPR.
    rows = [metric for metric in shown if metric.replace("realised f", "t") not in set(shown) - {metric}]
    return Card(
        attempt=attempt,
        slug=slug,
        figure="" if hidden else plots.roc_svg(attempt, key=slug, non_members=report.counts.get("non-members")),
        rows=tuple(_row(attempt, metric, text.metric_label(metric)) for metric in rows),
        parameters=tuple(text.flatten(attempt.parameters)),
        methods=_methods(attempt, rows),
        hidden=hidden,
    )


def _row(attempt: Attempt, metric: str, label: str, *, full: bool = False) -> Row:
    one = attempt.estimates[metric]
    words = text.in_words(metric, one, full=full)
    return Row(
        label=label,
        metric=metric,
        estimate=one,
        control=attempt.control.get(metric),
        words=words,
        realised=(_realised(attempt.estimates, metric), _realised(attempt.control, metric)),
    )


def _realised(estimates: Mapping[str, Estimate], metric: str) -> str:
    """Write the false-positive rate at which the TPR called `metric` was really measured, if it is known."""
    one = estimates.get(metric.replace("tpr@", "realised fpr@"))
    return "" if one is None or not metric.startswith("tpr@") else f"at FPR {text.estimate_text(one)}"


def _methods(attempt: Attempt, shown: Sequence[str]) -> tuple[str, ...]:
    """Say how the intervals were made, each way once with the figures it holds for."""
    groups: dict[tuple[str, int, float], list[str]] = {}
    for metric in shown:
        one = attempt.estimates[metric]
        labels = groups.setdefault((one.method, one.n, one.confidence), [])
        labels.append(text.metric_label(metric, short=True))
    return tuple(
        f"{', '.join(labels)}: {method}, n = {n:,}{confidence_text(confidence)}"
        for (method, n, confidence), labels in groups.items()
    )


def confidence_text(confidence: float) -> str:
    """Say the confidence of an interval where it isn't the 95% that the page announces."""
    return "" if confidence == 0.95 else f", {100 * confidence:g}% confidence"


def _strongest(report: AuditReport) -> Attempt | None:
    """Find the strongest attack, with its figures from records that had no part in choosing it.

    The report's `membership.auc` and its like are those; they take the place of the attack's own.
    """
    named = (one for one in report.attempts if one.family == "membership" and one.name == report.strongest)
    found = next(named, None)
    if found is None or text.withheld(report, "membership.auc"):
        return None
    fresh = {metric: report.metrics.get(f"membership.{metric}", one) for metric, one in found.estimates.items()}
    return replace(found, estimates=fresh)


def _sharpest(attempt: Attempt) -> list[str]:
    """Choose the TPR at the lowest false-positive rate that is resolved: n decides, not the value."""
    rates = {metric: text.false_positive_rate(metric) for metric in attempt.estimates}
    found = [(fpr, metric) for metric, fpr in rates.items() if fpr is not None]
    resolved = [pair for pair in found if attempt.estimates[pair[1]].value is not None]
    return [min(resolved)[1]] if resolved else [max(found)[1]] if found else []


def key_figures(report: AuditReport) -> list[Row]:
    """Choose the few figures under the headline; none where the split is invalid."""
    if report.verdict.state == "invalid split":
        return []
    wanted: list[tuple[Attempt, str]] = []
    strongest = _strongest(report)
    if strongest is not None:
        wanted += [(strongest, metric) for metric in ("auc", *_sharpest(strongest))]
    wanted += [(one, "rate") for one in report.attempts if one.family == "extraction"]
    rows = [
        _row(attempt, metric, f"{text.metric_label(metric)}, {attempt.name}", full=True)
        for attempt, metric in wanted
        if metric in attempt.estimates
    ]
    most_repeated = sorted(report.canaries, key=lambda level: level.repetitions)[-1:]
    return rows + [_exposure(level) for level in most_repeated]


def _exposure(level: CanaryLevel) -> Row:
    return Row(
        label=f"Exposure, {level.repetitions}× repeated",
        metric="exposure",
        estimate=level.included,
        control=level.left_out,
        words=f"Bits of a planted secret the model gives away, of {level.bits:.1f} that can be measured.",
        beside="left out",
    )


def tradeoff(report: AuditReport) -> list[Row]:
    """Put usefulness beside the leak: every utility with its `base_` twin, then the strongest AUC."""
    useful = report.utility
    twins = {f"base_{name}" for name in useful} & set(useful)
    pairs = [(name, one, useful.get(f"base_{name}")) for name, one in useful.items() if name not in twins]
    rows = [
        Row(label=text.metric_label(name), metric=name, estimate=one, control=twin, words="")
        for name, one, twin in pairs
    ]
    strongest = _strongest(report)
    if strongest is not None and "auc" in strongest.estimates:
        rows.append(_row(strongest, "auc", f"AUC of {strongest.name}"))
    return rows


def ranking(levels: Sequence[CanaryLevel]) -> list[str]:
    """Say how exposure was measured, each way once with the levels it holds for."""
    groups: dict[tuple[str, float], list[CanaryLevel]] = {}
    for level in levels:
        groups.setdefault((level.method, level.bits), []).append(level)
    told = []
    for (how, bits), same in groups.items():
        names, forwards = ", ".join(f"{level.repetitions}×" for level in same), sum(level.forwards for level in same)
        asked = f", {forwards:,} token-forwards" if forwards else ""
        told.append(f"{names}: {how}, at most {bits:.1f} bits{asked}")
    return told


def figures(report: AuditReport) -> dict[str, str]:
    """Draw the pictures that aren't tied to one attack."""
    strongest = _strongest(report)
    membership = [one for one in report.attempts if one.family == "membership"]
    shown = {"overview": "", "tradeoff": "", "exposure": plots.exposure_svg(report.canaries, key="exposure")}
    shown["effort"] = effort_svg(report.effort, key="queries")
    shown["memorisation"] = memorisation_svg(report.memorisation, key="memorisation")
    if not text.withheld(report, "membership.auc"):
        shown["overview"] = plots.overview_svg(membership, key="overview")
    if strongest is not None:
        leak = (strongest.control.get("auc"), strongest.estimates.get("auc"))
        shown["tradeoff"] = plots.tradeoff_svg(strongest.name, utility=report.utility, leak=leak, key="tradeoff")
    return shown


def notices(report: AuditReport, card: RunCard) -> list[Notice]:
    """Join the notices of the run and of the audit, each once."""
    return list(dict.fromkeys((*card.notices, *report.notices)))


def metrics(report: AuditReport) -> tuple[list[tuple[str, Estimate]], int]:
    """Find the figures by full name that no attack's card has, and how many of them are withheld."""
    carded = {f"{one.family}.{one.name}.{metric}" for one in report.attempts for metric in one.estimates}
    named = [(name, one) for name, one in report.metrics.items() if name not in carded]
    shown = [(name, one) for name, one in named if not text.withheld(report, name)]
    return shown, len(named) - len(shown)


def provenance(report: AuditReport, card: RunCard) -> list[tuple[str, list[tuple[str, str]]]]:
    """Group the rows from which a third party can repeat the run."""
    audit = {"run": report.run, "created": report.created, "schema": report.schema}
    run = {
        "name": card.name,
        "created": card.created,
        "status": card.status,
        # Coins are keyed hashes of it: with the seed and the name of a unit, its coin is known.
        "seed": "kept by the owner, in run.json",
        "parent": card.parent,
        "schema": card.schema,
    }
    plan = asdict(card.plan)
    if not report.trained_here:
        # Of coins and canaries, and there are none.
        ours = ("headline", "bound", "guess_share", "delta", "token_forwards")
        plan = {k: v for k, v in plan.items() if k not in ours}
    groups: list[tuple[str, Mapping[str, Any]]] = [
        ("Audit", audit | dict(report.provenance)),
        ("Audit plan, fixed before training" if report.trained_here else "Audit plan", plan),
        ("Seconds", {name: _spent(report, name) for name in report.seconds}),
        ("Run", run),
        ("Differential privacy", card.privacy),
        ("Deletion", {key: value for key, value in card.unlearning.items() if key != "seed"}),
        ("Configuration", _without_seeds(card.config)),
        ("Data", card.data),
        ("Model", card.model),
        ("Training", card.training),
        ("Environment", card.environment),
    ]
    return [(name, text.flatten(values)) for name, values in groups if values]


def _spent(report: AuditReport, name: str) -> str:
    """The seconds that `name` took and, of a part of the audit, its share."""
    seconds, audit = report.seconds[name], report.seconds.get("audit", 0.0)
    part = name not in ("training", "audit") and audit > 0
    return f"{seconds:,.1f} ({seconds / audit:.0%} of the audit)" if part else f"{seconds:,.1f}"


def _without_seeds(config: Mapping[str, Any]) -> dict[str, Any]:
    # Whoever knows them knows the coins, and under differential privacy the noise.
    shown = {key: value for key, value in config.items() if key != "seed"}
    if shown.get("dp"):
        shown["dp"] = {key: value for key, value in shown["dp"].items() if key != "seed"}
    return shown
