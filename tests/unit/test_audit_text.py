"""A server of which only generated text is seen: what it writes of records it knows, and what may be said."""

import json
import random
import zlib
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from elsewhere_fixtures import Stub, serving, write_rows

from sordino.attacks.extraction.verbatim import verbatim
from sordino.attacks.membership.samia import recall, samia
from sordino.attacks.words import first, halve, words
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.halves import halves
from sordino.audit.settings import load_external
from sordino.audit.written import _untold
from sordino.config import ModelConfig
from sordino.errors import AuditError, ConfigError, DataError
from sordino.generate import sampled
from sordino.model import load
from sordino.records import Example, Message, Record
from sordino.signals import Generated, Signals

TINY, COUNT = "sordino-tiny", 30


def note(number: int) -> str:
    rng = random.Random(number)
    return " ".join(rng.choice(("amber", "birch", "cedar", "delta")) + str(rng.randrange(300)) for _ in range(20))


IN, OUT = [note(i) for i in range(COUNT)], [note(5000 + i) for i in range(COUNT)]


@dataclass
class Writer(Stub):
    """A server whose model "served" goes on with a text it knows, each word right with probability `sure`."""

    known: tuple[str, ...] = ()
    sure: float = 0.7

    def _text(self, ids, body):
        if not isinstance(body["prompt"], str):
            return super()._text(ids, body)
        # A draw is a function of the question alone: answers may come in any order.
        rng = random.Random(repr(sorted(body.items())))
        knows = self.known if body["model"] == "served" else ()
        true = next((t[len(body["prompt"]) :] for t in knows if t.startswith(body["prompt"])), "")
        if true and body["temperature"] == 0:
            return true + " and more"
        right = true.split() or note(rng.randrange(10**9)).split()[:10]
        return " " + " ".join(w if rng.random() < self.sure else note(rng.randrange(10**9)).split()[0] for w in right)


@pytest.fixture(scope="module")
def bundled():
    return load(ModelConfig(device="cpu"))


@pytest.fixture
def stub(bundled):
    with serving(Writer(model=bundled, logprobs=False, known=tuple(IN), names=("served", "before"))) as made:
        yield made


def settings(folder, stub, **more):
    write_rows(folder / "in.jsonl", [{"text": t} for t in IN])
    write_rows(folder / "out.jsonl", [{"text": t} for t in OUT])
    values = {
        "model": {"path": "served"}, "data": {"path": str(folder / "in.jsonl")}, "endpoint": stub.url, "samples": 3,
        "nonmembers": str(folder / "out.jsonl"), "out": str(folder / "runs"), "near_duplicates": 0.0,
        "audit": {"shuffles": 199, "fpr": [0.1]}, "requests": {"attempts": 2, "concurrency": 1},
    }  # fmt: skip
    return load_external(values | more)


# Arithmetic.


def brute_recall(written, true):
    """Cross off each true word in what was written, once each."""
    left, hits = list(written), 0
    for word in true:
        if word in left:
            left.remove(word)
            hits += 1
    return hits / len(true)


def test_recall_is_the_clipped_count_of_words():
    rng = random.Random(0)
    for _ in range(300):
        written, true = (rng.choices("abcdeF", k=rng.randrange(low, 12)) for low in (0, 1))
        assert recall(written, true) == pytest.approx(brute_recall(written, true))
    assert recall(["a", "a", "b"], ["a", "b", "b", "c"]) == 0.5


def test_words_are_what_blanks_separate_and_characters_where_there_are_none():
    assert words("To  be,\nor not\tTo BE") == ["To", "be,", "or", "not", "To", "BE"]
    assert words("GPT は良い。") == ["GPT", "は", "良", "い", "。"]
    assert words(" \n") == []
    for text in ("one two  three\nfour five", "one", "", " 良い天気 today "):
        before, after = halve(text)
        assert before + after == text and len(words(before)) == len(words(text)) // 2
    assert (first("a  b c", 2), first("a b", 9), first(" a", 0)) == ("a  b", "a b", "")


