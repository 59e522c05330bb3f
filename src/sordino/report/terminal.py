"""The report as tables for a terminal: verdict, controls, attacks, canaries, requirements."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from sordino.report.effort_plot import count_text
from sordino.report.text import STATE, estimate_text, headline, metric_label, printable, withheld
from sordino.results import AuditReport, Estimate, PromptReport, Verdict

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

__all__ = ["render_prompts", "render_table"]

# The words carry the meaning; the colour only helps to find them.
TONES = {
    "leaks": "red",
    "invalid split": "red",
    "no leak found": "green",
    "inconclusive": "yellow",
    "failed": "red",
    "met": "green",
    "passed": "green",
    "not judged": "yellow",
}


# So many attacks that their table is read for what it says, not for what it cannot say.
_MANY = 12


def render_table(report: AuditReport) -> "RenderableType":
    """Lay the report out as a rich renderable; an invalid split shows its reason and no membership figure.

    Text of the report is printed as it is: neither rich markup nor terminal escapes in it take effect.
    """
    from rich.console import Group

    parts: list[RenderableType] = [_verdict(report)]
    for make in (_gates, _attacks, _effort, _personal, _secrets, _canaries, _requirements):
        table = make(report)
        if table.row_count:
            parts += ["", table]
    if report.untested:
        parts += ["", _text("Not tested", "bold"), *(_text(f"  – {item}") for item in report.untested)]
    return Group(*parts)


def render_prompts(report: PromptReport) -> "RenderableType":
    """Lay out what is found about prompts; where the control failed, no figure is shown."""
    from rich.console import Group

    verdict, invalid = report.verdict, report.verdict.state == "invalid split"
    table = _table(
        f"{report.trials:,} prompts of {report.shots}", "Attack", "Figure", "Its prompt", "Another prompt", "p"
    )
    table.caption = (
        "'needs N': not resolvable with the n prompts there are. p is adjusted for all attacks. " + report.gate.finding
    )
    table.caption_justify = "left"
    for attempt in report.attempts:
        for row, (metric, one) in enumerate(attempt.estimates.items()):
            table.add_row(
                _text(attempt.name if row == 0 else ""),
                _text(metric_label(metric, short=True)),
                _figure(None if invalid else one),
                _figure(attempt.control.get(metric)),
                _text(f"{attempt.p_value:.3f}" if row == 0 and not invalid else ""),
            )
    return Group(_panel(verdict, verdict.headline, verdict.reasons), "", table)


def _text(words: str, style: str = "") -> "Text":
    from rich.text import Text

    return Text(printable(words), style=style)


def _status(words: str) -> "Text":
    return _text(words, TONES.get(words, ""))


def _table(title: str, *columns: str) -> "Table":
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(box=SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _verdict(report: AuditReport) -> "RenderableType":
    sentence, reasons = headline(report)
    return _panel(report.verdict, sentence, reasons)


def _panel(verdict: Verdict, sentence: str, reasons: Sequence[str]) -> "RenderableType":
    from rich.console import Group
    from rich.panel import Panel

    state = verdict.state
    body = Group(_text(sentence, "bold"), *(_text(f"– {reason}") for reason in reasons))
    return Panel(body, title=_text(STATE[state]), title_align="left", border_style=TONES[state], padding=(1, 2))


def _gates(report: AuditReport) -> "Table":
    table = _table("Controls", "Control", "Result", "Finding")
    for gate in report.gates:
        result = "not judged" if gate.passed is None else "passed" if gate.passed else "failed"
        p = "" if gate.p_value is None else f" p = {gate.p_value:.3f}"
        table.add_row(_text(gate.name), _status(result), _text(gate.finding + p))
    return table


def _attacks(report: AuditReport) -> "Table":
    table = _table("Attacks", "Attack", "Figure", "Fine-tuned" if report.trained_here else "Model", "Untuned base", "p")
    table.caption = (
        "'needs N': not resolvable with the n there is. p is adjusted for all attacks tried. "
        "Realised false-positive rates are in the HTML report."
    )
    table.caption_justify = "left"
    many = len(report.attempts) > _MANY
    if many:
        table.caption += " Figures that nothing resolves are left out."
    for attempt in report.attempts:
        name = f"{attempt.family}.{attempt.name}"
        p = "" if attempt.p_value is None or withheld(report, name) else f"{attempt.p_value:.3f}"
        shown = {key: one for key, one in attempt.estimates.items() if not key.startswith("realised")}
        if many:
            shown = {key: one for key, one in shown.items() if one.value is not None}
        for row, (metric, one) in enumerate(shown.items()):
            hidden = withheld(report, f"{name}.{metric}")
            control = attempt.control.get(metric)
            table.add_row(
                _text(attempt.name if row == 0 else ""),
                _text(metric_label(metric, short=True)),
                _figure(None if hidden else one),
                _figure(None if hidden else control),
                _text(p if row == 0 else ""),
            )
    return table


def _figure(one: Estimate | None) -> "Text":
    """Write a figure, what it would need, or a dash where it wasn't measured or may not be shown."""
    if one is None:
        return _text("–", "dim")
    if one.value is None and one.needs is not None:
        return _text(f"needs {one.needs:,} (n={one.n:,})", "dim")
    return _text(estimate_text(one), "dim" if one.value is None else "")


