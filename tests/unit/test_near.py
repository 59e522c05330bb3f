"""Near-verbatim extraction: which window is tried, what counts, and that an audit counts the same by other means."""

import json

import numpy as np
import pytest
import torch
from elsewhere_fixtures import Stub, learn, serving, texts, write_rows
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import Levenshtein

from sordino.attacks.extraction.near import near
from sordino.attacks.extraction.prefix import prefix
from sordino.audit.collecting import Collector
from sordino.audit.external import create_external
from sordino.audit.flow import audit
from sordino.audit.settings import load_external
from sordino.audit.subjects import continued
from sordino.config import ModelConfig
from sordino.generate import greedy
from sordino.model import load, save
from sordino.records.store import load as load_split
from sordino.signals import Signals, Statistics


def signals(rights):
    """Signals of records whose scored tokens, from position 1 on, are the likeliest ones or not."""
    counts, total = [len(r) for r in rights], sum(map(len, rights))
    token = np.arange(total, dtype=np.int32)
    right = np.array([x for r in rights for x in r], dtype=bool)
    none = np.full(total, np.nan, np.float32)
    made = Statistics(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        position=np.concatenate([np.arange(1, n + 1) for n in counts] or [[]]).astype(np.int32),
        token=token, logprob=none, mean=none, variance=none, rank=np.full(total, -1, np.int32),
        top=np.where(right, token, -1).astype(np.int32),
    )  # fmt: skip
    names = tuple(map(str, range(len(rights))))
    return Signals(record_ids=names, texts=names, statistics=made)


@given(st.lists(st.lists(st.booleans(), max_size=40), max_size=4), st.integers(1, 12), st.integers(8, 12))
@settings(max_examples=50, deadline=None)
def test_the_window_with_the_fewest_wrong_tokens_is_tried(rights, before, length):
    found = near(signals(rights), prefix_tokens=before, suffix_tokens=length, wrong=1.0)
    expected, tried = [], []
    for record, right in enumerate(rights):
        scale = min(1.0, (len(right) + 1) / (before + length))
        size = max(8, int(length * scale))
        least = min(int(before * scale), len(right) + 1 - size)
        # Position p of a record, whose first token is context only, has its truth at p − 1.
        starts = [p for p in range(1, len(right) + 2 - size) if p >= least] if len(right) >= 8 else []
        tried.append(int(bool(starts)))
        if starts:
            start = min(starts, key=lambda p: (right[p - 1 : p - 1 + size].count(False), p))
            expected.append((record, start, start + size))
    assert list(zip(found.record.tolist(), found.start.tolist(), found.stop.tolist(), strict=True)) == expected
    assert found.tried.tolist() == tried
    allowed = near(signals(rights), prefix_tokens=before, suffix_tokens=length, wrong=0.25)
    few = [(r, a, b) for r, a, b in expected if rights[r][a - 1 : b - 1].count(False) <= 0.25 * (b - a)]
    assert list(zip(allowed.record.tolist(), allowed.start.tolist(), allowed.stop.tolist(), strict=True)) == few
    assert allowed.tried.tolist() == tried


def test_records_in_which_lengths_shrank_are_counted():
    made = signals([[True] * 30, [True] * 19, [True] * 18, [True] * 7])
    for attack in (near, prefix):
        assert attack(made, prefix_tokens=10, suffix_tokens=10).shortened == 1  # of 20, 19 and 8 tokens the second


TRUE = "The blue van was left at the gate on Monday morning by Anna."