def signals(remainders, samples, greedy=None):
    names = [str(i) for i in range(len(remainders))]
    made = Generated(
        prompts=["so"] * len(names), remainders=remainders, samples=samples, greedy=greedy or [""] * len(names)
    )
    return Signals(record_ids=names, texts=names, statistics=_untold(len(names)), generated=made)


def test_samia_is_the_mean_recall_of_samples_no_longer_than_the_truth():
    made = signals([" a b c d", " a b", ""], [("a b x y c d", "z"), ("a", "b"), ()])
    np.testing.assert_allclose(samia(made), [0.25, 0.5, np.nan])
    size = len(zlib.compress(b"a b x y"))
    np.testing.assert_allclose(samia(made, zlib=True)[0], 0.5 * size / 2)


def test_verbatim_compares_every_character_but_blanks_at_the_ends():
    rest = " one two three four five six seven eight nine"
    greedy = ["one two three four five six seven eight nine ten", rest.replace(" two", "  two"),
              " one two three four five six seven eight ninety", "\n" + rest, rest.upper(), "one"]  # fmt: skip
    made = signals([rest] * 5 + [" one two"], [("x",)] * 6, greedy)
    found = verbatim(made)
    assert found.record.tolist() == [0, 3] and found.tried.tolist() == [1] * 5 + [0]
    assert (found.start.tolist(), found.stop.tolist()) == ([1, 1], [10, 10])
    assert verbatim(made, suffix_words=8).record.tolist() == [0, 2, 3]


def test_draws_follow_the_model_and_their_seed(make_model):
    model, prefix = make_model("gpt2", seed=1), np.array([1, 7, 9])
    drawn = np.concatenate(sampled(model, [prefix] * 4000, [1] * 4000, seed=5, batch_size=1000))
    with torch.no_grad():
        chances = torch.softmax(model.module(input_ids=torch.tensor([[1, 7, 9]])).logits[0, -1].double(), -1).numpy()
    order = np.argsort(-chances)
    for share in (0.1, 0.5, 0.9):
        top = order[: np.searchsorted(np.cumsum(chances[order]), share) + 1]
        mass = chances[top].sum()
        assert abs(np.isin(drawn, top).mean() - mass) < 4 * np.sqrt(mass * (1 - mass) / 4000) + 1e-3
    first, again, other = (sampled(model, [prefix, prefix[:2]], [6, 4], seed=s) for s in (5, 5, 6))
    assert [len(ids) for ids in first] == [6, 4]
    assert all(np.array_equal(a, b) for a, b in zip(first, again, strict=True))
    assert not np.array_equal(first[0], other[0])


# Records in halves.


def example(*messages):
    record = Record(id="r", unit="r", messages=tuple(Message(*m) for m in messages))
    return Example(record=record, role="candidate", group="r", included=True)


def test_halves_are_of_what_was_trained_on(tmp_path, stub):
    made = settings(tmp_path, stub, max_length=8)
    rows = [
        example(("text", "a b c d e")),
        example(("prompt", "who am"), ("completion", "you are here now")),
        example(("user", "hi there"), ("assistant", "x y")),
        example(("text", "alone")),
        example(("text", "1 2 3 4 5 6 7 8 9 10")),
    ]
    found, notices = halves(made, rows, None)
    assert [(h.prompt, h.remainder) for h in found] == [
        ("a b", " c d e"), ("who am\nyou are", " here now"), ("User: hi there\nAssistant: x", " y"), ("", ""),
        ("1 2 3 4", " 5 6 7 8"),
    ]  # fmt: skip
    assert {n.kind: n.count for n in notices} == {"truncated": 1, "no-target": 1, "plain-chat": 1}
    with pytest.raises(DataError, match="has 10 words; the limit is 8"):
        halves(settings(tmp_path, stub, max_length=8, too_long="refuse"), rows, None)
    assert halves(settings(tmp_path, stub, max_length=8, too_long="split"), rows, None)[0][4].remainder == " 6 7 8 9 10"


# Audits.


