"""The blind baseline: it finds what texts give away, stays at chance where they give nothing, and is exact."""

import numpy as np
import pytest
from scipy.stats import kstest
from sklearn.kernel_ridge import KernelRidge

from sordino.audit.blind import _kernel, _predictors, blind_baseline

WORDS = [
    "the",
    "our",
    "a",
    "your",
    "order",
    "card",
    "plan",
    "late",
    "green",
    "blue",
    "sent",
    "lost",
    "paid",
    "asked",
    "wrote",
    "called",
    "agreed",
    "city",
    "street",
    "door",
]


def texts(rng, count, extra=()):
    return [" ".join(rng.choice([*WORDS, *extra], rng.integers(8, 20))) for _ in range(count)]


def coins(rng, count):
    return rng.permutation(np.arange(count) % 2 == 0)


def test_a_planted_word_is_found():
    rng = np.random.default_rng(0)
    member = coins(rng, 120)
    made = [t + (" kind regards" if m else " yours truly") for t, m in zip(texts(rng, 120), member, strict=True)]
    found = blind_baseline(made, member, np.arange(120), shuffles=199, seed=0)
    assert found.auc > 0.95 and found.p_value == 1 / 200
    assert found.records == 120


@pytest.mark.parametrize("what", ["length", "year"])
def test_other_traces_of_a_bad_split_are_found(what):
    rng = np.random.default_rng(1)
    member = coins(rng, 160)
    made = texts(rng, 160)
    if what == "length":
        made = [t + " " + " ".join(rng.choice(WORDS, 9 if m else 2)) for t, m in zip(made, member, strict=True)]
    else:
        made = [
            f"{t} {rng.integers(2010, 2016) if m else rng.integers(2017, 2023)}"
            for t, m in zip(made, member, strict=True)
        ]
    found = blind_baseline(made, member, np.arange(160), shuffles=199, seed=0)
    assert found.auc > 0.7 and found.p_value < 0.01


def test_a_difference_in_the_direction_of_no_use_is_no_find():
    """Below ½ means that the classifier generalises to nothing: the test is one-sided."""
    rng = np.random.default_rng(2)
    pairs = texts(rng, 40)
    made, member = [t for t in pairs for _ in (0, 1)], np.tile([True, False], 40)
    found = blind_baseline(made, member, np.arange(80), shuffles=99, seed=0)
    assert found.auc < 0.5 and found.p_value > 0.5


def test_p_values_are_uniform_where_there_is_nothing():
    found = []
    for seed in range(100):
        rng = np.random.default_rng(1000 + seed)
        group = np.sort(rng.integers(0, 24, 48))
        group = np.unique(group, return_inverse=True)[1]
        inside = coins(rng, group.max() + 1)
        found.append(blind_baseline(texts(rng, 48), inside[group], group, shuffles=99, seed=seed))
    p_values = [b.p_value for b in found]
    assert kstest(p_values, "uniform").pvalue > 1e-3
    assert np.mean([p <= 0.05 for p in p_values]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 100)
    assert abs(np.mean([b.auc for b in found]) - 0.5) < 0.04


def test_the_predictor_is_kernel_ridge_regression_for_any_labels():
    rng = np.random.default_rng(3)
    kernel, group = _kernel(texts(rng, 60)), np.arange(60) // 2
    hat = _predictors(kernel, group, np.random.default_rng(7))
    codes = np.unique(group)
    order = np.random.default_rng(7).permutation(len(codes))
    fold = np.empty(len(codes), dtype=int)
    fold[order] = np.arange(len(codes)) % 5
    fold = fold[group]
    for _ in range(5):
        labels = coins(rng, 60).astype(float)
        for number in range(5):
            test, train = np.flatnonzero(fold == number), np.flatnonzero(fold != number)
            model = KernelRidge(alpha=1.0, kernel="precomputed")
            model.fit(kernel[np.ix_(train, train)], labels[train] - labels[train].mean())
            np.testing.assert_allclose((hat @ labels)[test], model.predict(kernel[np.ix_(test, train)]), atol=1e-9)


def test_records_of_one_coin_never_teach_each_other():
    rng = np.random.default_rng(4)
    group = rng.integers(0, 15, 60)
    hat = _predictors(_kernel(texts(rng, 60)), group, rng)
    assert (hat[group[:, None] == group[None]] == 0).all()
    assert np.allclose(hat.sum(axis=1), 0)  # equal labels predict nothing


def test_the_seed_decides_and_large_data_is_thinned_by_whole_coins(monkeypatch):
    from sordino.audit import blind

    monkeypatch.setattr(blind, "_MOST_RECORDS", 50)
    rng = np.random.default_rng(5)
    group = np.arange(120) // 3
    member, made = coins(rng, 40)[group], texts(rng, 120)
    found = blind_baseline(made, member, group, shuffles=99, seed=1)
    assert found == blind_baseline(made, member, group, shuffles=99, seed=1)
    assert found.records == 48
