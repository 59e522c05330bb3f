"""LiRA and RMIA against numbers of public implementations and of brute force (tests/golden/lira_rmia.json)."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.special import logit

from sordino.attacks.membership.lira import lira
from sordino.attacks.membership.lira_offline import lira_offline
from sordino.attacks.membership.rmia import rmia
from sordino.attacks.membership.rmia_offline import rmia_offline
from sordino.attacks.populations import offline_ratio, online_ratio
from sordino.attacks.shadowed import spread, statistic
from sordino.signals import Known, Shadows, Signals, Statistics

GOLDEN = json.loads((Path(__file__).parent / "lira_rmia.json").read_text())
LIRA, RMIA = GOLDEN["lira"], GOLDEN["rmia"]
SINGLE = LIRA["single_query"]


def signals(nll, shadow_nll, included, known=None) -> Signals:
    """Signals of records of one token each, with losses `nll` (n) here and `shadow_nll` (K, n) under the shadows."""
    nll = np.asarray(nll, dtype=np.float64)
    n, whole = len(nll), np.zeros(len(nll), dtype=np.int32)
    statistics = Statistics(
        offsets=np.arange(n + 1, dtype=np.int64), position=whole, token=whole, logprob=-nll, mean=-nll, variance=-nll,
        rank=whole, top=whole,
    )  # fmt: skip
    names = tuple(map(str, range(n)))
    shadows = Shadows(nll=np.asarray(shadow_nll, dtype=np.float64), included=np.asarray(included, dtype=bool))
    return Signals(record_ids=names, texts=names, statistics=statistics, shadows=shadows, known=known)


def tables(case):
    """φ (K, n) of a case with the same number of shadows in for every record or not, and which of them count."""
    inside, outside = ([[q[0] for q in row] for row in case[name]] for name in ("stat_in", "stat_out"))
    k = max(map(len, inside)) + max(map(len, outside))
    phi, is_in, is_out = np.zeros((k, len(inside))), *(np.zeros((k, len(inside)), dtype=bool) for _ in range(2))
    for record, (a, b) in enumerate(zip(inside, outside, strict=True)):
        phi[: len(a) + len(b), record] = [*a, *b]
        is_in[: len(a), record] = True
        is_out[len(a) : len(a) + len(b), record] = True
    return phi, is_in, is_out


@pytest.mark.parametrize("case", ["single_query", "one_example_without_in_models"])
@pytest.mark.parametrize("fixed", [False, True])
def test_lira_online_is_the_reference(case, fixed):
    data = LIRA[case]
    phi, is_in, is_out = tables(data)
    target = np.array([q[0] for q in data["stat_target"]])
    scores = np.zeros(len(target))
    for sign, side in ((1, is_in), (-1, is_out)):
        mean, deviation = spread(phi, side, fixed)
        scores += sign * (-(((target - mean) / deviation) ** 2) / 2 - np.log(deviation))
    wanted = np.array(data["compute_score_lira"][f"both|fix_variance={fixed}|mean"]["normalised"], dtype=float)
    told = is_in.any(axis=0)
    # Of a record without shadows on one side the producer also averages the deviations of the others; we pool them.
    np.testing.assert_allclose(scores[told], wanted[told], atol=1e-9)
    assert np.isfinite(scores).all()


def test_the_attack_is_that_formula():
    phi, is_in, is_out = tables(SINGLE)
    every = is_in | is_out
    assert every.all() or (every.sum(axis=0) > 0).all()
    target = np.array([q[0] for q in SINGLE["stat_target"]])
    whole = every.all(axis=1)
    made = signals(-target, -phi[whole], is_in[whole])
    found = lira(made, kind="loss", variance="own")
    expected = np.zeros(len(target))
    for sign, side in ((1, True), (-1, False)):
        for record in range(len(target)):
            mine = phi[whole][is_in[whole][:, record] == side, record]
            sigma = mine.std()
            expected[record] += sign * (-0.5 * ((target[record] - mine.mean()) / sigma) ** 2 - np.log(sigma))
    np.testing.assert_allclose(found, expected, atol=1e-9)


@pytest.mark.parametrize("pooled", [False, True])
def test_lira_offline_is_the_paper(pooled):
    phi, _, is_out = tables(SINGLE)
    golden = SINGLE["one_sided_offline"]["pooled_sigma" if pooled else "per_example_sigma"]
    target = np.array([q[0] for q in SINGLE["stat_target"]])
    mean, deviation = spread(phi, is_out, pooled)
    np.testing.assert_allclose((target - mean) / deviation, golden["z"], atol=1e-9)
    if pooled:
        np.testing.assert_allclose(deviation, golden["sigma"], atol=1e-9)
    # A shadow that counts on neither side would be one that was trained on the record.
    made = signals(-target, -np.where(is_out, phi, 99.0), ~is_out)
    found = lira_offline(made, kind="loss", variance="pooled" if pooled else "own")
    np.testing.assert_allclose(1 - np.exp(-found), golden["cdf"], atol=1e-9)
    if not pooled:
        np.testing.assert_allclose(-found, golden["log_one_minus_cdf"], atol=1e-9)


def test_the_statistic_is_the_logit_of_the_geometric_mean_probability():
    nll = np.array([1e-9, 0.01, 0.5, 2.0, 30.0, 700.0])
    np.testing.assert_allclose(statistic(nll, "logit")[1:5], logit(np.exp(-nll))[1:5], rtol=1e-9)
    assert (np.diff(statistic(nll, "logit")) < 0).all()
    assert np.isfinite(statistic(np.array([0.0, 1e4]), "logit")).all()
    np.testing.assert_array_equal(statistic(nll, "loss"), -nll)


def population(golden) -> Signals:
    """The golden inputs of RMIA: records and, known not to be trained on, a population."""
    p = RMIA["inputs"]
    z = signals(
        -np.log(p["population_target_signals"]),
        -np.log(np.array(p["population_reference_signals"]).T),
        np.zeros(np.array(p["population_reference_signals"]).T.shape),
    )
    known = Known(signals=z, member=np.zeros(len(z), dtype=bool))
    return signals(
        -np.log(p["target_signals"]), -np.log(np.array(p["reference_signals"]).T),
        np.array(p["reference_membership"]).T, known,
    )  # fmt: skip


@pytest.mark.parametrize("gamma", ["1", "1.5", "2"])
@pytest.mark.parametrize("a", ["0", "0.3", "0.6", "1"])
def test_rmia_offline_is_the_definition(a, gamma):
    made, golden = population(RMIA), RMIA["offline"][f"offline_a={a}"]["balanced_shadows_definition"]
    np.testing.assert_allclose(offline_ratio(made, float(a)), golden["w_x"], rtol=1e-9)
    np.testing.assert_allclose(offline_ratio(made.known.signals, float(a)), golden["w_z"], rtol=1e-9)
    np.testing.assert_allclose(rmia_offline(made, gamma=float(gamma), a=float(a)), golden[f"gamma={gamma}"], atol=1e-12)


@pytest.mark.parametrize("a", ["0", "0.3", "0.6", "1"])
def test_rmia_offline_is_the_reference_where_all_shadows_leave_a_record_out(a):
    made = population(RMIA)
    out = Shadows(nll=made.shadows.nll, included=np.zeros_like(made.shadows.included))
    golden = RMIA["offline"][f"offline_a={a}"]["all_references_out"]["reference"]
    np.testing.assert_allclose(rmia_offline(replace(made, shadows=out), gamma=1.0, a=float(a)), golden, atol=1e-12)


@pytest.mark.parametrize("gamma", ["1", "1.5", "2"])
def test_rmia_online_is_the_definition(gamma):
    made, golden = population(RMIA), RMIA["online"]
    np.testing.assert_allclose(online_ratio(made), golden["w_x"], rtol=1e-9)
    np.testing.assert_allclose(online_ratio(made.known.signals), golden["w_z"], rtol=1e-9)
    np.testing.assert_allclose(rmia(made, gamma=float(gamma)), golden["definition"][f"gamma={gamma}"], atol=1e-12)
    np.testing.assert_allclose(rmia(made, gamma=1.0), golden["reference"], atol=1e-12)
