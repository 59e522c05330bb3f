"""Personal data in an audit: figures by kind, parts that resume, what is private, and what the report says."""

import json
from dataclasses import replace

import pytest
from elsewhere_fixtures import learn, write_rows

from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.settings import load_external
from sordino.audit.verdict import _told
from sordino.config import load
from sordino.errors import ConfigError
from sordino.model import save
from sordino.report import render_html
from sordino.results import Estimate, PersonalFinding

NAMES = ("Lena Brandt", "Tom Okafor", "Mia Sato", "Ola Nilsen", "Eva Novak", "Jon Reyes", "Ada Kovac", "Ben Adler",
         "Ivy Moreau", "Max Weber", "Zoe Petit", "Leo Costa", "Amy Olsen", "Sam Fuchs", "Kim Duval", "Ian Bauer",
         "Una Lopez", "Ned Kaiser", "Pia Romano", "Hal Jensen", "Fay Schmidt", "Gus Martin", "Lia Popov",
         "Roy Silva")  # fmt: skip


def record(number):
    """A sentence about somebody, with the name and an e-mail address labelled."""
    name = NAMES[number % len(NAMES)]
    mail = f"{name.split()[0].lower()}{number}@posteo.example.org"
    text = f"On day {number} we were told that {name} can be reached by writing to {mail} before noon."
    spans = [("PERSON", name), ("EMAIL", mail)]
    marked = [{"entity_type": k, "start": text.index(v), "end": text.index(v) + len(v)} for k, v in spans]
    return {"text": text, "spans": marked}


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that knows twelve sentences by heart, its base, and twelve sentences that it never saw."""
    folder = tmp_path_factory.mktemp("personal")
    model, inside, outside = make_model("llama", seed=6), range(0, 24, 2), range(1, 24, 2)
    save(model, folder / "base")
    learn(model, [record(i)["text"] for i in inside], steps=200)
    save(model, folder / "tuned")
    for name, some in (("in", inside), ("out", outside)):
        write_rows(folder / f"{name}.jsonl", [record(i) for i in some])
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text", "spans": "spans"}, "near_duplicates": 0,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {
            "shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "fpr": [0.1],
            "personal": {"mentions": 16, "candidates": 6, "texts": 160, "text_tokens": 50, "samples": 4},
            "generated": {"texts": 2, "tokens": 8},
        },
    }  # fmt: skip
    return create_external(load_external(values))


@pytest.fixture(scope="module")
def report(run):
    return audit(run, attacks=["loss"], suite="full")


def rows_of(report, attack):
    return {row.kind: row for row in report.personal if row.attack == attack}


def test_what_was_learned_by_heart_is_named_and_nothing_else(report):
    asked = rows_of(report, "pii_inference")
    assert list(asked) == ["ANY", "EMAIL_ADDRESS", "PERSON"]
    every = asked["ANY"]
    assert every.members.value > 0.8 and every.p_value < 0.01
    assert max(every.base.value, every.others.value) < 0.6
    assert every.chance == pytest.approx(1 / 6) and every.counts["candidates"] == 6
    assert every.excess.value == pytest.approx(every.members.value - every.others.value)
    written = rows_of(report, "pii_extraction")
    assert written["ANY"].counts["generated"] >= 1 and written["ANY"].counts["base generated"] == 0
    assert written["ANY"].others.value == 0
    # Names have no detector: they are looked up, so how much of what was written is right is not known.
    assert written["PERSON"].precision is None and written["EMAIL_ADDRESS"].precision is not None
    assert "pii_reconstruction" not in {row.attack for row in report.personal}


def test_it_is_said_in_the_verdict_and_among_what_was_tested(report, run):
    assert any(
        reason.startswith("Given candidates, the model names the right entity") for reason in report.verdict.reasons
    )
    assert not any("personal data by type" in line for line in report.untested)
    assert any("pii_reconstruction" in line for line in report.untested)
    page = render_html(report, run.card)
    assert "pii_inference" in page and "all kinds" in page


def test_values_are_only_in_what_is_private_and_masked_even_there(report, run):
    public = (run.path / "audit.json").read_text()
    assert not [name for name in NAMES if name in public]
    people = json.loads((run.private / "personal.json").read_bytes())
    assert people and {"unit", "masked", "rank", "base_rank"} <= set(people[0])
    assert not [row for row in people if any(name in row["masked"] for name in NAMES)]


def test_an_interrupted_audit_goes_on_with_the_parts_it_has(report, run, monkeypatch):
    import sordino.deployed

    parts = sorted((run.private / "personal").glob("*/*.json"))
    assert len(parts) >= 6  # two models, two attacks, of which one has two parts
    lost = parts[0].read_bytes()
    parts[0].unlink()
    loaded = []
    kept = sordino.deployed.load_deployed
    monkeypatch.setattr(sordino.deployed, "load_deployed", lambda *a, **k: loaded.append(1) or kept(*a, **k))
    again = audit(run, attacks=["loss"], suite="full")
    assert again.personal == report.personal and parts[0].read_bytes() == lost
    assert loaded
    loaded.clear()
    assert audit(run, attacks=["loss"], suite="full").personal == report.personal
    assert not loaded


def test_a_quick_audit_says_what_it_left_out(report, run):
    quick = audit(run, attacks=["loss"], suite="quick")
    assert quick.personal == ()
    assert any("personal data by type" in line for line in quick.untested)
    assert any("pii_inference" in line and "--suite full" in line for line in quick.untested)


def estimate(value, low=None):
    return Estimate(value=value, low=value if low is None else low, high=1.0, n=9, method="")


def test_only_the_first_row_of_an_attack_decides_and_pays_for_the_others():
    zero = estimate(0.0)
    any_kind = PersonalFinding(
        attack="pii_inference", kind="ANY", scope="trained", members=estimate(0.9), base=zero, others=zero,
        gain=zero, excess=estimate(0.5), p_value=0.004,
    )  # fmt: skip
    person = replace(any_kind, kind="PERSON", p_value=1e-6)
    other = replace(any_kind, attack="pii_extraction", p_value=0.006)
    assert _told([any_kind, person]) == [any_kind]
    assert _told([any_kind, person, other]) == [any_kind]  # two attacks: 0.005 each
    assert _told([replace(any_kind, p_value=0.006), other]) == []
    assert _told([replace(any_kind, excess=estimate(0.1, low=-0.1))]) == []
    assert _told([replace(any_kind, scope="inputs")]) == []


@pytest.mark.parametrize(("key", "value"), [("mentions", 0), ("candidates", 1), ("samples", 0), ("texts", 0)])
def test_a_budget_that_asks_nothing_is_refused(key, value):
    with pytest.raises(ConfigError, match=f"audit.personal.{key} is {value}"):
        load(values={"data": {"path": "d.jsonl"}, "audit": {"personal": {key: value}}}, environment={})
