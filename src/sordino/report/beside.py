"""Several runs on the same data, side by side: what each leaks, what it is good for, and what it cost."""

import base64
import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from sordino.errors import RunError
from sordino.report import text
from sordino.report.beside_plot import Point, beside_svg
from sordino.report.html import TEMPLATES, environment
from sordino.results import AuditReport, Estimate, RunCard
from sordino.run import Run, write_atomic

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["Side", "beside_table", "lines", "render_beside", "sides", "write_beside"]

UNKNOWN = "–"
# How passages are extracted, where not word for word given the beginning.
_HOW = {
    "near": "Nearly word for word, given the beginning.",
    "near_bound": "Nearly word for word, given the beginning.",
    "generate_and_rank": "Word for word, in texts of its own.",
}


@dataclass(frozen=True, kw_only=True)
class Side:
    """One run of a comparison, under the `name` it has there; `link` leads to its report, "" to none."""

    name: str
    card: RunCard
    report: AuditReport
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A figure with its interval, and words below it."""

    value: str
    interval: str = ""
    words: str = ""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One figure of every run, in the order of the runs."""

    label: str
    cells: tuple[Cell, ...]
    words: str = ""


def sides(pairs: Sequence[tuple[RunCard, AuditReport]], links: Sequence[str] = ()) -> tuple[Side, ...]:
    """Name the runs of a comparison: as they were configured, or where two share a name, by their folders.

    Raises `RunError` where there are none, or where they were not trained for one task on the same records:
    their figures would differ for reasons that have nothing to do with the runs.
    """
    if not pairs:
        raise RunError("There is no run to compare.", "Name the folders of two or more audited runs.")
    first = pairs[0][0]
    for card, report in pairs:
        for what, here, there in (
            ("data", first.data["fingerprint"], card.data["fingerprint"]),
            ("task", pairs[0][1].task, report.task),
        ):
            if here != there:
                message = f"{first.name} and {card.name} cannot be compared: their {what} differs ({here}, {there})."
                raise RunError(message, "Compare runs on the same records.")
    names = [str(card.config.get("name", card.name)) for card, _ in pairs]
    return tuple(
        Side(name=name if names.count(name) == 1 else card.name, card=card, report=report, link=link)
        for name, (card, report), link in zip(names, pairs, [*links, *[""] * (len(pairs) - len(links))], strict=True)
    )


def lines(runs: Sequence[Side]) -> list[Line]:
    """Put the figures of `runs` under one another; a figure that a run has not, or may not show, is a dash."""
    useful = _useful(runs)
    found = [
        Line(label="ε claimed", cells=tuple(_claimed(r) for r in runs), words="A guarantee, from the ledger."),
        Line(label="ε measured, at least", cells=tuple(_measured(r) for r in runs), words="From the audit alone."),
        Line(label="AUC, strongest attack", cells=tuple(_auc(r) for r in runs), words="0.5 is a coin toss."),
    ]
    rate = _rate(runs)
    if rate is not None:
        found.append(_line(runs, f"membership.{rate}", text.metric_label(rate), "Members recognised, few accused."))
    for name in dict.fromkeys(a.name for r in runs for a in r.report.attempts if a.family == "extraction"):
        label = f"{text.metric_label('rate')}, {name}"
        found.append(
            _line(runs, f"extraction.{name}.rate", label, _HOW.get(name, "Word for word, given the beginning."))
        )
    level = max((level.repetitions for r in runs for level in r.report.canaries), default=None)
    if level is not None:
        cells = tuple(_exposure(r, level) for r in runs)
        found.append(Line(label=f"Exposure, {level}× repeated", cells=cells, words="Bits of a planted secret."))
    base = next((r.report.utility.get(f"base_{useful}") for r in runs), None)
    before = "" if base is None else f"Before tuning: {text.estimate_text(base)}."
    found.append(_line(runs, f"utility.{useful}", text.metric_label(useful), before))
    found.append(Line(label="Training", cells=tuple(_seconds(r) for r in runs)))
    found.append(Line(label="Verdict", cells=tuple(_verdict(r) for r in runs)))
    return found


def _useful(runs: Sequence[Side]) -> str:
    return "accuracy" if runs[0].report.task == "classification" else "perplexity"


def _figure(run: Side, metric: str) -> Estimate | None:
    return None if text.withheld(run.report, metric) else run.report.metrics.get(metric)


def _cell(one: Estimate | None, words: str = "") -> Cell:
    if one is None:
        return Cell(value=UNKNOWN, words=words)
    return Cell(value=text.figure_text(one), interval=text.interval_text(one), words=words)


def _line(runs: Sequence[Side], metric: str, label: str, words: str) -> Line:
    return Line(label=label, cells=tuple(_cell(_figure(r, metric)) for r in runs), words=words)


