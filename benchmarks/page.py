"""What benchmarks that fill a page of docs/ share: estimates as text, results that are whole or absent, marks."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NOT_RUN = "not run"
# Results that took hours stay with the tables that they are in: aggregates, and scores of public texts by number.
EVIDENCE = Path(__file__).parent / "evidence"


def figure(estimate: Mapping[str, Any] | None) -> str:
    """An estimate as it stands in a table."""
    if estimate is None:
        return "none set apart"
    if estimate["value"] is None:
        return f"needs {estimate['needs']}, n = {estimate['n']}" if estimate["needs"] else "not resolvable"
    return f"{estimate['value']:.3g} [{estimate['low']:.3g}, {estimate['high']:.3g}]"


def keep(path: Path, result: Mapping[str, Any]) -> None:
    """Write `result` as JSON to `path`, whole or not at all."""
    path.with_suffix(".part").write_text(json.dumps(result, indent=1) + "\n")
    path.with_suffix(".part").replace(path)


def write(page: Path, text: str, marks: tuple[str, str]) -> None:
    """Put `text` between the `marks` in `page`."""
    start, end = marks
    before, found, tail = page.read_text().partition(start)
    _, closed, after = tail.partition(end)
    if not (found and closed):
        raise SystemExit(f"{page} lacks the lines {start} and {end}")
    page.write_text(f"{before}{start}\n\n{text}\n{end}{after}")


def unpack(name: str, out: Path) -> None:
    """Put the results that are kept of benchmark `name` into `out`, but for those that are there."""
    archive = EVIDENCE / f"{name}.tar.xz"
    if not archive.exists():
        return
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            if not (out / member.name).exists():
                tar.extract(member, out, filter="data")


def pack(name: str, out: Path) -> None:
    """Keep the results in `out` with the tables; the same results make the same archive."""
    EVIDENCE.mkdir(exist_ok=True)
    with tarfile.open(EVIDENCE / f"{name}.tar.xz", "w:xz") as tar:
        for path in sorted(out.glob("*.json")):
            if path.name.startswith(("full", "tuning")):  # data, and trials
                continue
            member = tarfile.TarInfo(path.name)
            member.size = path.stat().st_size
            tar.addfile(member, io.BytesIO(path.read_bytes()))
