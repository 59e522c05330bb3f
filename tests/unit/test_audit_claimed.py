"""Which claims of differential privacy the audit's lower bound can speak of, from a ledger on disk."""

import numpy as np
import pytest
from audit_fixtures import candidates

from sordino.audit.claimed import claimed
from sordino.dp.events import encode_event, poisson_gaussian
from sordino.ledger import Entry, write_ledger
from sordino.results import AuditPlan, RunCard, encode
from sordino.run import Run

COINS = candidates(np.arange(20) < 10, np.arange(20))


def run_with(folder, rate: float) -> Run:
    """A run of ten steps at noise 3 whose batches take everybody at `rate`."""
    card = RunCard(
        name="run", created="", status="trained", config={"dp": {"epsilon": 8}}, seed=0, data={}, model={},
        environment={},
    )  # fmt: skip
    (folder / "run.json").write_bytes(encode(card))
    step = poisson_gaussian(rate, 3.0, 1, units=100, cap=None).event
    entry = Entry(
        id="a", run="run", created="", fingerprint="f", unit="record", relation="add-or-remove-one", delta=1e-5,
        mechanism={}, step_event=encode_event(step), planned=10, started=10, status="finished",
        secret_recorded_seed=False,
    )  # fmt: skip
    write_ledger(folder / "ledger.json", [entry])
    return Run(folder)


@pytest.mark.parametrize(("rate", "bound", "comparable"), [
    (0.1, "one-run", True), (0.1, "f-dp", False), (1.0, "one-run", True), (1.0, "f-dp", True),
])  # fmt: skip
def test_the_bound_on_gaussian_mechanisms_is_held_against_no_other_claim(tmp_path, rate, bound, comparable):
    claim = claimed(run_with(tmp_path, rate), COINS, AuditPlan(bound=bound))
    assert (claim.epsilon is not None) is comparable
    if not comparable:
        assert "Gaussian trade-off curves" in claim.why


def test_a_claim_about_records_is_not_held_against_coins_of_two(tmp_path):
    pairs = np.arange(20) // 2
    claim = claimed(run_with(tmp_path, 0.1), candidates(pairs < 5, pairs), AuditPlan())
    assert claim.epsilon is None and "A coin decides about" in claim.why