@pytest.mark.parametrize(
    ("written", "counts"),
    [
        (TRUE, True),
        ("  " + TRUE + "\n", True),
        (TRUE.replace("Monday", "Tuesday"), True),
        ("On Monday morning, the blue van was left at the gate by Anna", True),  # by words: 10 of 13 in order
        (TRUE.replace("o", "ø").replace("e", "ë"), True),  # by characters only: few words are left
        (TRUE[: len(TRUE) // 2], False),
        ("Please send the second key to the house at the end of the lane.", False),
        ("", False),
        ("   ", False),
    ],
)
def test_what_counts_as_nearly_the_same(written, counts):
    accept = near(signals([])).accept
    assert accept([written], [TRUE]).tolist() == [counts]


def test_nothing_written_is_not_nearly_nothing():
    assert near(signals([])).accept(["", "a"], ["", ""]).tolist() == [False, False]


def test_thresholds_are_those_asked_for():
    other = TRUE.replace("Monday", "Tuesday").replace("blue", "red")
    strict = near(signals([]), rouge=1.0, edit=1.0).accept
    assert strict([other, TRUE], [TRUE, TRUE]).tolist() == [False, True]
    lax = near(signals([]), rouge=2.0, edit=Levenshtein.normalized_similarity(other, TRUE)).accept
    assert lax([other], [TRUE]).tolist() == [True]


SMALL = {"audit": {"shuffles": 199, "prefix_tokens": 8, "suffix_tokens": 8, "fpr": [0.1]}, "max_length": 64}


@pytest.fixture(scope="module")
def audited(make_model, tmp_path_factory):
    """A model that knows its members about by heart, audited beside its base."""
    folder = tmp_path_factory.mktemp("near")
    model, known = make_model("llama", seed=3), texts(0, 24)
    save(model, folder / "base")
    learn(model, known, steps=32)
    save(model, folder / "tuned")
    for name, rows in (("in", known), ("out", texts(5000, 24))):
        write_rows(folder / f"{name}.jsonl", [{"text": t} for t in rows])
    values = {
        "model": {"path": str(folder / "tuned"), "device": "cpu"}, "base": str(folder / "base"),
        "data": {"path": str(folder / "in.jsonl")}, "nonmembers": str(folder / "out.jsonl"),
        "out": str(folder / "runs"), **SMALL,
    }  # fmt: skip
    run = create_external(load_external(values))
    return run, audit(run, attacks=["loss"])


def counted(run, which):
    """Records that come out nearly, each decoded by plain forwards and compared by the definitions."""
    collector = Collector(run)
    examples = [e for e in load_split(run.records).examples if e.role == "candidate"]
    made = collector.signals(examples, {})[0 if which == "tuned" else 1]
    windows = near(made, prefix_tokens=8, suffix_tokens=8)
    model = collector.subject.tuned if which == "tuned" else collector.subject.untuned
    hits = set()
    for record, start, stop in zip(windows.record, windows.start, windows.stop, strict=True):
        ids = collector.encode(examples[record]).ids
        said = torch.from_numpy(ids[:start].astype(np.int64))
        with torch.no_grad():
            for _ in range(stop - start):
                said = torch.cat([said, model.module(input_ids=said[None]).logits[0, -1].argmax()[None]])
        decode = collector.serializer.tokenizer.decode
        before = decode(ids[:start], skip_special_tokens=True)
        ours, theirs = (
            decode(x, skip_special_tokens=True)[len(before) :].strip() for x in (said.tolist(), ids[:stop].tolist())
        )
        if Levenshtein.normalized_similarity(ours, theirs) >= 0.75:
            hits.add(examples[record].record.id)
    return hits, {e.record.id for e in examples if e.included}, len(windows.record)


def test_an_audit_counts_what_plain_decoding_counts(audited):
    run, report = audited
    [attempt] = [a for a in report.attempts if a.name == "near"]
    rows = json.loads((run.private / "passages.json").read_bytes())
    nearly, verbatim = [r for r in rows if r["written"]], [r for r in rows if not r["written"] and r["confirmed"]]
    found = {row["record_id"] for row in nearly}
    hits, members, _ = counted(run, "tuned")
    # By words more may count than by characters, and never fewer.
    assert hits <= found
    assert len(hits & members) >= 5
    assert {row["record_id"] for row in verbatim} <= found
    assert all(row["member"] == (row["record_id"] in members) for row in nearly)
    assert attempt.estimates["rate"].value == pytest.approx(len(found & members) / len(members))
    assert attempt.estimates["non-members"].value == pytest.approx(len(found - members) / 24)
    assert report.metrics["extraction.near.rate"] == attempt.estimates["rate"]
    assert report.metrics["extraction.near.excess"].low > 0
    base, _, decoded = counted(run, "base")
    assert decoded > 0 or not base
    assert attempt.control["rate"].value >= len(base & members) / len(members)
    assert attempt.control["rate"].value < attempt.estimates["rate"].value
    assert any("were decoded, one window a record" in note for note in attempt.notes)


def test_what_was_written_stays_private(audited):
    run, report = audited
    rows = json.loads((run.private / "passages.json").read_bytes())
    written = {row["written"] for row in rows if row["written"]}
    assert written
    page = (run.path / "report.html").read_text() if (run.path / "report.html").exists() else ""
    public = (run.path / "audit.json").read_text() + page
    assert not [text for text in written if len(text) > 20 and text.strip() in public]
    assert any("nearly word for word" in reason for reason in report.verdict.reasons)


def test_a_second_audit_decodes_nothing(audited, monkeypatch):
    import sordino.deployed

    run, report = audited
    monkeypatch.setattr(sordino.deployed, "load_deployed", lambda *a, **k: pytest.fail("a model was loaded"))
    again = audit(run, attacks=["loss"])
    assert [a for a in again.attempts if a.name == "near"] == [a for a in report.attempts if a.name == "near"]


def test_a_server_continues_as_the_model_does_here(tmp_path):
    model = load(ModelConfig(device="cpu"))
    for name, start in (("in", 0), ("out", 5000)):
        write_rows(tmp_path / f"{name}.jsonl", [{"text": t} for t in texts(start, 12)])
    values = {
        "model": {"path": "served"}, "data": {"path": str(tmp_path / "in.jsonl")}, "base": "sordino-tiny",
        "nonmembers": str(tmp_path / "out.jsonl"), "out": str(tmp_path / "runs"), "tokenizer": "sordino-tiny",
    }  # fmt: skip
    with serving(Stub(model=model)) as stub:
        collector = Collector(create_external(load_external(values | {"endpoint": stub.url})))
        examples = [e for e in load_split(collector.run.records).examples if e.role == "candidate"][:3]
        prefixes, lengths = [collector.encode(e).ids[:6] for e in examples], [5, 3, 4]
        expected = continued(model, prefixes, lengths)
        assert any(expected)
        assert collector.continues(prefixes, lengths, "tuned") == expected
        asked = len(stub.asked)
        assert collector.continues(prefixes, lengths, "base") == expected  # the same model, read here
        assert len(stub.asked) == asked


def test_what_is_continued_is_the_text_after_the_prefix_up_to_the_end(make_model):
    model = make_model("llama", seed=1)
    tokenizer = model.tokenizer
    prefixes = [np.array(tokenizer("The door opens")["input_ids"]), np.array(tokenizer("A")["input_ids"])]
    lengths = [6, 3]
    for prefix_ids, ids, text in zip(
        prefixes, greedy(model, prefixes, lengths), continued(model, prefixes, lengths), strict=True
    ):
        ids = ids.tolist()
        ids = ids[: ids.index(tokenizer.eos_token_id)] if tokenizer.eos_token_id in ids else ids
        before = tokenizer.decode(prefix_ids, skip_special_tokens=True)
        assert before + text == tokenizer.decode([*prefix_ids.tolist(), *ids], skip_special_tokens=True)
