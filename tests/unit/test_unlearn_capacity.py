"""The DP tier: groups on the whole curve against brute force, what is refused, and the method that leaves a model."""

import math

import dp_accounting
import msgspec
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from sordino.dp.accounting import composed, encode_event, fixed_size_gaussian, poisson_gaussian, repeated
from sordino.dp.groups import gaussian_delta, group
from sordino.errors import ConfigError, UnlearningError
from sordino.ledger import Entry, write_ledger
from sordino.records import Example, Message, Record, Split
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.unlearn.base import Deletion
from sordino.unlearn.verifying.capacity import Guarantee, capacity, check_capacity, guarantee_of

RELATION = "add-or-remove-one"
SAMPLED = poisson_gaussian(0.02, 1.0, 60, units=1000, cap=None)


def guarantee(event=SAMPLED, **more):
    return Guarantee(event=event, unit="subject", relation=RELATION, **more)


def pld(event):
    accountant = dp_accounting.pld.PLDAccountant(dp_accounting.NeighboringRelation.ADD_OR_REMOVE_ONE, 1e-3)
    return accountant.compose(event)


@pytest.fixture(scope="module")
def accountant():
    return pld(SAMPLED)


@pytest.mark.parametrize("epsilon", [1.0, 3.0, 8.0])
def test_a_group_has_the_least_bound_of_the_whole_curve(accountant, epsilon):
    curve = guarantee().at(epsilon)
    for size in (1, 2, 3, 7, 20):

        def bound(single, k=size):
            ratio = k if single == 0 else math.expm1(k * single) / math.expm1(single)
            return accountant.get_delta(single) * ratio

        grid = np.linspace(0, epsilon / size, 60)
        coarse = [bound(e) for e in grid]
        at = int(np.argmin(coarse))
        ends = grid[max(0, at - 1)], grid[min(len(grid) - 1, at + 1)]
        fine = minimize_scalar(bound, bounds=ends, method="bounded", options={"xatol": 1e-7}).fun
        least = min(1.0, fine, min(coarse))
        assert least * (1 - 1e-6) <= curve.delta(size) <= least * (1 + 1e-3) + 1e-12 * math.exp(epsilon)


def test_more_units_never_have_a_smaller_delta():
    for event in (SAMPLED, repeated(dp_accounting.GaussianDpEvent(8.0), 10)):
        curve = guarantee(event).at(4.0)
        deltas = [curve.delta(k) for k in range(1, 60)]
        assert deltas == sorted(deltas) and deltas[0] < deltas[-1]


def test_the_whole_curve_gives_more_than_its_recorded_point():
    found = capacity(guarantee(), 8.0, 1e-5, units=1000)
    one = group(SAMPLED, found.largest, delta=1e-5, relation=RELATION)
    # By the one recorded point the same group has another ε at another δ.
    assert found.largest >= 2 and one.delta > 1e-5


def test_gaussian_noise_without_sampling_is_exact_and_no_bound_beats_it():
    event = repeated(dp_accounting.GaussianDpEvent(10.0), 4)
    curve, mu = guarantee(event).at(2.0), math.sqrt(4 / 100)
    accountant = pld(event)
    for size in (1, 2, 5, 9):
        assert curve.delta(size) == pytest.approx(gaussian_delta(size * mu, 2.0), rel=1e-12)
        exact = group(event, size, delta=curve.delta(size), relation=RELATION)
        assert exact.epsilon == pytest.approx(2.0, rel=1e-4)
        generic = min(
            accountant.get_delta(e) * math.expm1(size * e) / math.expm1(e) for e in np.linspace(1e-3, 2.0 / size, 50)
        )
        assert curve.delta(size) <= generic * (1 + 1e-6)
    assert capacity(guarantee(event), 2.0, 1e-5, units=1000).method.startswith("exact: kμ-GDP")


@pytest.mark.parametrize("event", [SAMPLED, repeated(dp_accounting.GaussianDpEvent(20.0), 4)])
def test_capacity_is_the_last_group_that_keeps_to_delta(event):
    given = guarantee(event)
    found = capacity(given, 6.0, 1e-4, units=10_000)
    curve = given.at(6.0)
    assert curve.delta(found.largest) <= 1e-4 < curve.delta(found.largest + 1)
    assert capacity(given, 6.0, 1e-4, units=2).largest == 2
    assert capacity(given, 12.0, 1e-4, units=10_000).largest >= found.largest
    assert capacity(given, 1e-3, 1e-9, units=10_000).largest == 0
    left = capacity(given, 6.0, 1e-4, units=10_000, spent=2, asked=1)
    assert left.remaining == found.largest - 2 and left.reached == curve.delta(3)
    assert f"{found.largest - 3:,} are left" in left.sentence()


@pytest.mark.parametrize(
    ("epsilon", "delta"), [(0, 1e-5), (-1, 1e-5), (math.nan, 1e-5), (1e3, 1e-5), (1.0, 0.0), (1.0, 1.0)]
)
def test_targets_that_cannot_be_meant_are_refused(epsilon, delta):
    with pytest.raises(ConfigError):
        capacity(guarantee(), epsilon, delta, units=10)


