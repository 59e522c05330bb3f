"""How batches of many adapters become passes: nothing is lost, nothing is mixed, and padding is bounded."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from train_fixtures import some_tokens

from sordino.train.collate import collate
from sordino.train.joint_batches import Corpus, passes, worth

LENGTHS = np.random.default_rng(0).integers(2, 60, 40)


@given(
    batches=st.dictionaries(
        st.integers(0, 9), st.lists(st.lists(st.integers(0, 39), min_size=1, max_size=3), max_size=6), max_size=8
    ),
    limit=st.integers(1, 900), spare=st.integers(0, 500), most=st.integers(1, 9),
)  # fmt: skip
@settings(max_examples=150, deadline=None)
def test_every_unit_is_in_one_pass_under_its_adapter(batches, limit, spare, most):
    found: dict[int, list[list[int]]] = {k: [] for k in batches}
    for one in passes(batches, LENGTHS, limit=limit, spare=spare, most=most):
        groups, units = one.rows.shape[:2]
        assert groups == len(one.chosen)
        # One unit is never divided, so that alone may be over a limit.
        assert groups * units == 1 or (one.rows.size * one.width <= limit and groups * units <= most)
        assert one.width == max(LENGTHS[one.rows[one.rows >= 0]])
        for k, group in zip(one.chosen, one.rows, strict=True):
            found[k] += [unit[unit >= 0].tolist() for unit in group if (unit >= 0).any()]
    assert {k: sorted(units) for k, units in found.items()} == {k: sorted(units) for k, units in batches.items()}


def test_padding_is_bought_only_where_it_costs_less_than_a_pass():
    lengths = np.array([100, 98, 20, 18])
    batches = {k: [[k]] for k in range(4)}
    assert [one.chosen for one in passes(batches, lengths, limit=1000, spare=50)] == [(0, 1), (2, 3)]
    assert [one.chosen for one in passes(batches, lengths, limit=1000, spare=500)] == [(0, 1, 2, 3)]
    assert [one.chosen for one in passes(batches, lengths, limit=1000, spare=0)] == [(0,), (1,), (2,), (3,)]
    assert worth(260_000, 5) > worth(10_000_000, 8) > 0


def test_rows_are_collated_as_by_the_ordinary_loop_and_empty_ones_have_no_target():
    tokens = some_tokens(6, prompt=True)
    corpus = Corpus(tokens, 2, torch.device("cpu"))
    rows = np.array([4, 1, 5])
    wanted = collate([tokens[i] for i in rows], 2, torch.device("cpu"))
    found, owner = corpus.batch(rows, wanted.input_ids.shape[1])
    for name in ("input_ids", "attention_mask", "positions", "wanted"):
        assert torch.equal(getattr(found, name), getattr(wanted, name)), name
    assert found.padded == wanted.padded
    assert np.bincount(owner).tolist() == [int(tokens[i].target.sum()) for i in rows]
    empty, owner = corpus.batch(np.array([-1, 2]), len(tokens[2]))
    assert set(owner) == {1} and empty.attention_mask[0].sum() == 1 and empty.input_ids[0].eq(2).all()
