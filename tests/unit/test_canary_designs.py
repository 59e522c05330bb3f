"""Audit canaries: fair and keyed coins, the shape of the data, and secrets that are what their design says."""

import json
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from scipy.stats import binomtest

from sordino.canaries import AuditCanaries, CanaryConfig, Source, plant, plant_audit
from sordino.canaries.designs import FROM_DATA
from sordino.canaries.keyed import Design
from sordino.config import load
from sordino.errors import ConfigError, DataError
from sordino.records import Dataset, Example, Message, Record
from sordino.serialize import Serializer
from sordino.train.flow import prepare
from sordino.train.planted import scored_tokens, trained_tokens

DESIGNS: tuple[Design, ...] = ("secret", "in-distribution", "high-perplexity", "bigram", "new-token")
SENTENCE = "the customer asked about a refund and we sent another card to her old address in town on monday"
WORDS = SENTENCE.split()


def dataset(count: int = 200, roles: tuple[str, ...] = ("text",)) -> Dataset:
    rng = np.random.default_rng(0)
    records = tuple(
        Record(id=f"r{i}", unit=f"r{i}", messages=tuple(Message(r, " ".join(rng.choice(WORDS, 14))) for r in roles))
        for i in range(count)
    )
    return Dataset(records=records, unit_kind="record", notices=(), source="x")


