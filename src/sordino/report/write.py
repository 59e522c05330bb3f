"""Writing the report of an audited run into its folder."""

import json
from pathlib import Path

from sordino.errors import RunError
from sordino.report.html import Excerpt, render_html
from sordino.run import Run, write_atomic

__all__ = ["write_report"]


def write_report(run: Run, *, reveal: bool = False, out: Path | None = None) -> Path:
    """Render the audited `run` as one HTML file, `report.html` in its folder or `out`; returns its path.

    Private text is masked unless `reveal`: then the file is `report-revealed.html`, which only its owner can read, and
    the masked one stays. Raises `RunError` where the run has not been audited.
    """
    target = out or run.path / ("report-revealed.html" if reveal else "report.html")
    if not target.parent.is_dir():
        raise RunError(f"There is no folder {target.parent}.", "Make it, or choose another --out.")
    page = render_html(run.audit, run.card, _excerpts(run), reveal=reveal)
    # A report that shows private text is as private as the records.
    write_atomic(target, page.encode(), mode=0o600 if reveal else 0o644)
    return target


def _excerpts(run: Run) -> list[Excerpt]:
    path = run.private / "passages.json"
    if not path.exists():
        return []
    # Those that came out nearly have what was written beside them; shown are those that came word for word.
    found = json.loads(path.read_bytes())
    rows = [row for row in found if row["member"] and row["confirmed"] and not row.get("written")]
    return [
        Excerpt(record_id=row["record_id"], prefix=row["prefix"], suffix=row["suffix"], base_hit=row["base_hit"])
        for row in rows
    ]
