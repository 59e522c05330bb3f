"""What an audit says in the end: every combination of findings and controls, and the gates behind them."""

from dataclasses import replace

import pytest
from audit_fixtures import figure

from sordino.audit.blind import Blind
from sordino.audit.claimed import Claimed
from sordino.audit.gates import blind_gate, bound_gate, canary_gate
from sordino.audit.planted import Found, canary_levels
from sordino.audit.verdict import Findings, claims, threat_model, verdict
from sordino.results import Attempt, CanaryLevel, Gate


def gate(name: str, passed: bool | None = True) -> Gate:
    return Gate(name=name, question="?", passed=passed, finding=f"finding of {name}.")


GATES = {name: gate(name) for name in ("blind", "base", "shuffles", "canaries", "bound")}


def prefix(low: float, high: float = 0.3) -> Attempt:
    return Attempt(
        name="prefix", family="extraction", summary="", paper="", access="generation", parameters={},
        estimates={
            "rate": figure(0.2, 0.1, 0.3), "non-members": figure(0.01, 0, 0.05), "excess": figure(0.19, low, high),
        },
        control={}, p_value=None, records=200, coins=200,
    )  # fmt: skip


def level(repetitions: int, bits: float, count: int = 6) -> CanaryLevel:
    return CanaryLevel(
        repetitions=repetitions, included=figure(bits, bits - 1, bits + 1), left_out=figure(1.4, 0, 3),
        exposures=(bits,) * count, left_out_exposures=(1.0, 2.0), bits=16.6, method="exact",
    )  # fmt: skip


CLEAN = Findings(
    p_value=0.4, strongest="zlib", headline={"auc": figure(0.51, 0.46, 0.56)}, extraction=[prefix(-0.01, 0.005)],
    canaries=[level(1, 1.5)], gates=GATES,
    utility={"perplexity": figure(8, 7, 9), "base_perplexity": figure(20, 18, 22)},
    members=300, nonmembers=300, unit="customer",
)  # fmt: skip

LEAKS = {
    "membership": {"p_value": 0.001, "headline": {"auc": figure(0.8, 0.7, 0.9)}},
    "extraction": {"extraction": [prefix(0.05)]},
    "canaries": {"canaries": [level(1, 1.5), level(16, 9.0)]},
}
DOUBTS = {
    "few members": {"members": 99},
    "few non-members": {"nonmembers": 99},
    "a wide interval": {"headline": {"auc": figure(0.55, 0.45, 0.65)}},
    "canaries not found": {"gates": GATES | {"canaries": gate("canaries", False)}},
    "canaries not judged": {"gates": GATES | {"canaries": gate("canaries", None)}},
}
FAILED = {name: {"gates": GATES | {name: gate(name, False)}} for name in ("blind", "base", "shuffles")}


def test_nothing_found_by_a_working_instrument():
    found = verdict(CLEAN)
    assert found.state == "no leak found"
    assert "zlib" in found.reasons[0] and "not a guarantee" in found.reasons[1]


@pytest.mark.parametrize("leak", LEAKS)
@pytest.mark.parametrize("other", [{}, *DOUBTS.values()], ids=["sure", *DOUBTS])
def test_a_leak_is_a_leak_whatever_else_is_in_doubt(leak, other):
    found = verdict(replace(CLEAN, **{**other, **LEAKS[leak]}))
    assert (found.state, len(found.reasons)) == ("leaks", 1)


@pytest.mark.parametrize("doubt", DOUBTS)
def test_a_doubt_is_never_called_clean(doubt):
    found = verdict(replace(CLEAN, **DOUBTS[doubt]))
    assert (found.state, len(found.reasons)) == ("inconclusive", 1)


@pytest.mark.parametrize("name", FAILED)
def test_a_failing_control_is_never_called_clean_and_always_said(name):
    found = verdict(replace(CLEAN, **FAILED[name]))
    assert found.state == "inconclusive"
    assert f"Control '{name}' failed: finding of {name}." in found.reasons[0]
    leaking = verdict(replace(CLEAN, **LEAKS["membership"], **FAILED[name]))
    assert leaking.state != "no leak found" and any(f"'{name}' failed" in r for r in leaking.reasons)


@pytest.mark.parametrize("name", FAILED)
def test_a_control_that_was_not_judged_is_not_called_failed(name):
    found = verdict(replace(CLEAN, gates=GATES | {name: gate(name, None)}))
    assert not any("failed" in reason for reason in found.reasons)


