"""Figures in words: decimals, what is not resolvable, names, and what an invalid split withholds."""

import math
from dataclasses import replace

import pytest
import report_fixture

from sordino.report import text
from sordino.results import Estimate, Gate


def estimate(value, low, high, **more):
    return Estimate(value=value, low=low, high=high, n=50, method="test", **more)


@pytest.mark.parametrize(
    ("one", "expected"),
    [
        (estimate(0.874, 0.83, 0.91), "0.874 [0.830, 0.910]"),
        (estimate(1.0, 0.98, 1.0), "1.000 [0.980, 1.000]"),
        (estimate(8.4, 8.11, 8.75), "8.40 [8.11, 8.75]"),
        (estimate(21.74, 20.6, 22.9), "21.7 [20.6, 22.9]"),
        (estimate(1234.5, 1200.0, 1300.0), "1,234 [1,200, 1,300]"),
        (estimate(0.0002, 0.0, 0.0007), "0.00020 [0.00000, 0.00070]"),
        (estimate(-0.02, -0.05, 0.01), "−0.020 [−0.050, 0.010]"),
        (estimate(2.3, 2.3, math.inf), "2.30 [2.30, ∞]"),
        (estimate(0.0, 0.0, 0.0), "0.000 [0.000, 0.000]"),
        (estimate(math.nan, 0.0, 1.0), "undefined [0.000, 1.000]"),
    ],
)
def test_value_and_interval_share_their_decimals(one, expected):
    assert text.estimate_text(one) == expected


def test_an_unresolved_figure_says_what_it_takes():
    one = estimate(None, 0.0, 1.0, needs=10_000)
    assert text.estimate_text(one, "tpr@0.001fpr") == "not resolvable: takes 10,000 non-members, had 50"
    assert text.estimate_text(one) == "not resolvable: takes 10,000 observations, had 50"
    groups = Estimate(value=None, low=0.0, high=1.0, n=1, needs=2, method="groups of records")
    assert text.estimate_text(groups) == "not resolvable: takes 2 groups of records, had 1"
    assert text.estimate_text(estimate(None, 0.0, 1.0)) == "not resolvable with 50 observations"
    assert text.interval_text(one) == ""


@pytest.mark.parametrize(
    ("metric", "long", "short"),
    [
        ("auc", "AUC", "AUC"),
        ("tpr@0.01fpr", "TPR at 1% FPR", "TPR@1%"),
        ("tpr@1e-05fpr", "TPR at 0.001% FPR", "TPR@0.001%"),
        ("realised fpr@0.1fpr", "Realised FPR, meant to be 10%", "FPR@10%"),
        ("rate", "Passages extracted", "rate"),
        ("tpr@oddfpr", "tpr@oddfpr", "tpr@oddfpr"),
    ],
)
def test_metrics_are_named_as_the_field_names_them(metric, long, short):
    assert (text.metric_label(metric), text.metric_label(metric, short=True)) == (long, short)


@pytest.mark.parametrize(
    ("metric", "value", "expected"),
    [
        ("auc", 0.874, "Picks the member of a pair 87 times out of 100."),
        ("tpr@0.1fpr", 0.35, "Recognises 35 members out of 100, while wrongly accusing 1 non-member in 10."),
        (
            "tpr@1e-3fpr",
            1e-3,
            "Recognises 1 member out of 1,000, while wrongly accusing 1 non-member in 1,000.",
        ),
        ("rate", 0.01, "Gives a passage of 1 record out of 100."),
        ("rate", 0.0, "Gives a passage of no record."),
        ("perplexity", 8.0, ""),
        ("auc", None, ""),
    ],
)
def test_figures_are_said_in_words(metric, value, expected):
    assert text.in_words(metric, estimate(value, 0.0, 1.0), full=True) == expected


def test_an_invalid_split_withholds_membership_but_not_differences():
    invalid, valid = report_fixture.report("invalid split"), report_fixture.report("leaks")
    for name in ("membership.auc", "membership.loss.auc", "epsilon.lower"):
        assert text.withheld(invalid, name)
        assert not text.withheld(valid, name)
    for name in ("membership.delta_auc", "extraction.prefix.rate", "canaries.exposure@16"):
        assert not text.withheld(invalid, name)
    assert text.headline(invalid)[0] == invalid.verdict.reasons[0]
    assert text.headline(valid)[0] == valid.verdict.headline


def test_nested_settings_become_rows_in_their_own_order():
    value = {"b": {"x": 1, "y": None}, "a": [1, 2.50], "c": [{"k": True}], "d": {}, "e": "text"}
    expected = [
        ("b.x", "1"),
        ("b.y", "none"),
        ("a", "1, 2.5"),
        ("c[0].k", "yes"),
        ("d", "none"),
        ("e", "text"),
    ]
    assert text.flatten(value) == expected


def test_times_are_written_out_and_other_text_stays():
    assert text.moment("2026-11-21T18:42:07Z") == "21 November 2026, 18:42 UTC"
    assert text.moment("yesterday") == "yesterday"


def test_steering_characters_are_replaced():
    assert text.printable("a\x1b[31mb\u202ec\nd\te\ud800") == "a\ufffd[31mb\ufffdc\nd\te\ufffd"


def test_what_inconclusive_means_depends_on_a_claim_that_was_tested():
    report = report_fixture.report("inconclusive")
    for passed, expected in ((True, text.WITHIN), (None, text.MEANING["inconclusive"])):
        bound = Gate(name="bound", question="?", passed=passed, finding="")
        assert text.meaning(replace(report, gates=(bound,))) == expected
    bound = Gate(name="bound", question="?", passed=True, finding="")
    assert text.meaning(replace(report_fixture.report("leaks"), gates=(bound,))) == text.MEANING["leaks"]
