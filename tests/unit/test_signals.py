"""Ragged arithmetic against loops, and signals that come back from disk as they went."""

import json
import mmap
from dataclasses import fields, replace
from fractions import Fraction

import numpy as np
import pytest

from sordino.errors import RunError
from sordino.signals import Ragged, Signals, Statistics, Store

ROWS = ([], [1.5], [], [], [3.0, -1.0, 2.0, 0.25], [-7.0, -7.0], [])


def ragged(rows, dtype=np.float64):
    return Ragged(
        np.array([x for row in rows for x in row], dtype=dtype),
        np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64),
    )


def statistics(lengths, seed=0):
    rng = np.random.default_rng(seed)
    n = sum(lengths)
    return Statistics(
        offsets=np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
        position=np.concatenate([np.arange(1, m + 1) for m in lengths] or [[]]).astype(np.int32),
        token=rng.integers(0, 99, n).astype(np.int32),
        logprob=-rng.exponential(size=n).astype(np.float32),
        mean=-rng.exponential(size=n).astype(np.float32),
        variance=rng.exponential(size=n).astype(np.float32),
        rank=rng.integers(0, 5, n).astype(np.int32),
        top=rng.integers(0, 99, n).astype(np.int32),
    )


def same(a, b):
    return all(np.array_equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Statistics))


@pytest.mark.parametrize("rows", [ROWS, ROWS[1:], ROWS[:-1], ([], []), ()], ids=lambda r: f"{len(r)} records")
def test_sums_and_means_are_those_of_loops(rows):
    made = ragged(rows)
    assert made.sum().tolist() == [sum(row) for row in rows]
    np.testing.assert_array_equal(made.mean(), [np.mean(row) if row else np.nan for row in rows])
    assert made.rows.tolist() == [i for i, row in enumerate(rows) for _ in row]
    assert made.counts.tolist() == [len(row) for row in rows]


@pytest.mark.parametrize("share", [0.01, 0.2, 0.5, 1.0])
def test_lowest_mean_is_that_of_a_loop(share):
    expected = [np.mean(sorted(r)[: max(1, int(share * len(r)))]) if r else np.nan for r in ROWS]
    np.testing.assert_array_equal(ragged(ROWS).lowest_mean(share), expected)


@pytest.mark.parametrize("share", ["0.05", "0.1", "0.2", "0.3", "0.4", "0.6", "0.7", "0.9", "1"])
def test_floor_of_share_times_count_is_not_that_of_its_rounding(share):
    # 0.7 * 10 = 7.000000000000001 - ε in floats, yet ⌊0.7 · 10⌋ = 7; with values 0, 1, … the mean tells k.
    counts = np.arange(1, 400)
    means = ragged([list(range(n)) for n in counts]).lowest_mean(float(share))
    kept = [max(1, int(Fraction(share) * int(n))) for n in counts]
    assert (2 * means + 1).tolist() == kept


def test_float32_values_are_summed_in_float64():
    values = [1e8, 1.0, -1e8]
    assert ragged([values], np.float32).sum().tolist() == [1.0]
    assert ragged([values], np.float32).lowest_mean(1.0).tolist() == [1 / 3]


@pytest.mark.parametrize("order", ["rising", "falling", "drawn", "tied"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int32])
def test_the_lowest_are_those_of_a_sort_in_any_order_and_type(order, dtype):
    rng = np.random.default_rng(0)
    rows = [rng.integers(-500, 500, n) for n in (1, 2, 3, 5, 64, 333, 1000)]
    arranged = {
        "rising": np.sort,
        "falling": lambda r: np.sort(r)[::-1],
        "drawn": lambda r: r,
        "tied": lambda r: r // 200,
    }
    rows = [arranged[order](row) for row in rows]
    for share in (0.001, 0.2, 0.5, 0.99, 1.0):
        # Sums of whole numbers are exact, so nothing need be close to anything.
        expected = [np.sort(r)[: max(1, int(share * len(r) + 1e-9))].astype(float).mean() for r in rows]
        assert ragged(rows, dtype).lowest_mean(share).tolist() == expected


def test_a_value_that_is_no_number_is_the_highest():
    rows = [[np.nan, 2.0, 1.0, np.nan, 3.0], [np.nan], [1.0, np.nan]]
    np.testing.assert_array_equal(ragged(rows).lowest_mean(0.4), [1.5, np.nan, 1.0])
    np.testing.assert_array_equal(ragged(rows).lowest_mean(0.6), [2.0, np.nan, 1.0])
    np.testing.assert_array_equal(ragged(rows).lowest_mean(1.0), [np.nan, np.nan, np.nan])


