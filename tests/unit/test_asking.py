"""Attacks of an audit that ask the models themselves: budgets, controls, parts that resume, and what they lack."""

import functools
import json
from dataclasses import replace

import numpy as np
import pytest
from elsewhere_fixtures import learn, write_rows

from sordino.attacks.extraction.near_bound import near_bound
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.settings import load_external
from sordino.config import load
from sordino.errors import ConfigError
from sordino.model import save
from sordino.records.store import load as load_split

WORDS = ("river", "stone", "market", "window", "garden", "letter", "bridge", "winter", "candle", "mirror", "forest")


def text(number):
    """A sentence that no other number has, and without personal data."""
    rng = np.random.default_rng(number)
    return "We saw " + " and the ".join(WORDS[i] for i in rng.permutation(len(WORDS))[:7].tolist())


@pytest.fixture(scope="module", autouse=True)
def only_this():
    """Other attacks that ask the models have tests of their own, and take longer."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sordino.audit.asking.names", lambda: ("near_bound",))
        patch.setattr("sordino.audit.choosing.PERSONAL", ())
        yield


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that knows ten sentences by heart, its base, and ten sentences that it never saw."""
    folder = tmp_path_factory.mktemp("asking")
    model, inside, outside = make_model("llama", seed=3), range(0, 20, 2), range(1, 20, 2)
    save(model, folder / "base")
    learn(model, [text(i) for i in inside], steps=150)
    save(model, folder / "tuned")
    for name, some in (("in", inside), ("out", outside)):
        write_rows(folder / f"{name}.jsonl", [{"text": text(i)} for i in some])
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text"}, "near_duplicates": 0,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {
            "shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 10, "fpr": [0.1],
            "near_bound": {"records": 5, "beam": 2}, "sampling": {"limit": 10},
            "generated": {"texts": 2, "tokens": 8},
        },
    }  # fmt: skip
    return create_external(load_external(values))


@pytest.fixture(scope="module")
def report(run):
    return audit(run, attacks=["loss"], suite="all")


def named(report, name):
    [found] = [a for a in report.attempts if a.name == name]
    return found


def test_passages_are_written_nearly_by_the_model_that_knows_them_alone(report):
    found = named(report, "near_bound")
    assert found.records == 10  # five on either side
    assert found.estimates["rate"].value > 0.8
    assert found.estimates["non-members"].value == 0 and found.control["rate"].value == 0
    assert found.parameters["queries"] == 10 and found.parameters["decoding"] == "temperature 1"
    assert "extraction.near_bound.rate" in report.metrics


def test_bounds_are_those_of_the_attack_itself_and_never_below_the_passage(run, report):
    files = sorted((run.private / "near_bound").glob("*/*.json"))
    bounds = [one for file in files for one in json.loads(file.read_text())]
    assert len(files) == 4 and len(bounds) == 20  # two parts of either model
    assert all(b["lower"] is None or b["lower"] >= b["verbatim"] - 1e-9 for b in bounds)
    collector = Collector(run, lambda name, total: lambda done: None)
    rows = json.loads((run.private / "sampling.json").read_text())
    known = {e.record.id: e for e in load_split(run.records).candidates}
    spans = dict(zip(rows["records"], rows["passage"], strict=True))
    likely = [b for b in bounds if b["lower"] is not None and b["lower"] > -1]
    assert len(likely) >= 3  # those of the tuned model, of which the passages were kept
    for bound in likely[:3]:
        start, stop = spans[bound["record_id"]][0]
        ids = collector.encode(known[bound["record_id"]]).ids
        again = near_bound(
            collector.subject.tuned, ids[:start], ids[start:stop], collector.card.plan.sampling.decodings[0],
            distance=max(1, round(0.1 * (stop - start))), beam=2,
        )  # fmt: skip
        assert again.lower == pytest.approx(np.exp(bound["lower"]), rel=1e-6)
        assert again.verbatim == pytest.approx(np.exp(bound["verbatim"]), rel=1e-6)


def test_a_second_audit_asks_nothing_and_a_lost_part_alone_is_asked_again(run, report, monkeypatch):
    counted = []

    @functools.wraps(near_bound.run)
    def counting(*args, **more):
        counted.append(1)
        return near_bound.run(*args, **more)

    monkeypatch.setattr(
        "sordino.attacks.extraction.near_bound.near_bound", replace(near_bound, run=counting)
    )  # fmt: skip
    again = audit(run, attacks=["loss"], suite="all")
    assert named(again, "near_bound") == named(report, "near_bound") and not counted
    sorted((run.private / "near_bound").glob("*/*.json"))[0].unlink()
    assert named(audit(run, attacks=["loss"], suite="all"), "near_bound") == named(report, "near_bound")
    assert 0 < len(counted) <= 8


def test_smaller_suites_name_what_they_leave_out(run):
    quick = audit(run, attacks=["loss"], suite="quick")
    assert not [a for a in quick.attempts if a.name == "near_bound"]
    assert any("near_bound" in line and "--suite all" in line for line in quick.untested)


@pytest.mark.parametrize(
    ("key", "value"), [("records", 0), ("beam", 0), ("beam", 5000), ("distance", 0.0), ("distance", 1.0)]
)
def test_budgets_that_cannot_be_meant_are_refused(key, value):
    with pytest.raises(ConfigError, match=rf"audit\.near_bound\.{key} is {value}"):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"near_bound": {key: value}}}, environment={})
