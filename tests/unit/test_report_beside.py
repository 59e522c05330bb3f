"""Several runs side by side: what stands in the table, the picture and the page, and what is not compared."""

import io
import re
from dataclasses import replace
from xml.etree import ElementTree

import pytest
import report_fixture
from rich.console import Console

from sordino.errors import RunError
from sordino.report import beside_table, sides, write_beside
from sordino.report.beside import lines, render_beside
from sordino.report.beside_plot import Point, beside_svg
from sordino.results import Estimate
from sordino.run import Run

PAIR = report_fixture.compared(2)


def words(pairs) -> dict[str, list[str]]:
    return {line.label: [f"{c.value} {c.interval}".strip() for c in line.cells] for line in lines(sides(pairs))}


def test_the_figures_of_each_run_stand_in_its_column():
    found = words(PAIR)
    assert found["ε claimed"] == ["none", "7.99"]
    assert found["ε measured, at least"] == ["0.40", "0.40"]
    assert found["AUC, strongest attack"] == ["0.890 [0.860, 0.920]", "0.530 [0.500, 0.560]"]
    assert found["Held-out perplexity"] == ["4.10 [3.95, 4.25]", "4.90 [4.75, 5.05]"]
    assert found["Verdict"] == ["Leaks", "Inconclusive"]
    assert any(label.startswith("Passages extracted") for label in found)
    assert any(label.startswith("Exposure, ") for label in found)


def test_the_rate_is_the_lowest_that_all_can_resolve():
    assert "TPR at 1% FPR" in words(PAIR)
    (card, report), other = PAIR
    unresolved = replace(report.metrics["membership.tpr@0.01fpr"], value=None, needs=2_000)
    coarse = replace(report, metrics={**report.metrics, "membership.tpr@0.01fpr": unresolved})
    assert "TPR at 10% FPR" in words([(card, coarse), other])


def test_what_an_invalid_split_withholds_is_withheld_here():
    card, _ = PAIR[0]
    invalid = replace(report_fixture.report("invalid split"), utility=PAIR[0][1].utility)
    found = words([(card, invalid), PAIR[1]])
    assert found["AUC, strongest attack"][0] == "–" and found["ε measured, at least"][0] == "–"
    page = render_beside(sides([(card, invalid), PAIR[1]]))
    assert ElementTree.fromstring(picture(page)).findtext("desc").startswith("private (ε = 7.99 claimed)")


def test_a_figure_that_a_run_has_not_is_a_dash():
    card, report = PAIR[0]
    bare = replace(report, metrics={}, canaries=(), seconds={}, utility={})
    found = words([(card, bare)])
    assert found["AUC, strongest attack"] == found["Held-out perplexity"] == found["Training"] == ["–"]
    assert "No picture" in render_beside(sides([(card, bare)]))


def test_what_was_spent_before_is_told_with_the_claim():
    (card, report), (second, other) = PAIR
    more = replace(second, privacy={**second.privacy, "epsilon with earlier runs": 11.9})
    [claim, *_] = lines(sides([(card, report), (more, other)]))
    assert "11.9 together with earlier runs" in claim.cells[1].words and "earlier" not in claim.cells[0].words


def test_runs_of_one_name_go_by_their_folders():
    (first, report), (second, other) = PAIR
    names = [s.name for s in sides([(first, report), (replace(second, config=first.config), other)])]
    assert names == [first.name, second.name]


def test_runs_on_other_records_are_not_compared():
    (card, report), (second, other) = PAIR
    with pytest.raises(RunError, match="their data differs"):
        sides([(card, report), (replace(second, data={"fingerprint": "ba5"}), other)])
    with pytest.raises(RunError, match="their task differs"):
        sides([(card, report), (second, replace(other, task="classification"))])
    with pytest.raises(RunError, match="no run"):
        sides([])


def picture(page: str) -> str:
    [svg] = re.findall(r"<svg class=\"chart\".*?</svg>", page, re.S)
    return svg


def test_the_picture_has_every_run_and_the_model_before():
    page = render_beside(sides(report_fixture.compared(5)))
    root = ElementTree.fromstring(picture(page))
    texts = [element.text for element in root.iter("text")]
    for name in ("plain", "private", "strict", "stopped", "goldfish", "before tuning", "coin toss"):
        assert texts.count(name) == 1, name
    assert texts.count("no claim") == 3 and "ε = 1 claimed" in texts
    assert "before tuning: perplexity 10.7" in root.findtext("desc")
    assert not re.search(r"#[0-9a-fA-F]{6}\b", picture(page)) and len(picture(page)) < 30_000


def test_names_do_not_cover_one_another():
    def figure(value: float) -> Estimate:
        return Estimate(value=value, low=value - 0.02, high=value + 0.02, n=9, method="made up")

    crowd = [Point(name=f"run-{i}", claim="no claim", x=figure(5 + i / 50), y=figure(0.6), private=i > 1)
             for i in range(5)]  # fmt: skip
    root = ElementTree.fromstring(beside_svg(crowd, bases=[figure(9.0)], useful="perplexity", key="k"))
    spots = []
    for element in root.iter("text"):
        if (element.text or "").startswith(("run-", "no claim")):
            where = re.search(r"translate\(([\d.]+) ([\d.]+)\)", element.attrib.get("transform", ""))
            spots.append(
                tuple(map(float, where.groups())) if where else (float(element.attrib["x"]), float(element.attrib["y"]))
            )
    assert len(spots) == 10
    for i, (x, y) in enumerate(spots):
        for u, v in spots[i + 1 :]:
            assert abs(x - u) > 30 or abs(y - v) > 9, "two labels in one place"


def test_the_page_runs_nothing_and_makes_no_markup_of_names():
    (card, report), other = PAIR
    hostile = replace(card, config={"name": "<script>alert(1)</script>"})
    page = render_beside(sides([(hostile, report), other]))
    assert "<script" not in page and "&lt;script&gt;" in page and "default-src 'none'" in page
    assert page == render_beside(sides([(hostile, report), other]))


def test_the_terminal_shows_the_same_figures():
    console = Console(width=120, file=io.StringIO())
    console.print(beside_table(sides(PAIR)))
    shown = console.file.getvalue()
    assert "plain" in shown and "7.99" in shown and "0.890 [0.860, 0.920]" in shown


def test_the_page_leads_to_the_reports_that_are_there(tmp_path):
    runs = []
    for card, report in PAIR:
        run = Run.create(tmp_path, "x", "0000")
        run.write_card(card)
        run.write_audit(report)
        runs.append(run)
    (runs[1].path / "report.html").write_text("")
    page = write_beside(runs, tmp_path / "side.html").read_text()
    assert f'href="{runs[1].path.name}/report.html"' in page and f'href="{runs[0].path.name}/' not in page
    with pytest.raises(RunError, match="no folder"):
        write_beside(runs, tmp_path / "nowhere" / "side.html")