def test_values_are_read_wherever_they_lie_and_never_written():
    values = np.arange(20, dtype=np.float32)[::-2]
    values.flags.writeable = False
    made = Ragged(values, np.array([0, 4, 10]))
    assert made.lowest_mean(0.5).tolist() == [14.0, 3.0]
    assert made.window_wins((2,), 14.0).tolist() == [1.0, 2 / 5]
    assert values.tolist() == list(range(19, 0, -2))


def test_windows_are_cut_to_the_record_and_must_exceed_the_least():
    made = ragged([[1.0, -1.0, 2.0], [], [-1.0], [0.5]])
    np.testing.assert_array_equal(made.window_wins((1, 2), 0.0), [(2 / 3 + 1 / 2) / 2, np.nan, 0.0, 1.0])
    np.testing.assert_array_equal(made.window_wins((9,), 1.9), [1.0, np.nan, 0.0, 0.0])


def test_select_takes_records_in_the_order_given():
    whole = statistics([3, 0, 5, 1])
    chosen = whole.select([2, 1, 0, 2])
    assert np.diff(chosen.offsets).tolist() == [5, 0, 3, 5]
    np.testing.assert_array_equal(
        chosen.logprob, np.concatenate([whole.logprob[i] for i in (slice(3, 8), slice(3), slice(3, 8))])
    )
    assert same(whole.select(range(4)), whole)
    assert len(whole.select([]).logprob) == 0


def test_nll_is_the_mean_loss_a_token():
    made = statistics([4, 2])
    signals = Signals(record_ids=("a", "b"), texts=("", ""), statistics=made)
    np.testing.assert_allclose(signals.nll, [-made.logprob[:4].mean(), -made.logprob[4:].mean()], rtol=1e-6)
    assert len(signals) == 2


@pytest.mark.parametrize("lengths", [[3, 0, 700, 1], [], [0, 0]])
def test_what_is_stored_comes_back(tmp_path, lengths):
    made, store = statistics(lengths), Store(tmp_path / "signals")
    assert store.get("key") is None
    store.put("key", made, {"model": "tuned", "records": len(lengths)})
    found = store.get("key")
    assert found is not None
    assert same(found, made)
    assert found.offsets.dtype == made.offsets.dtype
    assert {n: a.dtype for n, a in found.present().items()} == {n: a.dtype for n, a in made.present().items()}
    assert (made.others, found.others) == (None, None)
    assert json.loads((tmp_path / "signals" / "key" / "manifest.json").read_text())["model"] == "tuned"
    assert store.get("other") is None


def test_a_classifiers_column_is_stored_and_selected_with_the_others(tmp_path):
    made = statistics([1, 1, 1])
    made = replace(made, others=-np.arange(3, dtype=np.float32))
    store = Store(tmp_path)
    store.put("key", made, {})
    found = store.get("key")
    assert same(found, made)
    assert found.select([2, 0]).others.tolist() == [-2.0, 0.0]


def test_stored_arrays_are_maps_of_the_file_and_cannot_be_written(tmp_path):
    store = Store(tmp_path)
    store.put("key", statistics([100]), {})
    found = store.get("key")
    for column in (found.offsets, *found.present().values()):
        base = array = column
        while isinstance(base, np.ndarray):
            base = base.base
        assert isinstance(base, mmap.mmap)
        assert not array.flags.writeable
        assert array.flags.aligned


def test_a_key_can_be_written_again(tmp_path):
    store = Store(tmp_path)
    store.put("key", statistics([4], seed=1), {})
    store.put("key", statistics([2, 2], seed=2), {})
    assert same(store.get("key"), statistics([2, 2], seed=2))
    assert [path.name for path in tmp_path.iterdir()] == ["key"]


def damage_cut(data):
    return data[:-7]


def damage_header(data):
    return b"\xff" * 16 + data[16:]


def damage_all(data):
    return b""


def damage_name(data):
    return data.replace(b'"rank"', b'"risk"')


@pytest.mark.parametrize("damage", [damage_cut, damage_header, damage_all, damage_name])
def test_damage_is_an_error_that_says_what_to_do(tmp_path, damage):
    store = Store(tmp_path)
    store.put("key", statistics([50]), {})
    path = tmp_path / "key" / "statistics.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(RunError, match=r"signals in .*key are damaged.*Delete that folder"):
        store.get("key")


def test_nothing_is_left_of_a_write_that_failed(tmp_path):
    with pytest.raises(TypeError, match="JSON"):
        Store(tmp_path).put("key", statistics([3]), {"unwritable": object()})
    assert list(tmp_path.iterdir()) == []
    assert Store(tmp_path).get("key") is None
