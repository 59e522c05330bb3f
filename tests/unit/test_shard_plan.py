"""Where units are placed, and what taking them out costs, against counting."""

import itertools

import numpy as np
import pytest
from scipy.stats import chisquare

from sordino.records import Example, Message, Record
from sordino.train.shard_plan import (
    ShardManifest,
    cells_of,
    expected_share,
    fingerprint,
    formula,
    new_key,
    place,
    share_of,
    stage_seed,
)

KEY = "07" * 32


def manifest(count=4, slices=3):
    return ShardManifest(
        key=KEY, count=count, slices=slices, combine="merge", seed=0, base="", tokenizer="", serializer="",
        method={}, train={},
    )  # fmt: skip


def example(unit, text="t", name=None):
    record = Record(id=name or f"{unit}/{text}", unit=unit, messages=(Message("text", text),))
    return Example(record=record, role="train", included=True, group=unit)


def test_places_are_uniform_follow_from_the_key_and_from_nothing_else():
    found = [place(KEY, f"u{i}", 4, 3) for i in range(6000)]
    counts = np.unique([s * 3 + r for s, r in found], return_counts=True)[1]
    assert len(counts) == 12
    assert chisquare(counts).pvalue > 1e-3
    assert found != [place(new_key(), f"u{i}", 4, 3) for i in range(6000)]
    some = [example(f"u{i % 40}", f"text {i}") for i in range(80)]
    cells, fewer = cells_of(some, manifest()), cells_of(some[7:], manifest())
    where = {some[i].record.id: cell for cell, at in cells.items() for i in at}
    assert {some[7:][i].record.id: cell for cell, at in fewer.items() for i in at}.items() <= where.items()
    assert all(where[e.record.id] == place(KEY, e.record.unit, 4, 3) for e in some)
    assert sorted(i for at in cells.values() for i in at) == list(range(80))


def test_the_formula_is_what_bourtoule_et_al_say_and_what_the_guide_counts():
    for shards, slices in itertools.product((1, 4, 8, 32), (1, 2, 4, 10)):
        assert formula(shards, slices) == pytest.approx((slices + 1) / (2 * slices * shards))
    # One author of 200 and twenty, as the guide on unlearning has them.
    assert formula(8, 4) == pytest.approx(0.078125)
    assert round(100 * formula(8, 4, 20)) == 75
    assert round(100 * formula(32, 4, 20)) == 32


def test_the_formula_is_the_mean_over_all_ways_to_place_units():
    for shards, slices, units in ((2, 2, 1), (2, 3, 2), (3, 2, 3)):
        equal = np.ones((shards, slices), dtype=np.int64)
        every = list(itertools.product(range(shards), range(slices)))
        found = [share_of(equal, set(chosen)) for chosen in itertools.product(every, repeat=units)]
        assert formula(shards, slices, units) == pytest.approx(np.mean(found))


def test_the_expected_share_is_the_mean_over_all_records():
    rng = np.random.default_rng(1)
    counts, tokens = rng.integers(0, 9, (5, 4)), rng.integers(0, 500, (5, 4))
    each = [share_of(tokens, [(s, r)]) for s in range(5) for r in range(4) for _ in range(counts[s, r])]
    assert expected_share(tokens, counts) == pytest.approx(np.mean(each))


def test_of_two_slices_of_a_shard_the_first_counts():
    tokens = np.array([[1, 2, 4], [8, 16, 32]])
    assert share_of(tokens, [(0, 2), (0, 1)]) == pytest.approx(6 / 63)
    assert share_of(tokens, [(0, 0), (1, 2)]) == pytest.approx(39 / 63)
    assert share_of(tokens, []) == 0.0


def test_a_fingerprint_tells_records_their_order_their_contents_and_the_key_apart():
    one, two = example("a", "x"), example("b", "y")
    made = [
        fingerprint(KEY, [one, two]), fingerprint(KEY, [two, one]), fingerprint(KEY, [one]), fingerprint(KEY, []),
        fingerprint(KEY, [one, example("b", "z", name="b/y")]), fingerprint("08" * 32, [one, two]),
    ]  # fmt: skip
    assert len(set(made)) == len(made)
    assert fingerprint(KEY, [one, two]) == made[0]


def test_seeds_of_stages_differ_and_follow_from_the_seed():
    seeds = {stage_seed(seed, cell) for seed in (0, 1) for cell in itertools.product(range(8), range(8))}
    assert len(seeds) == 128
    assert max(seeds) < 2**63
    assert stage_seed(3, (1, 2)) == stage_seed(3, (1, 2)) != stage_seed(3, (2, 1))
