"""Scores of the records of a deletion, against passes over one record at a time."""

from dataclasses import replace

import numpy as np
import pytest
from unlearn_fixtures import alone, deletion_of, greedily, rouge_recall, tuned_run

from sordino.audit.collecting import Collector
from sordino.errors import UnlearningError
from sordino.records import Message, Record
from sordino.unlearn.measuring.answers import LONGEST, answer_start, beginning
from sordino.unlearn.measuring.scoring import sampled, score, scores_folder

ASKED = [
    {"prompt": f"Who lives in flat {i}?", "completion": f"A person who has the {i * 37 % 101} keys of it."}
    for i in range(120)
]
PLAIN = [{"text": f"Note {i}: the key of flat {i * 7919 % 1000} is green and old"} for i in range(120)]


@pytest.fixture(scope="module", params=["asked", "plain"])
def run(request, make_model, tmp_path_factory):
    rows = ASKED if request.param == "asked" else PLAIN
    kind = {"rank": 2} if request.param == "asked" else {"kind": "full"}
    return tuned_run(tmp_path_factory.mktemp(request.param), make_model("llama"), rows, method=kind)


def test_every_figure_is_that_of_one_record_alone(run):
    deletion = deletion_of(run)
    found = score(run, deletion)
    collector = Collector(run)
    tokenizer = collector.serializer.tokenizer
    untuned = collector.tuned.base()
    for name, examples in sampled(deletion).items():
        columns = getattr(found, name)
        assert examples and all(len(values) == len(examples) for values in columns.values())
        for i, example in enumerate(examples[:6]):
            tokens = collector.serializer.encode(example.record)
            loss, hit = alone(collector.tuned, tokens.ids, tokens.target)
            assert columns["loss"][i] == pytest.approx(loss, abs=1e-4)
            assert columns["base_loss"][i] == pytest.approx(alone(untuned, tokens.ids, tokens.target)[0], abs=1e-4)
            assert columns["tokens"][i] == tokens.target.sum() == len(hit)
            assert columns["exact_memorisation"][i] == pytest.approx(hit.mean())
            tails = [k for k in range(len(hit) + 1) if hit[k:].all()]
            assert columns["extraction_strength"][i] == pytest.approx(1 - min(tails) / len(hit))
            if name not in ("forget", "never"):  # whose answers nothing is judged by
                assert "rouge_l" not in columns
                continue
            messages = example.record.messages
            if messages[-1].role == "completion":
                first = int(np.flatnonzero(tokens.target)[0])
                room = min(LONGEST, collector.tuned.context - first)
                made = greedily(collector.tuned, tokens.ids[:first], room, tokenizer.eos_token_id)
                made, true = made[made != tokenizer.eos_token_id], messages[-1].content
            else:
                whole = tokens.ids[: -1 if tokens.ids[-1] == tokenizer.eos_token_id else None]
                first = (len(whole) + 1) // 2
                made = greedily(collector.tuned, whole[:first], len(whole) - first, None)
                true = tokenizer.decode(whole)[len(tokenizer.decode(whole[:first])) :]
            said = tokenizer.decode([*tokens.ids[:first], *made], skip_special_tokens=True)
            before = tokenizer.decode(tokens.ids[:first], skip_special_tokens=True)
            assert columns["rouge_l"][i] == pytest.approx(rouge_recall(said[len(before) :], true))


def test_subjects_are_numbered_over_all_sets_and_none_is_named(run):
    deletion = deletion_of(run)
    found = score(run, deletion, generate=False)
    assert set(found.forget["subject"]) == {0.0, 1.0} and not set(found.never["subject"]) & {0.0, 1.0}
    assert len(set(found.forget["subject"] + found.retain["subject"])) == len(
        {e.record.unit for e in [*deletion.forget, *deletion.retain]}
    )
    assert "rouge_l" not in found.forget


def test_no_token_of_a_record_stays_and_nothing_is_computed_twice(run, monkeypatch):
    deletion = deletion_of(run, request="request-2")
    first = score(run, deletion)
    folder = scores_folder(run, deletion)
    assert folder.stat().st_mode & 0o777 == folder.parent.stat().st_mode & 0o777 == 0o700
    assert not list(folder.rglob("statistics.safetensors")) and not (run.private / "signals").exists()
    monkeypatch.setattr(Collector, "statistics", lambda *a: pytest.fail("a second pass"))
    monkeypatch.setattr("sordino.unlearn.measuring.scoring.overlap", lambda *a: pytest.fail("a second generation"))
    assert score(run, deletion) == first


def test_the_sample_depends_on_the_request_alone(run):
    deletion = deletion_of(run)
    some = sampled(deletion, 10)
    assert [len(some[name]) for name in ("never", "retain", "validation")] == [10, 10, len(deletion.validation[:10])]
    assert len(some["forget"]) == len(deletion.forget)
    assert some == sampled(replace(deletion, forget=deletion.forget[:3]), 10) | {"forget": some["forget"]}
    other = replace(deletion, request=replace(deletion.request, id="another"))
    assert sampled(other, 10)["retain"] != some["retain"]


def test_a_record_to_forget_that_was_cut_off_is_refused(run):
    deletion = deletion_of(run, request="request-3")
    long = "many words and more of them " * 30
    messages = (Message("prompt", long), Message("completion", "unread"))
    record = Record(id="long", unit=deletion.forget[0].record.unit, messages=messages)
    lost = replace(deletion.forget[0], record=record)
    with pytest.raises(UnlearningError, match=f"1 of {len(deletion.forget) + 1} records to forget have no token"):
        score(run, replace(deletion, forget=[*deletion.forget, lost]), generate=False)
    # Of others it is left out.
    found = score(run, replace(deletion, retain=[*deletion.retain[:5], lost]), generate=False)
    assert len(found.retain["loss"]) == 5


def test_the_last_answer_of_a_conversation_is_asked_for(run):
    serializer = Collector(run).serializer
    chat = tuple(
        Message(r, c)
        for r, c in (
            ("user", "Hi"),
            ("assistant", "Yes?"),
            ("user", "Who?"),
            ("assistant", "Ann"),
        )
    )
    record = Record(id="c", unit="c", messages=chat)
    ids, at = answer_start(record, serializer)
    before = serializer.tokenizer.decode(ids[:at], skip_special_tokens=True)
    assert before.rstrip().endswith("Assistant:") and "Who?" in before and "Ann" not in before
    asked = beginning(record, serializer, 64)
    assert asked.true == "Ann" and asked.end and len(asked.prefix) + asked.length <= 64