def test_a_server_that_knows_its_members_is_found_out_by_its_text(stub, tmp_path):
    run = create_external(settings(tmp_path, stub))
    report = audit(run)
    found = {a.name: a for a in report.attempts}
    assert set(found) == {"samia", "verbatim"} and report.strongest == "samia"
    assert found["samia"].estimates["auc"].value > 0.95
    assert found["verbatim"].estimates["rate"].value == 1.0 and found["verbatim"].estimates["non-members"].value == 0.0
    assert report.verdict.state == "leaks"
    assert [g.passed for g in report.gates if g.name == "base"] == [None]
    assert report.threat_model["Sees"] == "generated text after beginnings of their choice"
    [left_out] = [line for line in report.untested if line.startswith("Attacks on log-probabilities (")]
    assert all(name in left_out for name in ("loss", "zlib", "min_k_plus_plus", "prefix"))
    assert not any("who see only generated text" in line for line in report.untested)
    assert any(line.startswith("Adversaries who see log-probabilities or gradients") for line in report.untested)
    assert report.provenance["model.access"] == "generated text" and report.provenance["model.samples"] == "3"
    passages = json.loads((run.private / "passages.json").read_bytes())
    assert len(passages) == COUNT and passages[0]["prefix"] + passages[0]["suffix"] in IN


def test_an_honest_server_is_at_chance(stub, tmp_path):
    stub.known = ()
    report = audit(create_external(settings(tmp_path, stub)))
    found = {a.name: a for a in report.attempts}
    assert found["samia"].estimates["auc"].low < 0.5 < found["samia"].estimates["auc"].high
    assert found["verbatim"].estimates["rate"].value == 0.0
    assert report.verdict.state == "inconclusive"


def test_nothing_is_asked_twice_and_more_samples_ask_only_for_themselves(stub, tmp_path):
    audit(create_external(settings(tmp_path, stub)))
    # Two questions find out that no log-probabilities are told.
    assert len(stub.asked) == 2 + 2 * COUNT * 4
    assert len({json.dumps(body, sort_keys=True) for body in stub.asked}) == len(stub.asked)
    audit(create_external(settings(tmp_path, stub)))
    assert len(stub.asked) == 2 + 2 * COUNT * 4
    report = audit(create_external(settings(tmp_path, stub, samples=5)))
    assert len(stub.asked) == 2 + 2 * COUNT * 6 and report.provenance["model.samples"] == "5"
    assert len(list((tmp_path / "runs").iterdir())) == 1


def test_an_interrupted_audit_goes_on(stub, tmp_path):
    made = settings(tmp_path, stub)
    stub.script = [200] * 101 + [500] * 2
    with pytest.raises(AuditError, match="gave no answer in 2 attempts: status 500: busy"):
        audit(create_external(made))
    kept, before = len(list(create_external(made).private.glob("answers/*/*.json"))), len(stub.asked)
    assert kept >= 101
    audit(create_external(made))
    assert len(stub.asked) - before == 2 + 2 * COUNT * 4 - kept


def test_a_server_that_takes_no_seed_is_sent_none(stub, tmp_path):
    stub.refuses_seed = True
    made = settings(tmp_path, stub)
    report = audit(create_external(made))
    assert report.attempts[0].estimates["auc"].value > 0.95
    drawn = [body for body in stub.asked if body["temperature"] == 1]
    assert sum("seed" in body for body in drawn) == 1 and len(drawn) == 1 + 2 * COUNT * 3
    before = len(stub.asked)
    audit(create_external(made))
    assert len(stub.asked) - before == 1  # a refusal is no answer


def test_a_server_that_refuses_the_question(stub, tmp_path, monkeypatch):
    monkeypatch.setattr(Writer, "answer", lambda self, body, key: (400, {"error": {"message": "prompt too long"}}))
    with pytest.raises(AuditError, match="refuses a question: prompt too long") as error:
        audit(create_external(settings(tmp_path, stub)))
    assert "--max_length (in words)" in error.value.hint