@pytest.mark.parametrize(
    "change",
    [
        {"p_value": 0.011, "headline": {"auc": figure(0.58, 0.56, 0.6)}},
        {"p_value": 0.001, "headline": {"auc": figure(0.5, 0.45, 0.55)}},
        {"extraction": [prefix(0.0, 0.005)]},
        {"canaries": [level(16, 9.0, count=1)]},
        {"canaries": [level(16, 3.4)]},
        {"canaries": [], "extraction": []},
    ],
    ids=["p", "reversed", "no excess", "one canary", "within chance", "nothing tried"],
)
def test_what_is_too_weak_to_be_called_a_leak(change):
    assert verdict(replace(CLEAN, **change)).state == "no leak found"


def test_several_leaks_are_several_reasons_in_numbers_people_read():
    found = verdict(replace(CLEAN, **LEAKS["membership"], **LEAKS["extraction"], **LEAKS["canaries"]))
    assert len(found.reasons) == 3
    membership, extraction, canaries = found.reasons
    assert "80 times in 100" in membership and "0.8 [0.7, 0.9]" in membership
    assert "20.0%" in extraction and "1.0%" in extraction
    assert "planted 16 times" in canaries and "9.0 of 16.6 bits" in canaries


def test_the_least_repeated_exposed_level_is_the_one_named():
    found = verdict(replace(CLEAN, canaries=[level(1, 7.0), level(16, 9.0)]))
    assert "planted once" in found.reasons[0]


def statuses(findings: Findings) -> list[str]:
    return [claim.status for claim in claims(findings)]


def test_claims_follow_their_evidence():
    assert statuses(CLEAN) == ["supported", "supported", "supported", "supported", "not tested"]
    leaking = replace(CLEAN, **LEAKS["membership"], **LEAKS["extraction"], **LEAKS["canaries"], utility={})
    assert statuses(leaking) == ["contradicted", "contradicted", "contradicted", "not tested", "not tested"]
    doubtful = replace(
        CLEAN, headline={"auc": figure(0.55, 0.45, 0.65)}, extraction=[prefix(-0.02, 0.02)],
        gates=GATES | {"canaries": gate("canaries", None)},
        utility={"perplexity": figure(18, 15, 21), "base_perplexity": figure(20, 18, 22)},
    )  # fmt: skip
    assert statuses(doubtful) == ["unresolved"] * 4 + ["not tested"]
    worse = replace(CLEAN, utility={"perplexity": figure(30, 28, 32), "base_perplexity": figure(20, 18, 22)})
    assert statuses(worse)[3] == "contradicted"


@pytest.mark.parametrize(("passed", "status"), [(True, "supported"), (False, "contradicted")])
def test_a_claim_of_differential_privacy_stands_or_falls_with_its_gate(passed, status):
    findings = replace(CLEAN, gates=GATES | {"bound": gate("bound", passed)})
    findings = replace(findings, claim=Claimed(words="ε = 8", epsilon=8.0))
    assert statuses(findings)[-1] == status
    assert claims(findings)[-1].statement == "The training was differentially private: ε = 8."


def private(bound: bool | None = True, **more) -> Findings:
    gates = GATES | {"canaries": gate("canaries", None), "bound": gate("bound", bound)} | more.pop("gates", {})
    return replace(CLEAN, gates=gates, claim=Claimed(words="ε = 8", epsilon=8.0), **more)


def test_a_claim_that_stands_makes_nothing_clean_but_says_what_was_found():
    found = verdict(private())
    assert found.state == "inconclusive" and found.headline.startswith("No leak was found beyond the claim")
    strongest, limits, doubt = found.reasons
    assert "zlib" in strongest and "finding of bound." in strongest and "not shown to work" in doubt
    assert "only show it to be wrong" in limits


@pytest.mark.parametrize(
    "findings",
    [private(None), private(gates={"shuffles": gate("shuffles", False)}), replace(private(), claim=None)],
    ids=["not comparable", "a failed control", "no claim"],
)
def test_only_a_claim_that_was_tested_is_spoken_of(findings):
    found = verdict(findings)
    assert (found.state, found.headline) == ("inconclusive", "This audit cannot tell whether the model leaks.")


def test_a_leak_within_a_claim_is_a_leak():
    assert verdict(private(**LEAKS["membership"])).state == "leaks"


def test_a_claim_measured_to_be_false_is_a_leak_whatever_else_was_found():
    found = verdict(private(False))
    assert (found.state, found.reasons) == ("leaks", ("finding of bound.",))


