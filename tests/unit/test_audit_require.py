"""Requirements: what may be written, and when one is met, failed or undecided."""

import math

import pytest
from audit_fixtures import figure
from hypothesis import given
from hypothesis import strategies as st

from sordino.audit.flow import _with_requirements
from sordino.audit.require import check_names, judge, parse
from sordino.errors import ConfigError
from sordino.results import AuditPlan

NUMBERS = st.floats(-1e6, 1e6)
SIGNS = st.sampled_from(["<=", "<", ">=", ">"])
NAMES = st.text("abcdefghijklmnopqrstuvwxyz0123456789._@+", min_size=1)
SPACES = st.text(" \t", max_size=2)


@given(name=NAMES, sign=SIGNS, limit=NUMBERS, gaps=st.tuples(SPACES, SPACES, SPACES, SPACES))
def test_every_well_formed_requirement_is_read(name, sign, limit, gaps):
    text = f"{gaps[0]}{name}{gaps[1]}{sign}{gaps[2]}{limit!r}{gaps[3]}"
    assert parse(text) == (name, sign, limit)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "auc",
        "auc <=",
        "<= 1",
        "auc = 1",
        "auc == 1",
        "auc =< 1",
        "auc <= one",
        "auc <= 1 %",
        "a b <= 1",
        "auc <= nan",
    ],
)
def test_others_are_refused(text):
    with pytest.raises(ConfigError, match=r"cannot be read") as error:
        parse(text)
    assert repr(text) in error.value.message and "membership.tpr@0.01fpr" in error.value.hint


@pytest.mark.parametrize("limit", ["1e", "--1", "1.2.3", "e", "+"])
def test_limits_that_are_no_numbers(limit):
    with pytest.raises(ConfigError, match="is not a number"):
        parse(f"auc <= {limit}")


def holds(sign, value, limit):
    return {"<=": value <= limit, "<": value < limit, ">=": value >= limit, ">": value > limit}[sign]


@given(a=NUMBERS, b=NUMBERS, sign=SIGNS, limit=NUMBERS)
def test_the_whole_interval_decides(a, b, sign, limit):
    low, high = sorted((a, b))
    found = judge(f"m {sign} {limit!r}", {"m": figure((low + high) / 2, low, high)})
    ends = [holds(sign, low, limit), holds(sign, high, limit)]
    # Rounding may carry the last point past the end of the interval.
    points = [min(max(low + (high - low) * k / 10, low), high) for k in range(11)]
    inside = [holds(sign, point, limit) for point in points]
    if found.status == "met":
        assert all(ends) and all(inside)
    elif found.status == "failed":
        assert not any(ends) and not any(inside)
    else:
        assert ends[0] != ends[1]


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ("m <= 0.6", "met"), ("m <= 0.599", "inconclusive"), ("m < 0.6", "inconclusive"), ("m < 0.4", "failed"),
        ("m <= 0.4", "inconclusive"), ("m >= 0.4", "met"), ("m > 0.4", "inconclusive"), ("m >= 0.61", "failed"),
        ("m > 0.6", "failed"),
    ],
)  # fmt: skip
def test_ends_count(text, status):
    found = judge(text, {"m": figure(0.5, 0.4, 0.6)})
    assert (found.status, found.text) == (status, text)
    assert "0.5 [0.4, 0.6]" in found.finding


@pytest.mark.parametrize("text", ["m <= 1", "m >= 0", "m <= 0"])
def test_what_is_not_resolvable_is_never_met(text):
    found = judge(text, {"m": figure(None, 0.0, 1.0)})
    assert found.status == "inconclusive" and "not resolvable" in found.finding
    missing = judge(text, {})
    assert missing.status == "inconclusive" and "was not measured" in missing.finding


def test_an_unbounded_limit_is_never_within():
    found = judge("epsilon.lower <= 8", {"epsilon.lower": figure(1.0, 1.0, 1.7e308)})
    assert found.status == "inconclusive"
    assert judge("epsilon.lower <= 8", {"epsilon.lower": figure(9.0, 9.0, 1.7e308)}).status == "failed"


def test_unknown_figures_get_a_suggestion():
    check_names(["membership.auc <= 1"], ["membership.auc"])
    with pytest.raises(ConfigError, match=r"No audit figure is called 'membership.acu'") as error:
        check_names(["membership.auc <= 1", "membership.acu <= 1"], ["membership.auc", "utility.perplexity"])
    assert "'membership.auc'" in error.value.hint


@given(st.floats(0.0002, 0.99))
def test_a_rate_in_a_requirement_is_measured(rate):
    rate = float(f"{rate:g}")
    plan = _with_requirements(AuditPlan(require=("utility.perplexity <= 9",)), [f"membership.tpr@{rate:g}fpr <= 1"])
    assert rate in plan.fpr and {0.1, 0.01, 0.001} <= set(plan.fpr)
    assert list(plan.fpr) == sorted(plan.fpr, reverse=True)
    assert plan.require == ("utility.perplexity <= 9", f"membership.tpr@{rate:g}fpr <= 1")


@pytest.mark.parametrize("rate", ["0", "1", "2", "-1", "nan", "x", ""])
def test_rates_that_are_none_are_not_added(rate):
    plan = _with_requirements(AuditPlan(), [f"membership.tpr@{rate}fpr <= 1"])
    assert plan.fpr == AuditPlan().fpr and all(math.isfinite(f) for f in plan.fpr)