def _rate(runs: Sequence[Side]) -> str | None:
    """The TPR at the lowest false-positive rate that every run can resolve, or at the highest that one can."""
    rates: dict[float, int] = {}
    for name, one in ((n, e) for r in runs for n, e in r.report.metrics.items()):
        fpr = text.false_positive_rate(name.removeprefix("membership."))
        if fpr is not None:
            rates[fpr] = rates.get(fpr, 0) + (one.value is not None)
    resolved = [fpr for fpr, count in rates.items() if count == len(runs)]
    chosen = min(resolved) if resolved else max(rates, default=None)
    return None if chosen is None else f"tpr@{chosen:g}fpr"


def _claimed(run: Side) -> Cell:
    privacy = run.card.privacy
    if not privacy:
        return Cell(value="none", words="no differential privacy")
    words = f"δ = {privacy['delta']:.2g}, for a {privacy['protected unit']}, {privacy['neighbours']}"
    if "epsilon with earlier runs" in privacy:
        words += f"; {privacy['epsilon with earlier runs']:.3g} together with earlier runs on these records"
    return Cell(value=f"{privacy['epsilon']:.3g}", words=words)


def _measured(run: Side) -> Cell:
    bound = _figure(run, "epsilon.lower")
    if bound is None or bound.value is None:
        return Cell(value=UNKNOWN)
    return Cell(value=f"{bound.value:.2f}", words=f"{bound.confidence:.0%} confidence, δ = {run.card.plan.delta:g}")


def _auc(run: Side) -> Cell:
    return _cell(_figure(run, "membership.auc"), run.report.strongest or "")


def _exposure(run: Side, repetitions: int) -> Cell:
    for level in run.report.canaries:
        if level.repetitions == repetitions:
            return _cell(level.included, f"left out {text.figure_text(level.left_out)}, at most {level.bits:.1f}")
    return Cell(value=UNKNOWN)


def _seconds(run: Side) -> Cell:
    seconds, steps = run.report.seconds.get("training"), run.card.training.get("step")
    if seconds is None:
        return Cell(value=UNKNOWN)
    return Cell(value=f"{seconds:,.0f} s", words="" if steps is None else f"{steps:,} steps")


def _verdict(run: Side) -> Cell:
    return Cell(value=text.STATE[run.report.verdict.state], words=text.headline(run.report)[0])


def _point(run: Side) -> Point | None:
    """Where `run` stands in the picture; None where a figure is missing."""
    x, y = _figure(run, f"utility.{_useful([run])}"), _figure(run, "membership.auc")
    if x is None or y is None or x.value is None or y.value is None:
        return None
    claim = f"ε = {run.card.privacy['epsilon']:.3g} claimed" if run.card.privacy else "no claim"
    return Point(name=text.printable(run.name), claim=claim, x=x, y=y, private=bool(run.card.privacy))


def _picture(runs: Sequence[Side]) -> str:
    useful = _useful(runs)
    bases = [one for r in runs if (one := r.report.utility.get(f"base_{useful}")) is not None]
    # Runs from one base model on the same records tell the same of it.
    distinct = {one.value: one for one in bases if one.value is not None}
    points = [point for run in runs if (point := _point(run)) is not None]
    return beside_svg(points, bases=list(distinct.values()), useful=useful, key="beside")


def render_beside(runs: Sequence[Side]) -> str:
    """Write the comparison as one HTML document: picture, table, and how to read them. It holds no private text."""
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    return (
        environment()
        .get_template("beside.html.j2")
        .render(
            runs=runs,
            style=style,
            style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
            picture=_picture(runs),
            useful=_useful(runs),
            lines=lines(runs),
            version=runs[0].report.provenance.get("sordino", ""),
        )
    )


def beside_table(runs: Sequence[Side]) -> "Table":
    """Lay the comparison out for a terminal, a column a run."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    table = Table("", box=SIMPLE_HEAD, title="Side by side", title_justify="left", title_style="bold", pad_edge=False)
    for run in runs:
        table.add_column(Text(text.printable(run.name)), overflow="fold")
    for line in lines(runs):
        # The sentence of a verdict is too long for a column beside others.
        said = [f"{c.value} {c.interval}".strip() for c in line.cells]
        table.add_row(Text(line.label), *(Text(text.printable(one)) for one in said))
    return table


def write_beside(runs: Sequence[Run], out: Path) -> Path:
    """Write the comparison of audited `runs` to `out`, with links to the reports that are there; returns `out`.

    Raises `RunError` as `sides` does, and where a run has not been audited.
    """
    if not out.parent.is_dir():
        raise RunError(f"There is no folder {out.parent}.", "Make it, or choose another.")
    pages = [run.path / "report.html" for run in runs]
    links = [quote(os.path.relpath(page, out.parent)) if page.exists() else "" for page in pages]
    found = sides([(run.card, run.audit) for run in runs], links)
    write_atomic(out, render_beside(found).encode())
    return out
