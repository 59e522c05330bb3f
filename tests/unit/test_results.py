"""The schemas: what an estimate says, and that files survive a round trip or say what is wrong."""

import msgspec
import pytest

from sordino import results, stats
from sordino.errors import RunError
from sordino.report.text import estimate_text
from sordino.results import AuditPlan, Estimate, decode, encode


def test_an_estimate_shows_its_interval() -> None:
    assert str(Estimate(value=0.8741, low=0.83, high=0.912, n=90, method="x")) == "0.874 [0.83, 0.912]"


def test_a_figure_the_sample_cannot_resolve_says_what_it_takes() -> None:
    text = str(Estimate(value=None, low=0.0, high=1.0, n=120, method="non-members", needs=2000))
    assert text == "not resolvable: needs 2,000 (n=120)"


def test_the_two_names_of_an_open_end_are_one() -> None:
    assert results.UNBOUNDED == stats.UNBOUNDED


def test_a_one_sided_bound_is_open_and_short_and_survives_json() -> None:
    bound = Estimate(value=3.3, low=3.3, high=stats.UNBOUNDED, n=440, method="lower bound")
    assert str(bound) == "3.3 [3.3, ∞]"
    assert estimate_text(bound) == "3.30 [3.30, ∞]"
    assert decode(encode(bound), Estimate, "here") == bound


def test_every_plan_survives_json() -> None:
    plan = AuditPlan(require=("membership.auc <= 0.6",), fpr=(0.05,))
    assert decode(encode(plan), AuditPlan, "here") == plan


@pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"value": "high"}'])
def test_a_damaged_file_is_named(data: bytes) -> None:
    with pytest.raises(RunError, match=r"audit\.json is not a valid Estimate.*another version"):
        decode(data, Estimate, "audit.json")


def test_schemas_are_frozen() -> None:
    with pytest.raises(AttributeError):
        Estimate(value=1.0, low=0.0, high=2.0, n=3, method="x").value = 2.0  # type: ignore[misc]
    assert msgspec.json.decode(encode(AuditPlan()))["confidence"] == 0.95