def entry(event=SAMPLED, **changes):
    steps = 60
    values = {
        "id": "a1", "run": "r", "created": "2026-11-22T09:00:00Z", "fingerprint": "f" * 32, "unit": "subject",
        "relation": RELATION, "delta": 1e-5, "mechanism": {}, "planned": steps, "started": steps, "status": "finished",
        "step_event": encode_event(poisson_gaussian(0.02, 1.0, 1, units=1000, cap=None).event),
        "secret_recorded_seed": False,
    }  # fmt: skip
    return Entry(**{**values, **changes})


def example(number, unit):
    record = Record(id=f"r{number}", unit=unit, messages=(Message("text", f"text {number}"),))
    return Example(record=record, role="train", included=True, group=unit)


def deletion(run, subjects=2, kind="subject"):
    """All that capacity asks of a deletion: ten subjects of two records, some of whom go."""
    examples = [example(i, f"u{i // 2}") for i in range(20)]
    request = DeletionRequest(id="q", created="", run="r", kind=kind, names=())
    gone = {f"u{i}" for i in range(subjects)}
    return Deletion(
        run=run, request=request, forget=[e for e in examples if e.record.unit in gone],
        retain=[e for e in examples if e.record.unit not in gone], others=(), never=(), validation=(),
        left=Split(examples=tuple(e for e in examples if e.record.unit not in gone)),
    )  # fmt: skip


@pytest.fixture
def run(tmp_path):
    made = Run.create(tmp_path, "t", "0000")
    write_ledger(made.path / "ledger.json", [entry()])
    return made


def test_what_is_left_is_what_was_not_spent(run):
    found = check_capacity(deletion(run), 8.0, 1e-5)
    assert (found.asked, found.spent) == (2, 0) and 2 <= found.largest <= 10
    full = check_capacity(deletion(run), 8.0, 1e-5, spent=found.largest - 2)
    assert full.remaining == 2
    with pytest.raises(UnlearningError, match="1 are left, and 2 are to go") as refused:
        check_capacity(deletion(run), 8.0, 1e-5, spent=found.largest - 1)
    assert "exact tier" in refused.value.hint


def test_another_unit_is_refused(run):
    with pytest.raises(UnlearningError, match="protects each subject, and records are to go"):
        check_capacity(deletion(run, kind="record"), 8.0, 1e-5)


def test_a_run_without_a_ledger_has_no_such_tier(tmp_path):
    with pytest.raises(UnlearningError, match="no ledger"):
        guarantee_of(Run.create(tmp_path, "t", "0000"))


def test_what_the_promise_assumes_is_said(run):
    write_ledger(run.path / "ledger.json", [entry(secret_recorded_seed=True, warnings=("Canaries were scored.",))])
    assert guarantee_of(run).notes[0] == "Canaries were scored." and "does not know it" in guarantee_of(run).notes[1]
    other = fixed_size_gaussian(4.0, 1, units=1000, batch=20).event
    write_ledger(run.path / "ledger.json", [entry(relation="replace-one", step_event=encode_event(other))])
    found = check_capacity(deletion(run, 1), 90.0, 0.5)
    assert "in the places of" in found.notes[0] and "others stand in the places of 1 subjects" in found.sentence()


def test_entries_are_composed_and_must_agree(run):
    twice = [entry(), entry(id="b2")]
    write_ledger(run.path / "ledger.json", twice)
    found = guarantee_of(run)
    assert found.event == composed([SAMPLED, SAMPLED]) and found.at(1.0).delta(1) > guarantee().at(1.0).delta(1)
    write_ledger(run.path / "ledger.json", [entry(), entry(id="b2", unit="record")])
    with pytest.raises(UnlearningError, match="2 different kinds"):
        guarantee_of(run)
    write_ledger(run.path / "ledger.json", [entry(status="running", started=7)])
    with pytest.raises(UnlearningError, match="not ended"):
        guarantee_of(run)


def test_a_step_that_only_the_journal_knows_of_counts(run):
    write_ledger(run.path / "ledger.json", [entry(status="stopped", started=3)])
    (run.private / "dp_steps").write_text("".join(f"{i}\n" for i in range(5)))
    assert guarantee_of(run).event == poisson_gaussian(0.02, 1.0, 5, units=1000, cap=None)


def test_the_curve_is_computed_once(run, monkeypatch):
    from sordino.unlearn.verifying import capacity as module

    calls, real = [], module.deltas
    monkeypatch.setattr(module, "deltas", lambda *a, **k: calls.append(1) or real(*a, **k))
    check_capacity(deletion(run), 8.0, 1e-5)
    assert len(calls) == 1


def test_a_deletion_keeps_what_was_spent_only_once(tmp_path):
    from sordino.train.promise import earlier

    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        write_ledger(tmp_path / name / "ledger.json", [entry()])
    assert [e.id for e in earlier(tmp_path, "f" * 32)] == ["a1"]
    write_ledger(tmp_path / "two" / "ledger.json", [msgspec.structs.replace(entry(), id="b2")])
    assert len(earlier(tmp_path, "f" * 32)) == 2
