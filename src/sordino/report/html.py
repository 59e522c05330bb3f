"""The report as one HTML file: no JavaScript, no network, no private text unless asked for.

The template decides the order and the markup. It escapes every value it is given; only the style sheet
and the pictures, both made here, go in as they are.
"""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.report import text, view
from sordino.report.effort_plot import count_text
from sordino.results import AuditReport, RunCard

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["TEMPLATES", "Excerpt", "environment", "mask", "render_html"]

TEMPLATES = Path(__file__).parent / "templates"

MASKED = 12  # masked passages on a page; the page says how many more there are

SECTIONS = (
    ("verdict", "Verdict"),
    ("threat-model", "Threat model"),
    ("claims", "Claims against evidence"),
    ("trade-off", "Privacy against utility"),
    ("attacks", "Attacks"),
    ("effort", "What it takes to get records out"),
    ("personal", "Personal data"),
    ("secrets", "Secrets of your formats"),
    ("canaries", "Canary exposure"),
    ("excerpts", "Extracted passages"),
    ("controls", "Controls"),
    ("requirements", "Requirements"),
    ("untested", "What was not tested"),
    ("data", "Data and notices"),
    ("provenance", "Provenance"),
)

# What a classifier, which writes nothing, has no section of.
OF_TEXT = ("effort", "personal", "secrets", "canaries", "excerpts")


@dataclass(frozen=True, kw_only=True)
class Excerpt:
    """A passage the model completed: `prefix` was given, `suffix` came back word for word.

    `base_hit` says that the untuned base completes it as well, so that it isn't a leak of this training.
    """

    record_id: str
    prefix: str
    suffix: str
    base_hit: bool


def mask(passage: str) -> str:
    """Replace every character of `passage` but white space by a bullet: its shape, and nothing else."""
    return "".join(char if char in " \n" else " " if char.isspace() else "•" for char in passage)


def _short(record_id: str) -> str:
    """Name a record without saying anything about it: eight hex digits of its id's BLAKE2b."""
    return hashlib.blake2b(record_id.encode("utf-8", "surrogatepass"), digest_size=4).hexdigest()


def _shown(excerpts: Sequence[Excerpt], *, reveal: bool) -> list[Excerpt]:
    """Prepare the excerpts as they may be printed; masked ones all look alike, so a few stand for all."""
    name, hide = (text.printable, text.printable) if reveal else (_short, mask)
    return [
        Excerpt(
            record_id=name(one.record_id),
            prefix=hide(one.prefix),
            suffix=hide(one.suffix),
            base_hit=one.base_hit,
        )
        for one in (excerpts if reveal else excerpts[:MASKED])
    ]


def _has(report: AuditReport, section: str) -> bool:
    """Whether the page has the section: a classifier writes nothing, and not everybody names secrets."""
    return (report.task == "causal-lm" or section not in OF_TEXT) and (section != "secrets" or bool(report.secrets))


def render_html(report: AuditReport, card: RunCard, excerpts: Sequence[Excerpt] = (), *, reveal: bool = False) -> str:
    """Write the whole report as one HTML document, the same bytes for the same arguments.

    Passages and record ids are masked unless `reveal`. An invalid split shows its reason in place of the
    headline, and no membership figure. No text of `report`, `card` or `excerpts` can become markup.
    """
    style = (TEMPLATES / "style.css").read_text(encoding="utf-8")
    headline, reasons = text.headline(report)
    metrics, metrics_hidden = view.metrics(report)
    template = _environment(report).get_template("page.html.j2")
    return template.render(
        report=report,
        card=card,
        sections=[one for one in SECTIONS if _has(report, one[0])],
        style=style,
        style_digest=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        state=text.STATE[report.verdict.state],
        meaning=text.meaning(report),
        glossary=text.glossary(report),
        headline=headline,
        reasons=reasons,
        key_figures=view.key_figures(report),
        cards=view.cards(report),
        many_cards=view.MANY,
        figures=view.figures(report),
        tradeoff=view.tradeoff(report),
        ranking=view.ranking(report.canaries),
        excerpts=_shown(excerpts, reveal=reveal),
        unshown=0 if reveal else max(len(excerpts) - MASKED, 0),
        reveal=reveal,
        notices=view.notices(report, card),
        provenance=view.provenance(report, card),
        deletion=text.deletion(card),
        metrics=metrics,
        metrics_hidden=metrics_hidden,
    )


def _environment(report: AuditReport) -> "Environment":
    """Give templates about `report` a way to ask what it withholds."""
    made = environment()
    made.filters["withheld"] = lambda name: text.withheld(report, name.strip())
    return made


def environment() -> "Environment":
    """Load templates so that they escape whatever they print and fail on a name they don't know."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {
        "figure": text.figure_text,
        "interval": text.interval_text,
        "estimate": text.estimate_text,
        "level": view.confidence_text,
        "queries": count_text,
        "moment": text.moment,
        "number": lambda count: f"{count:,}",
    }
    return made
