"""Rankings of generated texts, duplicates, and what counts as memorised, against plain counting."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.attacks.rankings import RANKINGS, distinct, precision_at, precisions, ranked, run_length, runs, window
from sordino.errors import AuditError
from sordino.matching import SuffixIndex
from sordino.signals import Signals, Statistics


def signals(logprobs):
    """Signals of texts whose tokens have these log-probabilities."""
    counts, flat = [len(x) for x in logprobs], np.array([v for x in logprobs for v in x], dtype=np.float64)
    whole = np.zeros(len(flat), np.int32)
    made = Statistics(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), position=whole, token=whole, logprob=flat,
        mean=flat, variance=flat, rank=whole, top=whole,
    )  # fmt: skip
    names = tuple(map(str, range(len(logprobs))))
    return Signals(record_ids=names, texts=names, statistics=made)


@given(st.lists(st.lists(st.floats(-9, 0), max_size=12), max_size=4), st.integers(1, 6))
@settings(max_examples=40, deadline=None)
def test_the_best_window_is_that_of_all_windows(logprobs, size):
    found = window(signals(logprobs), size=size)
    for own, value in zip(logprobs, found, strict=True):
        width = min(size, len(own))
        if not own:
            assert np.isnan(value)
        else:
            assert value == pytest.approx(max(np.mean(own[i : i + width]) for i in range(len(own) - width + 1)))


def test_rankings_put_first_what_their_definitions_do():
    # Text 0 is easy for every model, text 1 for the tuned one alone, text 2 knows one passage by heart.
    tuned = [[-0.1] * 60, [-0.5] * 60, [-3.0] * 60 + [-0.01] * 60]
    base, lower = [[-0.1] * 60, [-5.0] * 60, [-3.0] * 120], [[-0.2] * 60, [-4.0] * 60, [-2.0] * 120]
    made = replace(
        signals(tuned), base=signals(base), views={"lowercase": signals(lower)},
        measured={"compressed": np.array([10, 200, 200])},
    )  # fmt: skip
    first = {name: int(order[0]) for name, order in ranked(made, ["a b c", "d e f", "g h i"]).items()}
    assert first == {"perplexity": 0, "base": 1, "zlib": 1, "lowercase": 1, "window": 2}
    assert set(first) == set(RANKINGS)
    nll = {"tuned": [0.1, 0.5, 1.505], "base": [0.1, 5.0, 3.0]}
    assert RANKINGS["base"](made).tolist() == pytest.approx(
        [b / t for t, b in zip(nll["tuned"], nll["base"], strict=True)]
    )


def test_a_text_that_cannot_be_scored_comes_last():
    made = signals([[], [-5.0], [-1.0]])
    made = replace(made, base=made, views={"lowercase": made}, measured={"compressed": np.array([1, 1, 1])})
    assert all(order[-1] == 0 for order in ranked(made, ["a", "b", "c"]).values())


def grams(text):
    own = text.split()
    return Counter(zip(own, own[1:], own[2:], strict=False)) or Counter([tuple(own)])


@given(st.lists(st.lists(st.sampled_from("abc"), max_size=8).map(" ".join), max_size=8), st.randoms())
@settings(max_examples=60, deadline=None)
def test_duplicates_are_those_of_comparing_all_pairs(texts, random):
    order = random.sample(range(len(texts)), len(texts))
    kept = []
    for number in order:
        own = grams(texts[number])
        if not any(2 * (own & grams(texts[other])).total() >= own.total() for other in kept):
            kept.append(number)
    assert distinct(texts, order).tolist() == kept


def test_duplicates_worked_out_by_hand():
    texts = ["my name my name my name", "My name is my name", "my name my name", "", "", "one", "one"]
    # Of the first, "my name my" and "name my name" stand twice; the third has each once, all of them in the first.
    assert distinct(texts, range(7)).tolist() == [0, 1, 3, 5]
    # The other way round, two of the first one's four are in the third: a half, which is enough.
    assert distinct(texts, [2, 0]).tolist() == [2]


@pytest.mark.parametrize(
    ("lengths", "expected"), [([200, 300, 120], 50), ([100], 50), ([60, 80, 500], 40), ([9, 12], 8), ([], 8)]
)
def test_the_run_that_counts_shrinks_with_short_records(lengths, expected):
    assert run_length(lengths) == expected


def test_a_smaller_run_may_be_asked_for():
    assert run_length([500], 20) == 20


TOKENS = st.lists(st.integers(0, 2), max_size=10)


@given(st.lists(TOKENS, max_size=4), st.lists(TOKENS, max_size=4), st.lists(TOKENS, max_size=4), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_runs_are_those_of_comparing_all_pieces(texts, members, others, least):
    def pieces(records):
        return {tuple(r[i : i + least]) for r in records for i in range(len(r) - least + 1)}

    found = runs(texts, SuffixIndex(members), SuffixIndex(others), least)
    inside, outside = pieces(members), pieces(others)
    for text, member, other, longest in zip(texts, found.members, found.others, found.longest, strict=True):
        own = pieces([text])
        assert member == bool(own & (inside - outside))
        assert other == bool(own & (outside - inside))
        assert (longest >= least) == bool(own & inside)


def test_precision_is_counted_from_the_top():
    hits = np.array([True, True, False, False])
    assert precision_at(1, hits).value == 1.0
    assert (precision_at(3, hits).value, precision_at(3, hits).n) == (pytest.approx(2 / 3), 3)
    assert (precision_at(100, hits).value, precision_at(100, hits).n) == (0.5, 4)
    assert precision_at(5, []).value is None
    made = precisions({"up": np.array([0, 1, 2]), "down": np.array([3, 2, 1])}, hits, k=2)
    assert {name: one.value for name, one in made.items()} == {"up": 1.0, "down": 0.0}
    assert made["up"].low == pytest.approx(0.025 ** (1 / 2))  # of 2 hits in 2
    with pytest.raises(AuditError, match="no precision at 0"):
        precision_at(0, hits)
    with pytest.raises(AuditError, match="run of 0 tokens"):
        runs([], SuffixIndex([]), SuffixIndex([]), 0)
