"""What a model gives away about one person, as a table for a terminal."""

from typing import TYPE_CHECKING

from sordino.report.effort_plot import count_text
from sordino.report.text import printable
from sordino.results import EntityRow, PersonReport, PersonRow

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["render_person", "summary"]


def summary(report: PersonReport) -> list[str]:
    """The answer in sentences."""
    rows, trained = report.records, [row for row in report.records if row.included]
    entities = [one for row in trained for one in row.entities]
    whose = "the unit" if report.unit_kind.startswith("rows-of-") else f"the {report.unit_kind}"
    asked = f"{report.limit:,} {'query' if report.limit == 1 else 'queries'} ({report.decoding})"
    said = [f"{len(trained)} of the {len(rows)} records of {whose} {printable(report.unit)} were trained on."]
    if trained:
        verbatim, out = sum(row.verbatim for row in trained), sum(row.out for row in trained)
        said.append(
            f"Of these, {verbatim} give a passage word for word to whoever knows what stands before it, and {out} "
            f"within {asked}, with probability {report.chance:g} or more."
        )
    if entities:
        count = sum(one.out for one in entities)
        known = sum(one.out and _known(one) for one in entities)
        base = f" ({known} of them are no harder to get from the untuned base)" if report.has_base and count else ""
        said.append(
            f"Of {len(entities)} names, numbers and the like in them, {count} come within as many queries, asked "
            f"with all that stands before them{base}."
        )
    if not report.has_base:
        said.append("There is no untuned base: how much of it is the training's doing is not known.")
    return said


def _known(one: EntityRow) -> bool:
    """Whether the untuned model gives a value as readily, so that it is no leak of the tuning."""
    return one.base_queries is not None and one.queries is not None and one.base_queries <= one.queries


def render_person(report: PersonReport) -> "RenderableType":
    """Lay the answer out: sentences, a row a record, and a row for each entity, masked."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    records = Table(box=SIMPLE_HEAD, title="Records", title_justify="left", title_style="bold", pad_edge=False)
    for name in ("Record", "Role", "Trained on", "Recognised, p", "Word for word", "Queries", "Untuned base"):
        records.add_column(name, overflow="fold")
    for row in report.records:
        records.add_row(*(Text(cell) for cell in _cells(row, report)))
    parts: list[RenderableType] = [*(Text(line) for line in summary(report)), "", records]
    found = [(row, one) for row in report.records for one in row.entities]
    if found:
        table = Table(box=SIMPLE_HEAD, title="Personal data", title_justify="left", title_style="bold", pad_edge=False)
        for name in ("Record", "Kind", "Value, masked", "Queries", "Untuned base"):
            table.add_column(name, overflow="fold")
        for row, one in found:
            table.add_row(*(Text(cell) for cell in _entity(row, one, report)))
        table.caption = "Queries on average until it comes, given what stands before it in the record."
        table.caption_justify = "left"
        parts += ["", table]
    return Group(*parts)


def _cells(row: PersonRow, report: PersonReport) -> tuple[str, ...]:
    p = "–" if row.p_value is None else f"{row.p_value:.3f}"
    said = "yes, the base too" if row.verbatim and row.base_verbatim else "yes" if row.verbatim else "no"
    base = count_text(row.base_queries) if report.has_base else "–"
    trained = "yes" if row.included else "no"
    return printable(row.record_id), row.role, trained, p, said, count_text(row.queries), base


def _entity(row: PersonRow, one: EntityRow, report: PersonReport) -> tuple[str, ...]:
    asked = (count_text(one.queries), count_text(one.base_queries) if report.has_base else "–")
    return printable(row.record_id), one.kind, printable(one.masked), *(asked if one.trained else ("not a target", "–"))
