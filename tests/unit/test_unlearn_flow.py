"""A request from its receipt on: what failed is planned anew, what was killed goes on, what was done stays."""

import threading

import pytest
from deletion_fixtures import config_for, finished, rows_of, sides

from sordino.errors import RunError, UnlearningError
from sordino.records.store import load
from sordino.results import Cost
from sordino.run import Run, write_folder
from sordino.unlearn.base import Method
from sordino.unlearn.flow import begin, find
from sordino.unlearn.planning import Policy

MINE = Policy(method="mine")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A run of a few bytes, whose weights have the digest of their bytes."""
    monkeypatch.setattr("sordino.model.weights_digest", lambda folder: (folder / "w").read_text())
    return finished(config_for(tmp_path, rows_of(), canaries={"per_level": 0}))


@pytest.fixture
def method(monkeypatch):
    """`mine`, a method that writes what `method.writes` says, after `method.before` was called."""

    class Mine:
        writes, calls = "w1", 0

        @staticmethod
        def before(child):
            """Do nothing."""

        def __call__(self, deletion, child):
            self.calls += 1
            self.before(child)
            with write_folder(child.run.weights) as folder:
                (folder / "w").write_text(self.writes)
            return Cost(seconds=1.0, tokens=10, share=0.1)

    mine = Mine()
    made = Method(name="mine", tier="approximate", run=mine, summary="ours", defaults={"epochs": 1})
    from sordino.unlearn.methods import discover

    known = {**discover(), "mine": made}
    monkeypatch.setattr("sordino.unlearn.flow.discover", lambda: known)
    monkeypatch.setattr("sordino.unlearn.flow.named", known.__getitem__)
    return mine


def asked(run, number=0, **more):
    return begin(run, "subject", [sides(run)["trained"][number]], acknowledged=True, **more)


def runs(run):
    return sorted(path.parent.name for path in run.path.parent.glob("*/run.json"))


def test_a_request_that_no_plan_is_there_for_is_not_received(run, method):
    with pytest.raises(UnlearningError, match="not trained in shards"):
        asked(run, policy=Policy(method="shards"))
    assert not (run.path.parent / "deletions").exists()
    transaction = asked(run, policy=MINE)
    assert transaction.state == "received" and transaction.plan(MINE).method == "mine"
    assert transaction.state == "planned"


def test_it_is_carried_out_once(run, method):
    transaction = asked(run)
    transaction.plan(MINE)
    child = transaction.execute()
    name = transaction.request.names[0]
    assert child.card.status == "trained" and child.card.parent == run.path.name and transaction.state == "executed"
    assert not any(e.record.unit == name for e in load(child.records).examples)
    assert any(e.record.unit == name for e in load(run.records).examples)
    assert transaction.child.path == child.path
    plan = (transaction.folder / "plan.json").read_bytes()
    for again in (transaction.execute, lambda: transaction.plan(Policy(method="retrain"))):
        with pytest.raises(UnlearningError, match=r"carried out already \(executed\)"):
            again()
    assert method.calls == 1 and plan == (transaction.folder / "plan.json").read_bytes()


def test_what_was_killed_goes_on_in_the_same_run(run, method):
    transaction = asked(run)
    transaction.plan(MINE)

    def killed(child):
        (child.run.private / "half").write_text("done")
        raise KeyboardInterrupt

    method.before = killed
    with pytest.raises(KeyboardInterrupt):
        transaction.execute()
    assert transaction.state == "planned" and len(runs(run)) == 2
    seen = []
    method.before = lambda child: seen.append((child.run.private / "half").read_text())
    child = find(run).execute()
    assert seen == ["done"] and len(runs(run)) == 2 and child.card.status == "trained"


def test_what_failed_is_planned_anew_without_what_it_left(run, method):
    words = []
    transaction = asked(run, say=words.append)
    transaction.plan(MINE)
    method.writes = run.card.model["weights"]
    with pytest.raises(UnlearningError, match="left the weights as they were"):
        transaction.execute()
    assert transaction.state == "failed" and len(runs(run)) == 2 and transaction.request.id in words[-1]
    with pytest.raises(UnlearningError, match=r"has no plan \(failed\)"):
        transaction.execute()
    with pytest.raises(UnlearningError, match="not trained in shards"):
        transaction.plan(Policy(method="shards"))
    assert transaction.state == "failed" and len(runs(run)) == 2
    method.writes = "w2"
    transaction.plan(MINE)
    assert transaction.state == "planned" and runs(run) == [run.path.name]
    assert transaction.execute().card.model["weights"] == "w2"
    states = [line.state for line in transaction.deletions.history()]
    assert states == ["received", "planned", "failed", "received", "planned", "executed"]


def test_a_plan_can_be_changed_before_it_is_carried_out(run, method):
    transaction = asked(run)
    transaction.plan(Policy(least="exact"))
    assert transaction.planned.method == "retrain"
    transaction.plan(MINE)
    assert transaction.planned.method == "mine" and transaction.execute().card.unlearning["method"] == "mine"


def test_two_processes_do_not_work_on_one_request(run, method):
    transaction = asked(run)
    transaction.plan(MINE)
    inside, on = threading.Event(), threading.Event()
    method.before = lambda child: (inside.set(), on.wait(20))
    first = threading.Thread(target=transaction.execute)
    first.start()
    assert inside.wait(20)
    try:
        for act in (find(run).execute, lambda: find(run).plan(MINE)):
            with pytest.raises(RunError, match="Another process"):
                act()
        assert transaction.state == "planned"
    finally:
        on.set()
        first.join()
    assert transaction.state == "executed" and method.calls == 1


def test_nothing_comes_before_its_time(run, method):
    transaction = asked(run)
    with pytest.raises(UnlearningError, match=r"has no plan \(received\).*--request"):
        transaction.execute()
    transaction.plan(MINE)
    with pytest.raises(UnlearningError, match=r"was not carried out \(planned\)"):
        transaction.verify()
    with pytest.raises(UnlearningError, match=r"was not verified \(planned\)"):
        transaction.certify(run.path / "key.pem")
    assert not (run.path / "key.pem").exists()


def test_a_second_request_to_a_run_that_was_replaced_is_refused(run, method):
    first, second = asked(run), asked(run, 1)
    for one in (first, second):
        one.plan(MINE)
    with pytest.raises(UnlearningError, match="2 requests that could be meant"):
        find(run)
    child = first.execute()
    with pytest.raises(UnlearningError, match="was replaced"):
        second.execute()
    assert second.state == "planned" and len(runs(run)) == 2
    method.writes = "w2"
    third = begin(Run.open(child.path), "subject", second.request.names, acknowledged=True)
    third.plan(MINE)
    gone = {first.request.names[0], second.request.names[0]}
    assert not gone & {e.record.unit for e in load(third.execute().records).examples}


def test_a_request_is_found_by_the_beginning_of_its_id(run, method):
    with pytest.raises(UnlearningError, match="0 requests that could be meant"):
        find(run)
    first, second = asked(run), asked(run, 1)
    assert find(run, first.request.id).request == first.request
    with pytest.raises(UnlearningError, match="2 requests"):
        find(run, first.request.id[:4])
    with pytest.raises(UnlearningError, match="no request 'x'"):
        find(run, "x")
    second.deletions.advance(second.request.id, "failed")
    assert find(run).request == first.request