def _effort(report: AuditReport) -> "Table":
    table = _table("Records out after so many queries", "Decoding", "Easiest", "Median")
    shown = report.effort[0].queries[::2] if report.effort else ()
    for queries in shown:
        table.add_column(f"{queries:,}", overflow="fold")
    for row in report.effort:
        shares = (row.members[row.queries.index(n)].value for n in shown)
        figures = ("–" if share is None else f"{share:.1%}" for share in shares)
        table.add_row(_text(str(row.decoding)), count_text(row.easiest), count_text(row.median), *figures)
    table.caption = "Trained-on records; easiest and median: queries on average until a passage comes word for word."
    table.caption_justify = "left"
    return table


def _personal(report: AuditReport) -> "Table":
    table = _table("Personal data", "Attack", "Kind", "Trained on", "Untuned base", "Never trained on", "Chance", "p")
    for one in report.personal:
        if one.members.value or one.kind == "ANY":
            chance = "" if one.chance is None else f"{one.chance:.3f}"
            kind = one.kind if one.scope == "trained" else f"{one.kind}, in inputs"
            table.add_row(
                _text(one.attack), _text(kind), _figure(one.members), _figure(one.base), _figure(one.others),
                chance, f"{one.p_value:.3f}",
            )  # fmt: skip
    table.caption = "Shares of entities named first or written; p against the untuned base. Others were never named."
    table.caption_justify = "left"
    return table


def _secrets(report: AuditReport) -> "Table":
    table = _table(
        "Exposure of secrets, bits", "Kind", "Trained on", "Untuned base", "Never trained on", "At most", "p", "p, base"
    )
    for one in report.secrets:
        table.add_row(
            _text(one.kind), _figure(one.members), _figure(one.base), _figure(one.others), f"{one.bits:.1f}",
            f"{one.p_value:.3f}", f"{one.base_p_value:.3f}",
        )  # fmt: skip
    table.caption = "p against records never trained on, and against the untuned base."
    table.caption_justify = "left"
    return table


def _canaries(report: AuditReport) -> "Table":
    table = _table("Canary exposure, bits", "Repeated", "Planted", "Left out", "At most")
    for level in report.canaries:
        table.add_row(
            _text(f"{level.repetitions}×"),
            _figure(level.included),
            _figure(level.left_out),
            _text(f"{level.bits:.1f}"),
        )
    return table


def _requirements(report: AuditReport) -> "Table":
    table = _table("Requirements", "Requirement", "Status", "Figure", "Finding")
    for one in report.requirements:
        estimate = None if withheld(report, one.text.strip()) else one.estimate
        table.add_row(_text(one.text), _status(one.status), _figure(estimate), _text(one.finding))
    return table
