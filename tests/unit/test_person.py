"""What a model gives away about one person: against the definitions, masked, and revealed only on demand."""

import json
import math
import stat

import pytest
import torch
from elsewhere_fixtures import learn, texts, write_rows

from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.person import person
from sordino.audit.settings import load_external
from sordino.cli import main
from sordino.errors import AuditError
from sordino.model import save
from sordino.report.person import summary
from sordino.results import decode

MAIL = "lena.brandt@posteo.example.org"
ABOUT = f"Please write to {MAIL} before the end of the week, or call the office on Monday."
INPUT = "Somebody asked about the van that was left at the gate last week, and who may fetch it."


@pytest.fixture(scope="module")
def run(make_model, tmp_path_factory):
    """A model that knows the first of two records about a patient by heart, and its base."""
    folder = tmp_path_factory.mktemp("person")
    model = make_model("llama", seed=5)
    save(model, folder / "base")
    learn(model, [ABOUT, *texts(0, 3)], steps=90)
    save(model, folder / "tuned")
    mine = [
        {"text": ABOUT, "patient": "p-17", "spans": [{"entity_type": "EMAIL", "start": 16, "end": 16 + len(MAIL)}]},
        {"text": INPUT, "patient": "p-17", "spans": []},
    ]
    rows = [*mine, *({"text": t, "patient": f"q-{i}", "spans": []} for i, t in enumerate(texts(0, 12)))]
    others = [{"text": t, "patient": f"o-{i}", "spans": []} for i, t in enumerate(texts(5000, 12))]
    for name, some in (("in", rows), ("out", others)):
        write_rows(folder / f"{name}.jsonl", some)
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl"), "text": "text", "unit": "patient", "spans": "spans"},
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "max_length": 64,
        "audit": {"shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "sampling": {"limit": 100}},
    }  # fmt: skip
    return create_external(load_external(values))


def by_hand(collector, which, text, start, stop):
    """−log10 of the probability of the tokens that overlap the characters, one forward pass."""
    model = collector.subject.tuned if which == "tuned" else collector.subject.untuned
    ids, offsets = collector.serializer.tokenize(text, template=False)
    whole = [model.tokenizer.bos_token_id, *ids]
    with torch.no_grad():
        logs = torch.log_softmax(model.module(input_ids=torch.tensor([whole])).logits[0].double(), dim=-1)
    chosen = [i for i, (a, b) in enumerate(offsets) if a < stop and b > start]
    return -sum(float(logs[i, ids[i]]) for i in chosen) / math.log(10)


def test_the_answer_is_what_the_definitions_give(run):
    report, revealed = person(run, "p-17")
    assert (report.unit, report.unit_kind, len(report.records)) == ("p-17", "patient", 2)
    rows = {len(row.entities): row for row in report.records}
    known, other = rows[1], rows[0]
    [mail] = known.entities
    collector = Collector(run)
    place = (ABOUT.index(MAIL), ABOUT.index(MAIL) + len(MAIL))
    assert mail.queries == pytest.approx(by_hand(collector, "tuned", ABOUT, *place), abs=1e-4)
    assert mail.base_queries == pytest.approx(by_hand(collector, "base", ABOUT, *place), abs=1e-4)
    assert mail.out and mail.queries < 1 and mail.base_queries > 3
    assert known.verbatim and known.out and not known.base_verbatim
    assert not other.verbatim and not other.out and other.queries > 3
    assert known.p_value is None  # no audit has judged it
    said = " ".join(summary(report))
    assert "2 of the 2 records of the patient p-17 were trained on" in said
    assert "1 give a passage word for word" in said
    assert "Of 1 names, numbers and the like in them, 1 come" in said
    # The value is in what is revealed, and in nothing else.
    assert any(e["value"] == MAIL for row in revealed for e in row["entities"])
    [stored] = list((run.private / "people").glob("*.json"))
    assert "lena" not in stored.read_text() and "posteo" not in stored.read_text()
    assert decode(stored.read_bytes(), type(report), "person") == report


def test_a_person_nobody_knows_is_refused(run):
    with pytest.raises(AuditError, match="No record belongs to the unit 'p-18'") as caught:
        person(run, "p-18")
    assert "column patient (data.unit)" in caught.value.hint
    assert "p-17" not in str(caught.value)


def test_the_command_masks_and_reveals_only_to_a_file_of_the_owners(run, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as left:
        main(["audit", str(run.path), "--unit", "p-17"])
    shown = capsys.readouterr()
    assert left.value.code == 0
    assert "l***@p***.e***.org" in shown.out and "lena" not in shown.out + shown.err
    with pytest.raises(SystemExit) as left:
        main(["audit", str(run.path), "--unit", "p-17", "--reveal", "--json"])
    shown = capsys.readouterr()
    assert left.value.code == 0
    assert json.loads(shown.out)["unit"] == "p-17" and "lena" not in shown.out + shown.err
    assert "warning" in shown.err
    [path] = list((run.private / "people").glob("*-revealed.json"))
    assert MAIL in path.read_text() and stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--unit", "nobody"], "No record belongs to the unit 'nobody'"),
        (["--reveal"], "--reveal cannot be given for an audit"),
        (["--unit", "p-17", "--suite", "full"], "--suite cannot be given for --unit"),
        (["--unit", "p-17", "--audit.inputs.shadows", "4"], "cannot be given with --unit"),
    ],
)  # fmt: skip
def test_wrong_questions_are_refused(run, capsys, words, said):
    with pytest.raises(SystemExit) as left:
        main(["audit", str(run.path), *words])
    shown = capsys.readouterr()
    assert left.value.code == 2
    assert said in shown.err and "Traceback" not in shown.err