def test_the_unit_is_named():
    assert "a whole customer is easier to find" in claims(replace(CLEAN, unit="customer"))[0].evidence
    assert "easier to find" not in claims(replace(CLEAN, unit="record"))[0].evidence
    model = threat_model(replace(CLEAN, unit="customer"), ["log-probabilities", "generation", "log-probabilities"])
    assert model["Protected unit"] == "one customer"
    assert model["Sees"].startswith("generation, log-probabilities of")
    assert "to get a record out" in model["Wants"]


def test_nobody_wants_text_from_a_classifier():
    model = threat_model(replace(CLEAN, task="classification"), ["predicted labels"])
    assert model["Wants"] == "to learn whether a record was trained on"
    assert "beginning of a record" not in model["Knows"]


@pytest.mark.parametrize(("p_value", "passed"), [(0.5, True), (0.01, True), (0.009, False), (0.001, False)])
def test_the_blind_gate(p_value, passed):
    found = blind_gate(Blind(auc=0.61, p_value=p_value, detectable_auc=0.66, records=100))
    assert (found.passed, found.p_value) == (passed, p_value)
    assert "0.610" in found.finding and "0.66" in found.finding


def found(repetitions: int, included: bool, bits: float) -> Found:
    return Found(
        id="c", repetitions=repetitions, included=included, bits=bits, low=bits, high=bits, exact=True,
        space=100_000, forwards=1,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("inside", "outside", "passed"),
    [
        ([16.0, 15.0, 16.6, 12.0], [1.0, 2.0, 0.5, 3.0], True),
        ([1.0, 2.0, 0.4, 3.0], [1.1, 2.1, 0.5, 2.9], False),
        ([0.1, 0.2, 0.3, 0.1], [9.0, 8.0, 7.0, 9.0], False),
        ([16.0, 16.0], [1.0, 1.0, 1.0], None),
        ([16.0, 16.0, 16.0], [1.0, 1.0], None),
    ],
)
def test_the_canary_gate_looks_at_the_two_highest_levels_only(inside, outside, passed):
    top = [found(16 if i % 2 else 32, True, bits) for i, bits in enumerate(inside)]
    # Canaries planted once are as exposed as can be, or not at all: neither may count.
    for once in (16.6, 0.1):
        decided = canary_gate([*top, *(found(1, False, bits) for bits in outside), *[found(1, True, once)] * 9])
        assert decided.passed is passed
        assert ("too few" in decided.finding) == (passed is None)
        assert passed is None or "16 and 32 repetitions" in decided.finding


def test_no_canaries_are_not_judged():
    assert canary_gate([]).passed is None


def test_levels_of_canaries():
    levels = canary_levels([found(1, True, 2.0), found(1, False, 1.0), found(4, True, 8.0), found(4, True, 10.0)], 0.95)
    assert [entry.repetitions for entry in levels] == [1, 4]
    assert levels[1].included.value == 9.0 and levels[1].exposures == (8.0, 10.0)
    assert levels[0].left_out_exposures == (1.0,) and levels[1].left_out_exposures == ()
    assert levels[0].included.value is None  # one canary has no spread
    assert levels[0].bits == pytest.approx(16.6, abs=0.01)


@pytest.mark.parametrize(("value", "claimed", "passed"), [(0.5, 1.0, True), (1.5, 1.0, False), (1.5, None, None)])
def test_the_bound_gate(value, claimed, passed):
    claim = None if claimed is None else Claimed(words=f"ε = {claimed}", epsilon=claimed)
    gate_ = bound_gate(figure(value, value, 1e300), claim, 0.95)
    assert gate_.passed is passed
    assert ("DP claim falsified" in gate_.finding) == (passed is False)
    assert f"ε ≥ {value:.2f}" in gate_.finding


def test_a_claim_about_other_units_than_the_coins_is_told_and_not_judged():
    claim = Claimed(words="ε = 8 for a record", epsilon=None, why="A coin decides about 2.0 units together.")
    gate_ = bound_gate(figure(20.0, 20.0, 1e300), claim, 0.95)
    assert gate_.passed is None
    assert "ε = 8 for a record. A coin decides" in gate_.finding and "not comparable: ε ≥ 20.00" in gate_.finding


def test_under_differential_privacy_no_canary_need_show():
    assert canary_gate([], claim=Claimed(words="ε = 8", epsilon=8.0)).passed is None
