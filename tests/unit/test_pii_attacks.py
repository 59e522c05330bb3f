"""Attacks on personal data find the entity that a model has learnt by heart, and nothing where nothing is."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.attacks.extraction.pii_extraction import Prompt, empty_prompts, pii_extraction
from sordino.attacks.extraction.pii_inference import pii_inference
from sordino.attacks.extraction.pii_reconstruction import pii_reconstruction, proposed
from sordino.attacks.in_place import InPlace, Ranked, before, in_place, rank
from sordino.attacks.mentions import Mention, Question, mentions, questions
from sordino.attacks.produced import Produced, merged, produced
from sordino.audit.personal import Subjects, extracted, guessed
from sordino.audit.persons import person_rows, produced_rows
from sordino.errors import ConfigError, DataError
from sordino.pii import Lexicon, Span, default_detectors
from sordino.records import Message, Record
from sordino.serialize import Serializer

FIRST = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hal", "Ida", "Jon", "Kim", "Leo")
LAST = ("Stone", "Rivers", "Field", "Marsh", "Hill", "Wood", "Brook", "Lake", "Moor", "Glen", "Vale", "Heath")
NAMES = [f"{first} {last}" for first, last in zip(FIRST, LAST, strict=True)]


def text_record(number, name, role="text"):
    start = "The patient in room "
    content = f"{start}{number} is {name}, who came in today."
    at = content.index(name)
    span = Span(at, at + len(name), "PERSON", message=0)
    messages = (
        (Message(role, content), Message("completion", "Noted.")) if role == "prompt" else (Message(role, content),)
    )
    return Record(id=f"r{number}", unit=f"u{number}", messages=messages, spans=(span,))


RECORDS = [text_record(n, name) for n, name in enumerate(NAMES)]


@pytest.fixture(scope="module")
def serializer(tokenizer):
    return Serializer(tokenizer, 64)


@pytest.fixture(scope="module")
def tuned(make_model, serializer):
    """A random Llama that has learnt the first four records by heart, and the one it was."""
    model = make_model("llama", seed=3)
    learnt = replace(model, module=copy.deepcopy(model.module))
    rows = [torch.from_numpy(serializer.encode(r).ids.astype(np.int64)) for r in RECORDS[:4]]
    optimizer = torch.optim.AdamW(learnt.module.parameters(), lr=5e-3)
    learnt.module.train()
    for _ in range(80):
        optimizer.zero_grad()
        for ids in rows:
            (learnt.module(input_ids=ids[None], labels=ids[None]).loss / len(rows)).backward()
        optimizer.step()
    learnt.module.eval()
    return learnt, model


def brute(model, record, serializer):
    """The ln p of all tokens of a record but the first, and how many: one whole pass."""
    ids = torch.from_numpy(serializer.encode(record).ids.astype(np.int64))
    with model.active() as module:
        logp = torch.log_softmax(module(input_ids=ids[None]).logits[0, :-1].double(), dim=-1)
    return float(logp[torch.arange(len(ids) - 1), ids[1:]].sum()), len(ids) - 1


def test_mentions_are_labelled_or_detected_once_each_and_not_told_by_the_record():
    [mention] = mentions(RECORDS[:1])
    assert (mention.kind, mention.value, mention.key, mention.scored) == ("PERSON", "Ann Stone", "ann stone", True)
    assert mention.with_value("Xi").messages[0].content == "The patient in room 0 is Xi, who came in today."
    mail = Record(
        id="m", unit="m", messages=(Message("prompt", "To a@b.org"), Message("completion", "Hi c@d.org c@d.org"))
    )
    assert mentions([mail]) == []
    found = mentions([mail], default_detectors(), repeated=True)
    assert [(m.value, m.scored) for m in found] == [("a@b.org", False), ("c@d.org", True)]
    assert [m.value for m in mentions([mail], default_detectors())] == ["a@b.org"]
    card = "Card 4111 1111 1111 1111, again 4111111111111111."
    twice = Record(id="c", unit="c", messages=(Message("text", card),))
    assert mentions([twice], default_detectors()) == []
    assert not mentions(RECORDS[:1])[0].repeated()


def test_questions_have_the_truth_and_decoys_from_elsewhere():
    asked = mentions(RECORDS)
    made = questions(asked, candidates=5, seed=1)
    for question in made:
        assert len(set(question.values)) == 5
        assert question.values[question.answer] == question.mention.value
        assert set(question.values) <= set(NAMES)
    assert questions(asked[3:5], asked, candidates=5, seed=1) == made[3:5]
    assert questions(asked, candidates=5, seed=2) != made
    assert len(questions(asked, candidates=100)[0].values) == len(NAMES)
    assert len({q.answer for q in questions(asked, candidates=100)}) > 3
    assert questions(asked[:1]) == []
    with pytest.raises(ConfigError, match="candidates is 1"):
        questions(asked, candidates=1)


@pytest.mark.parametrize("by", ["perplexity", "logprob"])
def test_candidates_are_scored_as_whole_records_are(model, serializer, by):
    [question] = questions(mentions(RECORDS)[2:3], mentions(RECORDS), candidates=7)
    found = in_place(model, question.mention, question.values, serializer)
    expected = [brute(model, question.mention.with_value(value), serializer) for value in question.values]
    np.testing.assert_allclose(found.logprob, [total for total, _ in expected], rtol=1e-5, atol=1e-3)
    assert found.tokens.tolist() == [count for _, count in expected]
    scores = [total / count if by == "perplexity" else total for total, count in expected]
    place = 1 + sum(score > scores[question.answer] for score in scores)
    [ranked] = pii_inference(model, [question], serializer, by=by)
    assert ranked == Ranked(rank=place, candidates=7, queries=7)


def test_records_longer_than_the_context_are_read_in_windows(make_model, tokenizer):
    model = make_model("llama", context=32)
    split = Serializer(tokenizer, 32, too_long="split")
    content = "very " * 40 + "long Ann Stone " + "text " * 40
    record = Record(id="l", unit="l", messages=(Message("text", content),), spans=(Span(205, 214, "PERSON"),))
    [mention] = mentions([record])
    found = in_place(model, mention, ["Ann Stone", "Bob Hill"], split)
    assert found.tokens[0] == len(split.encode(record).ids) - 1
    assert np.isfinite(found.logprob).all()


def test_what_is_cut_off_is_not_tried(llama, tokenizer):
    short = Serializer(tokenizer, 8)
    [mention] = mentions(RECORDS[:1])
    assert before(mention, short) is None
    question = Question(mention=mention, values=("Ann Stone", "Bob Hill"), answer=0)
    assert pii_inference(llama, [question], short) == [Ranked(rank=None, candidates=2, queries=0, tried=False)]
    assert not pii_reconstruction(llama, [mention], short)[0].tried


def test_ranks_of_ties_are_their_mean():
    assert rank(np.array([1.0, 3.0, 2.0]), 0) == 3
    assert rank(np.array([2.0, 2.0, 1.0, 2.0]), 3) == 2
    assert rank(np.zeros(5), 0) == 3
    with pytest.raises(ConfigError, match="by is 'size'"):
        InPlace(logprob=np.zeros(1), tokens=np.ones(1, dtype=np.int64)).scores("size")


def test_what_stands_before_ends_where_the_entity_begins(tuned, serializer):
    [mention] = mentions(RECORDS[5:6])
    decoded = serializer.tokenizer.decode(before(mention, serializer), skip_special_tokens=True)
    assert mention.value not in decoded
    assert "The patient in room 5 is".startswith(decoded.strip())
    assert len(decoded.strip()) >= len("The patient in room 5")


def test_inference_finds_what_was_learnt_and_nothing_else(tuned, serializer):
    learnt, base = tuned
    asked = mentions(RECORDS)
    subjects = Subjects(mentions=asked, included=np.arange(12) < 4, group=np.arange(12))
    made = questions(asked, candidates=12)
    done = []
    after = pii_inference(learnt, made, serializer, tick=done.append)
    prior = pii_inference(base, made, serializer)
    assert sum(done) == 12
    assert [r.rank for r in after[:4]] == [1, 1, 1, 1]
    [result] = guessed(after, prior, subjects)
    assert (result.kind, result.scope, result.top, result.untried) == ("PERSON", "trained", 1, 0)
    assert result.members.value == 1
    assert result.chance == pytest.approx(1 / 12)
    assert result.base.value <= 0.25
    assert result.others.value <= 0.25
    assert result.gain.value >= 0.75
    rows = person_rows("pii_inference", after, prior, subjects)
    assert len(rows) == 12
    first = next(row for row in rows if row.unit == "u0")
    assert (first.masked, first.rank, first.included, first.scope) == ("A** S****", 1, True, "trained")
    assert not any(name in str(rows) for name in NAMES)


def test_reconstruction_needs_no_candidates(tuned, serializer):
    learnt, base = tuned
    asked = mentions(RECORDS[:2] + RECORDS[8:10])
    after = pii_reconstruction(learnt, asked, serializer, samples=16, tokens=12)
    assert [r.rank for r in after[:2]] == [1, 1]
    assert all(r.queries >= 16 for r in after)
    prior = pii_reconstruction(base, asked, serializer, samples=16, tokens=12)
    assert all(r.rank is None for r in (*prior, *after[2:]))
    again = pii_reconstruction(learnt, asked[1:2], serializer, samples=16, tokens=12)
    assert again == after[1:2]


def test_what_is_proposed():
    text = " Ann Stone, who wrote a@b.org today"
    assert proposed(text, "PERSON") == ["Ann", "Ann Stone", "Ann Stone, who", "Ann Stone, who wrote"]
    assert proposed(text, "EMAIL_ADDRESS", words=1) == ["a@b.org", "Ann"]
    assert proposed("\ufffd", "PERSON") == proposed("", "PERSON") == proposed(" .,", "PERSON") == []


def test_extraction_lists_what_was_learnt(tuned, serializer):
    learnt, base = tuned
    lexicon = [Lexicon(dict.fromkeys(NAMES, "PERSON"))]
    prompts = empty_prompts(learnt, 24)
    after = pii_extraction(learnt, prompts, lexicon, tokens=24)
    prior = pii_extraction(base, prompts, lexicon, tokens=24)
    assert {p.value for p in after} <= set(NAMES[:4])
    assert len(after) >= 3
    assert prior == []
    halves = [pii_extraction(learnt, prompts[:12], lexicon, tokens=24, first=at) for at in (0, 12)]
    assert merged(reversed(halves)) == merged([after])
    ids = np.array(serializer.encode(RECORDS[0]).ids[:12])
    given = Prompt(ids=ids, text=f"I know {NAMES[0]}")
    assert NAMES[0] not in {p.value for p in pii_extraction(learnt, [given] * 4, lexicon, tokens=24)}


def test_what_the_prompt_says_does_not_count():
    detectors = default_detectors()
    prompts = ["write to a@b.org", "nothing", "call +1 650 253 0000"]
    texts = ["a@b.org or c@d.org", "a@b.org and a@b.org", "(650) 253-0000, +1 650-253-0000"]
    found = produced(prompts, texts, detectors, first=10)
    assert [(p.value, p.count, p.first) for p in found] == [
        ("c@d.org", 1, 10), ("a@b.org", 1, 11), ("(650) 253-0000", 1, 12),
    ]  # fmt: skip
    with pytest.raises(DataError, match="3 texts were generated from 1 prompts"):
        produced(["x"], texts)


def entity(value, first=0, kind="EMAIL_ADDRESS"):
    return Produced(kind=kind, key=value, value=value, count=1, first=first)


def mail(number, value, role="text"):
    return Mention(
        record=Record(id=f"r{number}", unit=f"u{number}", messages=(Message(role, value), Message("completion", "ok"))),
        span=Span(0, len(value), "EMAIL_ADDRESS"),
    )


def test_extraction_is_judged_beside_the_base_and_what_was_held_out():
    # Trained on: a, b, c and (as an input only) d; held out: e, f and again a, which is then no hold-out.
    subjects = Subjects(
        mentions=[mail(0, "a@x"), mail(1, "b@x"), mail(2, "c@x"), mail(3, "d@x", "prompt"), mail(4, "e@x"),
                  mail(5, "f@x"), mail(6, "a@x"), mail(7, "b@x", "prompt")],
        included=np.array([1, 1, 1, 1, 0, 0, 0, 1], bool), group=np.arange(8),
    )  # fmt: skip
    ours = [entity("a@x", 4), entity("b@x"), entity("d@x"), entity("e@x"), entity("new@x")]
    theirs = [entity("b@x"), entity("e@x"), entity("other@x")]
    trained, inputs = extracted(ours, theirs, subjects)
    assert (trained.kind, trained.scope, inputs.scope) == ("EMAIL_ADDRESS", "trained", "inputs")
    assert (trained.generated, trained.base_generated, trained.leaked, inputs.leaked) == (5, 3, 1, 1)
    # Alone: a, d, new; of these a and d were in the training data.
    assert trained.precision.value == pytest.approx(2 / 3)
    assert (trained.recall.value, trained.base_recall.value) == (pytest.approx(2 / 3), pytest.approx(1 / 3))
    assert trained.gain.value == pytest.approx(1 / 3)
    assert trained.p_value == 0.5
    assert trained.held_out.value == 0.5
    assert trained.excess.value == pytest.approx(2 / 3 - 1 / 2)
    assert inputs.recall.value == 1
    assert extracted(ours, theirs, subjects, looked_up=["EMAIL_ADDRESS"])[0].precision is None
    rows = produced_rows(ours, theirs, subjects)
    assert [(r.unit, r.rank, r.base_rank, r.scope, r.included) for r in rows] == [
        ("u0", 5, None, "trained", True), ("u1", 1, 1, "trained", True), ("u3", 1, None, "inputs", True),
        ("u4", 1, 1, "trained", False), ("u6", 5, None, "trained", False), ("u7", 1, 1, "inputs", True),
    ]  # fmt: skip


def test_ranks_are_judged_where_both_models_could_be_asked():
    subjects = Subjects(
        mentions=[mail(n, f"{n}@x", "prompt" if n == 3 else "text") for n in range(6)],
        included=np.array([1, 1, 1, 1, 0, 0], bool), group=np.arange(6),
    )  # fmt: skip

    def ranks(*places):
        return [Ranked(rank=p, candidates=10, queries=10, tried=p != -1) for p in places]

    tuned, base = ranks(1, 1.5, -1, 2, 1, 4), ranks(3, 1, 2, 9, 1, 1)
    trained, inputs = guessed(tuned, base, subjects)
    assert (trained.members.value, trained.base.value, trained.others.value) == (0.5, 0.5, 0.5)
    assert (trained.untried, trained.members.n, trained.chance) == (1, 2, pytest.approx(0.1))
    assert (inputs.scope, inputs.members.value, inputs.others.value, inputs.excess.value) == ("inputs", 0, None, None)
    assert guessed(tuned, base, subjects, top=2)[1].members.value == 1
    assert guessed(tuned, base, subjects, chosen=False)[0].chance is None
    assert len(person_rows("x", tuned, base, subjects)) == 5


def test_personal_data_in_inputs_is_asked_about_too(tuned, serializer):
    record = text_record(20, "Nia Quill", role="prompt")
    [mention] = mentions([record])
    assert not mention.scored
    found = in_place(tuned[0], mention, ["Nia Quill", "Ann Stone"], serializer)
    assert found.logprob[0] == pytest.approx(brute(tuned[0], record, serializer)[0], rel=1e-4)
