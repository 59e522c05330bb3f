"""The terminal table: complete, narrow enough, and deaf to markup and escapes."""

import io
from dataclasses import replace

import pytest
import report_fixture
from rich.cells import cell_len
from rich.console import Console

from sordino.report import render_table, text


def printed(report, width=80):
    console = Console(width=width, file=io.StringIO(), force_terminal=True, color_system=None)
    console.print(render_table(report))
    return console.file.getvalue()


def test_a_report_fits_eighty_columns_and_says_everything():
    report = report_fixture.report()
    shown = printed(report)
    assert max(cell_len(line) for line in shown.splitlines()) <= 80
    words = " ".join(shown.split())
    for one in report.attempts:
        assert one.name in words
        assert text.estimate_text(next(iter(one.estimates.values()))) in words
        assert text.estimate_text(next(iter(one.control.values()))) in words
    for level in report.canaries:
        assert text.estimate_text(level.included) in words and text.estimate_text(level.left_out) in words
    assert all(gate.name in words for gate in report.gates)
    assert all(status in words for status in ("passed", "not judged", "met", "failed", "inconclusive"))
    assert "needs 10,000 (n=512)" in words
    assert all(item in words for item in report.untested)


@pytest.mark.parametrize("state", ["leaks", "no leak found", "inconclusive", "invalid split"])
def test_the_verdict_stands_on_top(state):
    assert text.STATE[state] in printed(report_fixture.report(state)).splitlines()[0]


def test_an_invalid_split_shows_no_membership_figure():
    report = report_fixture.report("invalid split")
    words = " ".join(printed(report, width=200).split())
    assert report.verdict.headline not in words and report.verdict.reasons[0] in words
    for one in report.attempts[:-1]:
        assert text.estimate_text(one.estimates["auc"]) not in words
    assert text.estimate_text(report.attempts[-1].estimates["rate"]) in words


def test_markup_and_escapes_are_printed_as_text():
    report = report_fixture.report()
    name = "[red]x[/red]\x1b[2Jy\u202e"
    shown = printed(replace(report, attempts=(replace(report.attempts[0], name=name),)), width=200)
    assert "[red]x[/red]\ufffd[2Jy\ufffd" in shown
    assert "\x1b[2J" not in shown and "\u202e" not in shown


def test_an_empty_report_is_still_a_verdict():
    empty = replace(
        report_fixture.report("inconclusive"),
        attempts=(),
        canaries=(),
        gates=(),
        requirements=(),
        untested=(),
    )
    assert "Inconclusive" in printed(empty) and "Attacks" not in printed(empty)