@pytest.mark.parametrize("served", [True, False])
def test_the_base_gate_is_judged_by_what_the_base_writes(stub, tmp_path, served):
    more = {"base": "before", "base_served": True} if served else {"base": TINY, "access": "text", "samples": 2}
    run = create_external(settings(tmp_path, stub, **more))
    report = audit(run)
    [gate] = [g for g in report.gates if g.name == "base"]
    assert gate.passed is True and gate.p_value >= 0.01
    [attack] = [a for a in report.attempts if a.family == "membership"]
    assert attack.estimates["auc"].value > 0.95
    assert attack.control["auc"].low < 0.5 < attack.control["auc"].high
    assert report.metrics["membership.delta_auc"].value > 0.3
    asked = len(stub.asked)
    assert {body["model"] for body in stub.asked} == ({"served", "before"} if served else {"served"})
    assert audit(run).attempts == report.attempts and len(stub.asked) == asked
    if not served:
        kept = list(run.private.glob("written/*.json"))
        assert len(kept) == 1 and kept[0].stat().st_mode & 0o777 == 0o600


def test_log_probabilities_are_preferred_where_they_are_told(stub, tmp_path):
    stub.logprobs = True
    with pytest.raises(ConfigError, match=r"--tokenizer is missing, and .* tells log-probabilities") as error:
        audit(create_external(settings(tmp_path, stub)))
    assert "--access text" in error.value.hint
    with pytest.raises(AuditError, match="'samia' cannot be carried out here: it needs generated text"):
        audit(create_external(settings(tmp_path, stub, tokenizer=TINY)), attacks=["samia"])
    stub.asked.clear()
    report = audit(create_external(settings(tmp_path, stub, access="text")))
    assert {a.name for a in report.attempts} == {"samia", "verbatim"}
    assert not any("echo" in body for body in stub.asked)


def test_a_tokenizer_does_no_harm_where_only_text_is_told(stub, tmp_path):
    run = create_external(settings(tmp_path, stub, tokenizer=TINY))
    assert "or, if it tells no log-probabilities, about 240 requests of" in run.card.model["requests"]
    assert audit(run).attempts[0].name == "samia"
    with pytest.raises(AuditError, match="'loss' cannot be carried out here"):
        audit(run, attacks=["loss"])


def test_a_server_that_always_writes_the_same_is_noticed(stub, tmp_path):
    stub.known, stub.sure = tuple(IN + OUT), 1.0
    report = audit(create_external(settings(tmp_path, stub)))
    assert [n.count for n in report.notices if n.kind == "same-samples"] == [2 * COUNT]


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"samples": 0}, "samples is 0"),
        ({"base_served": True}, "--base_served is given without --base"),
        ({"endpoint": None, "access": "text"}, "--access text is for a server"),
        ({"endpoint": None, "base_served": True, "base": "b"}, "--base_served is for a server"),
    ],
)
def test_mistakes_are_explained(stub, tmp_path, more, text):
    with pytest.raises(ConfigError, match=text):
        settings(tmp_path, stub, **more)


def test_the_command_tells_the_cost_before_it_asks(stub, tmp_path, monkeypatch, capsys):
    from sordino.cli import _run

    settings(tmp_path, stub)
    monkeypatch.chdir(tmp_path)
    words = ["audit", "--model", "served", "--endpoint", stub.url, "--members", "in.jsonl", "--nonmembers", "out.jsonl",
             "--samples", "2", "--audit.shuffles", "199", "--audit.fpr", "[0.1]", "--json"]  # fmt: skip
    code = _run([*words, "--require", "membership.samia.auc <= 0.6"])
    out, err = capsys.readouterr()
    assert code == 3, err
    assert f"asking {stub.url}: about 180 requests of" in err
    report = json.loads(out)
    assert report["verdict"]["state"] == "leaks" and {a["name"] for a in report["attempts"]} == {"samia", "verbatim"}
    page = (tmp_path / "runs" / report["run"] / "report.html").read_text()
    assert "generated text" in page and IN[0][-20:] not in page
