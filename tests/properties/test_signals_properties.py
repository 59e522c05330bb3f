"""Whatever the records: vectorised arithmetic on ragged rows equals naive loops."""

import math
from itertools import pairwise

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.attacks.extraction.exposure import search
from sordino.attacks.membership.error_zone import error_zone
from sordino.attacks.membership.min_k_plus_plus import min_k_plus_plus
from sordino.attacks.membership.windows import SIZES, windows
from sordino.signals import Ragged, Signals, Statistics

short = settings(max_examples=60, deadline=None)
# Multiples of 1/64: their sums are exact, so a tie is a tie whatever the order of additions.
gains = st.integers(-640, 0).map(lambda x: x / 64)
rows_of = st.lists(st.lists(gains, max_size=50), min_size=1, max_size=8)


def offsets_of(rows):
    return np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)


def signals_of(rows, ranks=None, base=None):
    flat = np.array([x for row in rows for x in row], dtype=np.float64)
    zeros = np.zeros(len(flat), dtype=np.int32)
    rank = zeros if ranks is None else np.array([x for row in ranks for x in row], dtype=np.int32)
    statistics = Statistics(
        offsets=offsets_of(rows), position=zeros, token=zeros, logprob=flat, mean=flat - 1, variance=flat**2,
        rank=rank, top=zeros,
    )  # fmt: skip
    names = tuple(map(str, range(len(rows))))
    return Signals(record_ids=names, texts=names, statistics=statistics, base=base)


@st.composite
def pairs(draw):
    rows = draw(rows_of)
    base = [draw(st.lists(gains, min_size=len(row), max_size=len(row))) for row in rows]
    ranks = [draw(st.lists(st.integers(0, 2), min_size=len(row), max_size=len(row))) for row in rows]
    return rows, base, ranks


@short
@given(rows_of, st.floats(0.01, 1))
def test_ragged_equals_loops(rows, share):
    made = Ragged(np.array([x for row in rows for x in row]), offsets_of(rows))
    kept = [max(1, math.floor(share * len(row) + 1e-9)) for row in rows]
    lowest = [sum(sorted(r)[:k]) / k if r else math.nan for r, k in zip(rows, kept, strict=True)]
    assert made.sum().tolist() == [sum(row) for row in rows]
    np.testing.assert_array_equal(made.mean(), [sum(r) / len(r) if r else math.nan for r in rows])
    np.testing.assert_allclose(made.lowest_mean(share), lowest, rtol=1e-12)


@short
@given(rows_of, st.data())
def test_select_equals_picking_rows(rows, data):
    chosen = data.draw(st.lists(st.integers(0, len(rows) - 1), max_size=10))
    picked = signals_of(rows).statistics.select(chosen)
    assert picked.logprob.tolist() == [x for i in chosen for x in rows[i]]
    assert np.diff(picked.offsets).tolist() == [len(rows[i]) for i in chosen]


def naive_windows(row, base, sizes):
    if not row:
        return math.nan
    shares = []
    for size in sizes:
        size = min(size, len(row))
        starts = range(len(row) - size + 1)
        wins = [sum(row[i : i + size]) > sum(base[i : i + size]) for i in starts]
        shares.append(sum(wins) / len(wins))
    return sum(shares) / len(shares)


@short
@given(pairs(), st.lists(st.integers(1, 60), min_size=1, max_size=4))
def test_windows_equal_a_naive_count(pair, sizes):
    rows, base, _ = pair
    for chosen in (SIZES, tuple(sizes)):
        scores = windows(signals_of(rows, base=signals_of(base)), sizes=chosen)
        expected = [naive_windows(r, b, chosen) for r, b in zip(rows, base, strict=True)]
        np.testing.assert_allclose(scores, expected, rtol=1e-12)


def naive_error_zone(row, base, rank, drop_first):
    if not row:
        return math.nan
    shifts = [p - q for p, q, r in list(zip(row, base, rank, strict=True))[drop_first:] if r > 0]
    rises, falls = sum(max(s, 0) for s in shifts), sum(max(-s, 0) for s in shifts)
    return (rises + 1e-12) / (falls + 1e-12)


@short
@given(pairs(), st.booleans())
def test_error_zone_equals_a_naive_sum(pair, drop_first):
    rows, base, ranks = pair
    scores = error_zone(signals_of(rows, ranks, signals_of(base)), drop_first=drop_first)
    expected = [naive_error_zone(*each, drop_first) for each in zip(rows, base, ranks, strict=True)]
    np.testing.assert_allclose(scores, expected, rtol=1e-9)


@short
@given(rows_of)
def test_min_k_plus_plus_is_finite_where_the_model_is_certain(rows):
    signals = signals_of([[0.0] * len(row) for row in rows])
    certain = min_k_plus_plus(signals)
    assert np.isfinite(certain[np.diff(signals.statistics.offsets) > 0]).all()


@st.composite
def candidates(draw):
    """Distinct candidates of up to 4 tokens, sorted, with -1 after the end; and a table of log-probabilities."""
    words = draw(st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=40))
    rows = np.array(sorted(word + (-1,) * (4 - len(word)) for word in words), dtype=np.int32)
    logp = draw(st.lists(st.integers(-64, -1), min_size=16, max_size=16))
    start = draw(st.lists(st.integers(-64, -1), min_size=4, max_size=4))
    return rows, np.array(start) / 8, np.array(logp).reshape(4, 4) / 8, draw(st.integers(0, len(rows) - 1))


@short
@given(candidates())
def test_search_counts_as_enumeration_does(drawn):
    rows, start, table, target = drawn

    def total(row):
        tokens = row[row >= 0]
        return start[tokens[0]] + sum(table[a, b] for a, b in pairwise(tokens))

    def following(paths, parent, token):
        assert (paths >= 0).all()
        return start[token] if paths.shape[1] == 0 else table[paths[parent, -1], token]

    better = sum(total(row) > total(rows[target]) for row in rows)
    assert search(rows, target, following, 10**9)[0] == better
    count, spent = search(rows, target, following, 12)
    assert count in (None, better)
    assert spent <= 12
