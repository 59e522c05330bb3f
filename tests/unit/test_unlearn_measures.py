"""Metrics of stored scores, against loops over pairs and draws; nothing of it needs torch."""

import math
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import t as student

from sordino.errors import UnlearningError
from sordino.results import Scores
from sordino.unlearn.measuring.measures import attack_scores, auc_against, leak_against, mean_of, metrics_of


def columns(rng, records, subjects, mean, *, first=0):
    return {
        "subject": tuple(float(first + i % subjects) for i in range(records)),
        "loss": tuple(rng.normal(mean, 0.5, records)),
        "base_loss": tuple(rng.normal(3.0, 0.5, records)),
        "tokens": (10.0,) * records,
        "extraction_strength": tuple(rng.uniform(size=records)),
        "exact_memorisation": tuple(rng.uniform(size=records)),
        "rouge_l": tuple(rng.uniform(size=records)),
    }


def some_scores(forget=1.5, seed=0):
    rng = np.random.default_rng(seed)
    return Scores(
        model="m", forget=columns(rng, 30, 6, forget), never=columns(rng, 40, 8, 2.0, first=6),
        retain=columns(rng, 20, 5, 1.0, first=14), validation=columns(rng, 10, 10, 2.0, first=19),
    )  # fmt: skip


@pytest.mark.parametrize("attack", ["loss", "calibrated"])
def test_auc_counts_pairs_and_treats_a_subject_as_one_observation(attack):
    scores = some_scores()
    a, b = (attack_scores(s, "forget", attack) for s in (scores.forget, scores.never))
    brute = np.mean([(x > y) + (x == y) / 2 for x in a for y in b])
    found = auc_against(scores, attack=attack)
    assert found.value == pytest.approx(brute)
    assert found.n == 14  # subjects, not records
    own = {**scores.forget, "subject": tuple(range(30))}, {**scores.never, "subject": tuple(range(30, 70))}
    assert auc_against(replace(scores, forget=own[0], never=own[1]), attack=attack).n == 70
    low = [x - y for x, y in zip(scores.forget["base_loss"], scores.forget["loss"], strict=True)]
    np.testing.assert_allclose(attack_scores(scores.forget, "forget", "calibrated"), low)


def test_means_are_clustered_by_subject():
    scores = some_scores()
    losses, subject = np.array(scores.forget["loss"]), np.array(scores.forget["subject"])
    means = np.array([losses[subject == s].mean() for s in range(6)])  # as many records each
    reach = student.ppf(0.975, 5) * means.std(ddof=1) / math.sqrt(6)
    found = mean_of(scores, "forget", "loss")
    assert (found.value, found.low, found.high) == pytest.approx(
        (losses.mean(), means.mean() - reach, means.mean() + reach)
    )
    assert mean_of(scores, "retain", "probability").value == pytest.approx(
        np.exp(-np.array(scores.retain["loss"])).mean()
    )


def test_a_leak_is_against_the_retrained_model_on_the_same_records():
    ours, theirs = some_scores(0.8), some_scores(2.0)
    auc, reference = auc_against(ours).value, auc_against(theirs).value
    found = leak_against(ours, theirs)
    assert found.value == pytest.approx(((1 - auc) - (1 - reference)) / (1 - reference) * 100)
    assert found.low < found.value < found.high < 0  # still known
    same = leak_against(theirs, theirs)
    assert (same.value, same.low, same.high) == (0, 0, 0)  # the draws are shared
    parted = replace(theirs, forget={**theirs.forget, "loss": (-9.0,) * 30})
    assert leak_against(ours, parted).value is None
    with pytest.raises(UnlearningError, match="different records to forget: 30 and 29"):
        leak_against(ours, replace(theirs, forget={k: v[1:] for k, v in theirs.forget.items()}))


def test_a_leaks_interval_covers_the_spread_over_new_samples():
    truth = [leak_against(some_scores(1.7, seed), some_scores(2.0, seed + 500)).value for seed in range(60)]
    spread = np.std(truth)
    widths = []
    for seed in range(5):
        found = leak_against(some_scores(1.7, seed), some_scores(2.0, seed + 500))
        widths.append((found.high - found.low) / 3.92)
    assert 0.6 * spread < np.mean(widths) < 1.6 * spread


def test_all_metrics_by_name_and_none_that_was_not_measured():
    scores = some_scores()
    found = metrics_of(scores, some_scores(2.0))
    plain = {"loss", "probability", "extraction_strength", "exact_memorisation", "rouge_l"}
    others = {f"{name}_{metric}" for name in ("never", "retain", "validation") for metric in plain}
    assert set(found) == plain | others | {"auc", "auc_calibrated", "priv_leak"}
    silent = replace(scores, never={}, forget={k: v for k, v in scores.forget.items() if k != "rouge_l"})
    left = metrics_of(silent)
    assert "rouge_l" not in left and "auc" not in left and "never_loss" not in left and "retain_rouge_l" in left


def test_missing_and_broken_scores_are_no_evidence():
    scores = some_scores()
    with pytest.raises(UnlearningError, match="no score 'loss' of records of the set 'never'"):
        auc_against(replace(scores, never={}))
    broken = replace(scores, forget={**scores.forget, "loss": (float("nan"), *scores.forget["loss"][1:])})
    with pytest.raises(UnlearningError, match="1 of 30 scores 'loss' of 'forget' are not numbers"):
        metrics_of(broken)


def test_no_torch():
    code = (
        "import sys, sordino.unlearn.measuring.measures; assert not {'torch', 'transformers', 'peft'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
