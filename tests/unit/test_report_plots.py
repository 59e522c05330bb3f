"""The pictures: small, stable, free of styles and fixed colours, and what they draw."""

import re
import subprocess
import sys
from dataclasses import replace
from xml.etree import ElementTree

import matplotlib
import pytest
import report_fixture

from sordino.report import plots
from sordino.results import Curve, Estimate

REPORT = report_fixture.report()


def tradeoff(**more):
    strongest = REPORT.attempts[0]
    leak = (strongest.control["auc"], strongest.estimates["auc"])
    arguments = {"utility": REPORT.utility, "leak": leak, "key": "k"} | more
    return plots.tradeoff_svg("reference", **arguments)


FIGURES = {
    "roc": lambda: plots.roc_svg(REPORT.attempts[0], key="k"),
    "exposure": lambda: plots.exposure_svg(REPORT.canaries, key="k"),
    "tradeoff": tradeoff,
    "overview": lambda: plots.overview_svg(REPORT.attempts, key="k"),
}


@pytest.fixture(scope="module")
def drawn():
    return {name: draw() for name, draw in FIGURES.items()}


@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_small_accessible_and_themed(drawn, name):
    svg = drawn[name]
    root = ElementTree.fromstring(svg)
    ids = [element.attrib["id"] for element in root.iter() if "id" in element.attrib]
    assert len(svg.encode()) < 30_000
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-labelledby"].split() == ["k-title", "k-desc"]
    assert [child.tag for child in root][:2] == ["title", "desc"]
    assert all(root.findtext(tag) for tag in ("title", "desc"))
    assert len(ids) == len(set(ids)) and all(one.startswith("k-") for one in ids)
    assert set(re.findall(r'(?:href="|url\()#([\w-]+)', svg)) <= set(ids)
    assert "style" not in svg and "xlink" not in svg and "<script" not in svg
    assert not re.search(r"#[0-9a-fA-F]{6}\b", svg), "a colour that no theme can change"
    assert "var(--accent)" in svg and "var(--control)" in svg


@pytest.mark.parametrize("name", FIGURES)
def test_figures_do_not_depend_on_the_readers_settings(drawn, name):
    with matplotlib.rc_context({"font.size": 30, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        assert FIGURES[name]() == drawn[name]
        assert matplotlib.rcParams["font.size"] == 30


def test_nothing_to_draw_is_an_empty_string():
    assert plots.roc_svg(replace(REPORT.attempts[0], roc=None), key="k") == ""
    assert plots.exposure_svg((), key="k") == ""
    assert plots.overview_svg((REPORT.attempts[-1],), key="k") == ""
    unresolved = Estimate(value=None, low=0.0, high=1.0, n=3, method="test", needs=100)
    assert tradeoff(leak=(unresolved, unresolved)) == ""
    assert tradeoff(utility={}) == ""


def test_a_figure_with_an_endless_interval_is_still_drawn():
    endless = {name: replace(one, high=float("inf")) for name, one in REPORT.utility.items()}
    assert "<svg" in tradeoff(utility=endless)


def test_resolution_is_one_in_the_number_of_non_members():
    curve = Curve(fpr=(0.0, 0.0, 0.25, 0.5, 1.0), tpr=(0.1, 0.4, 0.5, 0.9, 1.0))
    assert plots.resolution(curve) == 0.25
    assert plots.resolution(Curve(fpr=(0.0,), tpr=(0.5,))) == 1.0
    told = plots.roc_svg(REPORT.attempts[0], key="k", non_members=100)
    assert "Rates below 1%" in told


def test_a_long_curve_stays_small_and_keeps_its_first_step():
    points = [i / 50_000 for i in range(50_001)]
    curve = Curve(fpr=tuple(points), tpr=tuple(point**0.3 for point in points))
    svg = plots.roc_svg(replace(REPORT.attempts[0], roc=curve), key="k")
    assert len(svg) < 30_000
    assert "0.001%" in svg, "the axis reaches down to what 50,000 non-members resolve"


def test_dollar_signs_and_foreign_letters_in_names_are_text():
    odd = replace(REPORT.attempts[0], name="$x^2$ <b> 攻撃")
    assert "$x^2$ &lt;b&gt; 攻撃" in plots.overview_svg((odd,), key="k")


def test_importing_the_report_loads_no_drawing_library_and_no_torch():
    code = (
        "import sys, sordino.report; print([m for m in ('torch', 'matplotlib', 'jinja2', 'rich') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