def source(tokenizer, data: Dataset | None = None, **more) -> Source:
    data = data or dataset()
    # The first half always trains; the others are candidates and may not lend a word.
    always = [
        Example(record=r, role="train", included=True, group=r.id) for r in data.records[: len(data.records) // 2]
    ]
    return Source(dataset=data, always=always, tokenizer=tokenizer, **more)


def config(design: Design, count: int = 40, **more) -> CanaryConfig:
    return CanaryConfig(audit=AuditCanaries(design=design, count=count), **more)


def test_coins_are_fair_keyed_and_those_of_no_other_canary(tokenizer):
    data = source(tokenizer, dataset(4000))
    _, found = plant_audit(data, config("new-token", 2000), 7)
    assert len(found) == 2000
    assert binomtest(sum(c.included for c in found), len(found)).pvalue > 1e-3
    _, other = plant_audit(data, config("new-token", 2000), 8)
    alike = sum(a.included == b.included for a, b in zip(found, other, strict=True))
    assert binomtest(alike, len(found)).pvalue > 1e-3
    assert plant_audit(data, config("new-token", 2000), 7)[1] == found
    # Neither the design nor more records move a coin.
    some = plant_audit(source(tokenizer), config("secret"), 7)[1]
    assert [c.included for c in some] == [c.included for c in found[:40]]


@pytest.mark.parametrize("design", DESIGNS)
def test_the_count_is_planted_once_each_with_names_of_their_own(tokenizer, design):
    examples, found = plant_audit(source(tokenizer), config(design), 3)
    assert len(examples) == len(found) == 40 and {c.design for c in found} == {design}
    assert len({json.dumps([m.content for m in e.record.messages]) for e in examples}) > 30
    for number, (example, canary) in enumerate(zip(examples, found, strict=True)):
        assert example.record.id == example.record.unit == example.group == canary.id
        assert (example.role, example.included, example.repetitions) == ("canary", canary.included, 1)
        assert canary.number == number and canary.before + canary.secret in example.record.messages[-1].content


@pytest.mark.parametrize("design", DESIGNS)
@pytest.mark.parametrize("roles", [("text",), ("prompt", "completion"), ("system", "user", "assistant")])
def test_canaries_have_the_shape_of_the_data(tokenizer, design, roles):
    examples, _ = plant_audit(source(tokenizer, dataset(200, roles)), config(design), 3)
    shapes = {tuple(m.role for m in e.record.messages) for e in examples}
    assert all(shape[-1] == roles[-1] for shape in shapes) and len(shapes) == 1


@pytest.mark.parametrize("design", FROM_DATA)
def test_words_come_from_records_that_always_train(tokenizer, design):
    here = source(tokenizer)
    own = [e.record.messages[0].content for e in here.always]
    held = [r.messages[0].content for r in here.dataset.records[100:]]
    for example in plant_audit(here, config(design), 3)[0]:
        text = example.record.messages[0].content
        start = " ".join(text.split()[:5])
        assert any(t.startswith(start) for t in own) and not any(t.startswith(start) for t in held)
        assert text not in own


def test_a_bigram_is_one_token_that_never_followed_the_one_before_it(tokenizer):
    here = source(tokenizer)
    serializer = Serializer(tokenizer, 64)
    heard = set()
    for e in here.always:
        ids = tokenizer(e.record.messages[0].content, add_special_tokens=False)["input_ids"]
        heard |= set(pairwise(ids))
    for example, canary in zip(*plant_audit(here, config("bigram"), 3), strict=True):
        tokens = scored_tokens(example.record, canary, serializer, 2048)
        [place] = np.flatnonzero(tokens.target)
        pair = (int(tokens.ids[place - 1]), int(tokens.ids[place]))
        assert tokenizer.decode([pair[1]]).strip() == canary.secret and pair not in heard


def test_a_new_token_ends_its_canary_and_is_all_that_is_learned(tokenizer):
    examples, found = plant_audit(source(tokenizer), config("new-token"), 3)
    for example, canary in zip(examples, found, strict=True):
        tokens = trained_tokens(example.record, canary, Serializer(tokenizer, 64), 2048)
        assert tokens.ids[-1] == 2048 + canary.number and tokens.ids[:-1].max() < 2048
        assert np.flatnonzero(tokens.target).tolist() == [len(tokens) - 1]
        assert tokens.ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(tokens.ids[1:-1]).strip() == canary.before


def test_of_a_secret_its_digits_are_scored_and_the_sentence_is_learned(tokenizer):
    examples, found = plant_audit(source(tokenizer), config("secret"), 3)
    for example, canary in zip(examples, found, strict=True):
        here = (example.record, canary, Serializer(tokenizer, 64), 2048)
        scored, trained = scored_tokens(*here), trained_tokens(*here)
        assert tokenizer.decode(scored.ids[scored.target]).strip() == canary.secret
        assert trained.target[1:].all() and np.array_equal(trained.ids, scored.ids)


@pytest.mark.parametrize("design", ["secret", "bigram", "new-token"])
def test_a_context_that_is_too_long_loses_its_beginning_never_the_secret(tokenizer, design):
    serializer = Serializer(tokenizer, 10)
    for example, canary in zip(*plant_audit(source(tokenizer), config(design), 3), strict=True):
        whole = scored_tokens(example.record, canary, replace(serializer, max_length=400), 2048)
        short = scored_tokens(example.record, canary, serializer, 2048)
        assert len(short) <= 10 and short.ids[0] == tokenizer.bos_token_id
        assert np.array_equal(short.ids[short.target], whole.ids[whole.target])


def test_a_canary_that_its_template_rewrites_is_an_error(tokenizer):
    [example, *_], [canary, *_] = plant_audit(source(tokenizer), config("secret"), 3)
    changed = replace(canary, before=canary.before.upper())
    with pytest.raises(DataError, match="does not stand in its own record"):
        scored_tokens(example.record, changed, Serializer(tokenizer, 64), 2048)


@pytest.mark.parametrize("design", FROM_DATA)
def test_under_differential_privacy_no_record_lends_its_words(tokenizer, design):
    with pytest.raises(ConfigError, match="would plant words of records"):
        plant_audit(source(tokenizer, private=True), config(design), 3)
    values = {"data": {"path": "x"}, "dp": {"epsilon": 8}, "canaries": {"audit": {"design": design, "count": 9}}}
    with pytest.raises(ConfigError, match="would count twice"):
        load(values=values, environment={})


@pytest.mark.parametrize("design", ["secret", "high-perplexity", "new-token"])
def test_under_differential_privacy_a_canary_depends_on_no_record(tokenizer, design):
    one = plant_audit(source(tokenizer, private=True), config(design), 3)
    longer = Dataset(
        records=tuple(replace(r, messages=(Message("text", "other words " * 30),)) for r in dataset().records),
        unit_kind="record", notices=(), source="x",
    )  # fmt: skip
    assert plant_audit(source(tokenizer, longer, private=True), config(design), 3) == one


def test_they_may_not_crowd_out_the_records_and_that_is_noticed(tokenizer, tmp_path):
    examples, _ = plant_audit(source(tokenizer), config("secret", 1000), 3)
    assert len(examples) == 2 * 0.25 * 200
    path = tmp_path / "r.jsonl"
    path.write_text("".join(json.dumps({"text": f"{' '.join(WORDS)} {i}"}) + "\n" for i in range(60)))
    values = {"data": {"path": str(path)}, "split": {"near_duplicates": 0}, "canaries": {"audit": {"count": 500}}}
    prepared = prepare(load(values=values, environment={}))
    [notice] = [n for n in prepared.notices if n.kind == "audit-canaries"]
    assert notice.count == 470 and "30 of 500 audit canaries" in notice.message
    assert len(prepared.audit_canaries) == 30
    assert prepared.counts["canaries"] == 30 + len(prepared.canaries)


def test_both_kinds_stand_beside_each_other(tokenizer):
    data = source(tokenizer)
    ids = {c.id for c in plant(data.dataset, CanaryConfig(), 3)[1]}
    assert not ids & {c.id for c in plant_audit(data, config("secret"), 3)[1]}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"audit": {"headline": "canaries"}}, "canaries.audit.count is 0"),
        ({"canaries": {"audit": {"count": -1}}}, "canaries.audit.count is -1"),
        ({"canaries": {"audit": {"count": 5}}, "split": {"candidates": 0}}, "split.candidates is 0"),
        ({"train": {"monitor": {"every": 0}}}, "train.monitor.every is 0"),
        ({"train": {"monitor": {}}, "canaries": {"per_level": 0}}, "none are planted"),
        ({"train": {"monitor": {}}, "task": "classification", "data": {"path": "x", "label": "y"}}, "classification"),
        ({"canaries": {"audit": {"count": 5}}, "task": "classification", "data": {"path": "x", "label": "y"}},
         "classification"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused(values, words):
    with pytest.raises(ConfigError, match=words):
        load(values={"data": {"path": "x"}, **values}, environment={})


def test_no_records_that_always_train_no_words_from_them(tokenizer):
    with pytest.raises(ConfigError, match="0 records always train"):
        plant_audit(replace(source(tokenizer), always=()), config("bigram"), 3)
