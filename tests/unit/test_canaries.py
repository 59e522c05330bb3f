"""Canaries: fair and stable coins, uniform secrets, in the shape of the data, and out of the way of everything else."""

import json
import math
import re

import pytest
from scipy.stats import binomtest, chisquare

from sordino.bundled.corpus import canary_sentences
from sordino.canaries import CanaryConfig, manifest, plant
from sordino.config import load
from sordino.errors import ConfigError
from sordino.records import Dataset, Message, Record
from sordino.train.flow import prepare


def dataset(count: int = 400, roles: tuple[str, ...] = ("text",)) -> Dataset:
    records = tuple(
        Record(id=f"r{i}", unit=f"r{i}", messages=tuple(Message(role, f"{role} {i}") for role in roles))
        for i in range(count)
    )
    return Dataset(records=records, unit_kind="record", notices=(), source="x")


MANY = CanaryConfig(per_level=400, levels=(1, 2, 3), share=1.0)


def test_coins_are_fair_and_independent_of_the_level():
    _, canaries = plant(dataset(10_000), MANY, 7)
    assert len(canaries) == 1200
    for level in MANY.levels:
        inside = [c.included for c in canaries if c.repetitions == level]
        assert binomtest(sum(inside), len(inside)).pvalue > 1e-3


def test_secrets_are_uniform_digits():
    _, canaries = plant(dataset(10_000), MANY, 7)
    assert all(re.fullmatch(r"\d{5}", c.secret) for c in canaries)
    for position in range(5):
        counts = [sum(c.secret[position] == str(d) for c in canaries) for d in range(10)]
        assert chisquare(counts).pvalue > 1e-4
    assert any(c.secret.startswith("0") for c in canaries)
    assert len({c.secret for c in canaries}) > 1150


def test_secrets_do_not_tell_the_coin():
    _, canaries = plant(dataset(10_000), MANY, 7)
    odd = [c.included for c in canaries if int(c.secret) % 2]
    assert binomtest(sum(odd), len(odd)).pvalue > 1e-3


def test_the_same_seed_plants_the_same_canaries_and_another_others():
    first = plant(dataset(), CanaryConfig(), 3)
    assert plant(dataset(), CanaryConfig(), 3) == first
    other = plant(dataset(), CanaryConfig(), 4)
    assert [c.secret for c in first[1]] != [c.secret for c in other[1]]
    assert [c.included for c in first[1]] != [c.included for c in other[1]]


def test_more_records_move_no_coin():
    few = {c.id: c for c in plant(dataset(200), CanaryConfig(), 3)[1]}
    many = {c.id: c for c in plant(dataset(5000), CanaryConfig(), 3)[1]}
    assert 0 < len(few) < len(many)
    for name, canary in few.items():
        assert (canary.secret, canary.included) == (many[name].secret, many[name].included)


def test_examples_hold_the_canaries_as_often_as_said():
    examples, canaries = plant(dataset(), CanaryConfig(), 3)
    assert len(examples) == len(canaries) > 0
    for example, canary in zip(examples, canaries, strict=True):
        assert example.record.id == example.record.unit == example.group == canary.id
        assert (example.role, example.included) == ("canary", canary.included)
        assert example.repetitions == canary.repetitions
        assert example.record.messages[-1].content == canary.before + canary.secret + canary.after


@pytest.mark.parametrize(
    ("roles", "expected"),
    [
        (("text",), ("text",)),
        (("prompt", "completion"), ("prompt", "completion")),
        (("user", "assistant"), ("user", "assistant")),
        (("system", "user", "assistant", "user", "assistant"), ("user", "assistant")),
    ],
)
def test_a_canary_has_the_shape_of_the_data(roles, expected):
    examples, _ = plant(dataset(roles=roles), CanaryConfig(), 3)
    assert {tuple(m.role for m in e.record.messages) for e in examples} == {expected}


@pytest.mark.parametrize("records", [20, 50, 100, 400, 5000])
def test_copies_do_not_crowd_out_the_records(records):
    config = CanaryConfig()
    _, canaries = plant(dataset(records), config, 3)
    each = len(canaries) / len(config.levels)
    assert each == min(8, math.floor(0.25 * records / (sum(config.levels) / 2)))
    assert sum(c.repetitions for c in canaries) / 2 <= 0.25 * records


def test_the_manifest_is_readable():
    _, canaries = plant(dataset(), CanaryConfig(), 3)
    rows = json.loads(manifest(canaries))
    assert [row["secret"] for row in rows] == [c.secret for c in canaries]
    assert set(rows[0]) == {"id", "secret", "before", "after", "repetitions", "included"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"templates": ("no secret for {name}",)}, "needs {name} and {secret} once each: 'no secret"),
        ({"templates": ("{name} {secret} {secret}",)}, "once each"),
        ({"templates": ("{secret}",)}, "once each"),
        ({"templates": ()}, "canaries.templates is empty"),
        ({"digits": 0}, "canaries.digits is 0"),
        ({"digits": 10}, "canaries.digits is 10"),
        ({"levels": (1, 0)}, r"canaries.levels is [1, 0]"),
        ({"levels": (2, 2)}, r"canaries.levels is [2, 2]"),
        ({"per_level": -1}, "canaries.per_level is -1"),
        ({"share": 1.5}, "canaries.share 1.5"),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError, match=re.escape(message)) as error:
        plant(dataset(), CanaryConfig(**settings), 0)
    assert error.value.hint


def test_braces_in_names_and_templates_stay():
    config = CanaryConfig(templates=("{{x}} {name}: {secret}",))
    examples, canaries = plant(dataset(), config, 0)
    assert all(e.record.messages[0].content.startswith("{{x}} ") for e in examples)
    assert all(c.before.endswith(": ") and c.after == "" for c in canaries)


def test_the_bundled_sentences_are_templates():
    plant(dataset(), CanaryConfig(templates=canary_sentences()), 0)


def test_canaries_are_neither_validation_nor_candidates(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": f"record {i} of mine"}) + "\n" for i in range(600)))
    values = {"data": {"path": str(path)}, "split": {"near_duplicates": 0}}
    with_, without = (prepare(load(values={**values, "canaries": {"per_level": n}}, environment={})) for n in (8, 0))
    assert len(with_.split.canaries) == len(with_.canaries) > 0 == len(without.split.canaries)
    for part in ("members", "nonmembers", "validation"):
        assert getattr(with_.split, part) == getattr(without.split, part) != ()
    assert with_.counts == without.counts | {
        "canaries": len(with_.canaries),
        "canary copies": sum(c.repetitions for c in with_.canaries if c.included),
    }
    trained = {e.record.id for e in with_.split.training}
    assert {c.id for c in with_.canaries if c.included} <= trained
    assert not {c.id for c in with_.canaries if not c.included} & trained


def test_canaries_that_were_left_out_are_counted(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"text": f"record {i} of mine"}) + "\n" for i in range(150)))
    values = {"data": {"path": str(path)}, "split": {"near_duplicates": 0, "candidates": 0.6}}
    prepared = prepare(load(values=values, environment={}))
    [notice] = [n for n in prepared.notices if n.kind == "canaries"]
    assert notice.count == 48 - len(prepared.canaries) > 0
    assert f"{len(prepared.canaries)} of 48" in notice.message
