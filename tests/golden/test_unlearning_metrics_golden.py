"""Metrics of unlearning against those of the reference implementation, executed on small given losses."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from sordino.errors import AuditError
from sordino.unlearn.measuring.metrics import (
    choice_probability,
    exact_memorisation,
    extraction_strength,
    forget_quality,
    model_utility,
    priv_leak,
    probability,
    truth_ratio,
    truth_ratio_mean,
)

GOLDEN = json.loads((Path(__file__).parent / "unlearning_losses.json").read_text())
EXTRA, METRICS = GOLDEN["extra_metrics"], GOLDEN["metrics"]
TRUE, FALSE = (np.array(EXTRA["inputs"][name]) for name in ("correct_avg_loss", "wrong_avg_loss"))


def test_truth_ratios_in_three_definitions():
    ratios = truth_ratio(TRUE, FALSE)
    np.testing.assert_allclose(ratios, EXTRA["truth_ratio_true_better"]["scores"], rtol=1e-9)
    for definition, name in (
        ("closer to 1", "closer_to_1_better"),
        ("true better", "true_better"),
        ("share", "prob_mean"),
    ):
        assert truth_ratio_mean(ratios, definition) == pytest.approx(
            EXTRA[f"truth_ratio_{name}"]["agg_value"], rel=1e-8
        )
    assert np.isnan(truth_ratio_mean(ratios[:0], "share"))


def test_probabilities_among_options():
    found = choice_probability(TRUE, FALSE)
    np.testing.assert_allclose(found, EXTRA["probability_w_options"]["probs"], rtol=1e-8)


def test_probabilities_memorisation_and_extraction_strength_of_logits():
    z = torch.tensor(GOLDEN["policy_logits"], dtype=torch.float64)
    labels = torch.tensor(GOLDEN["labels"])
    for i in range(len(labels)):
        scored = labels[i, 1:] != -100
        log_p, index = z[i, :-1].log_softmax(-1)[scored], labels[i, 1:][scored]
        loss = -log_p.gather(1, index[:, None]).mean().item()
        assert loss == pytest.approx(METRICS["probability"][i]["avg_loss"], rel=1e-9)
        assert probability(np.array([loss]))[0] == pytest.approx(METRICS["probability"][i]["prob"], rel=1e-9)
        hit = (log_p.argmax(1) == index).numpy()[:-1]  # the producer leaves out the last one, taken for an end token
        assert len(hit) == METRICS["n_tokens_scored(last label dropped)"][i]
        assert exact_memorisation(hit) == pytest.approx(METRICS["exact_memorization"][i], abs=1e-6)
        assert extraction_strength(hit) == pytest.approx(METRICS["extraction_strength_corrected"][i], abs=1e-12)


@pytest.mark.parametrize("hit", [np.array(bits, dtype=bool) for bits in np.ndindex(2, 2, 2, 2)])
def test_extraction_strength_is_the_longest_tail_that_comes_by_itself(hit):
    tails = [k for k in range(len(hit) + 1) if hit[k:].all()]
    assert extraction_strength(hit) == 1 - min(tails) / len(hit)


def test_forget_quality_says_what_so_few_records_can_show():
    ks = EXTRA["ks_test"]
    found = forget_quality(np.array(ks["forget_scores"]), np.array(ks["retain_scores"]))
    assert found.p_value == pytest.approx(ks["p_value"], rel=1e-6)
    assert found.statistic == pytest.approx(ks["statistic"], rel=1e-9)
    assert forget_quality(np.zeros(3), np.ones(3)).smallest == pytest.approx(0.1)
    with pytest.raises(AuditError, match="0 truth ratios are to be compared with 3"):
        forget_quality(np.empty(0), np.ones(3))


def test_leaks_against_a_retrained_model():
    for case in EXTRA["privleak"]:
        assert priv_leak(case["forget_auc"], case["retain_auc"]) == pytest.approx(case["privleak"], rel=1e-6)
    assert np.isnan(priv_leak(0.5, 1.0))


def test_utility_is_a_harmonic_mean_and_never_of_missing_figures():
    assert model_utility(EXTRA["hm_aggregate"]["values"]) == pytest.approx(EXTRA["hm_aggregate"]["harmonic_mean"])
    assert model_utility([0.5, 0.0]) == 0
    for figures in ([], [0.5, float("nan")], [0.5, -0.1]):
        with pytest.raises(AuditError, match="utility of a model cannot be had"):
            model_utility(figures)
