"""Adaptive clipping: the update by hand, what it converges to, and what survives a crash."""

import math

import numpy as np
import pytest
import torch

from sordino.config import DPConfig
from sordino.dp.adaptive import AdaptiveNorm
from sordino.dp.mechanism import Mechanism
from sordino.dp.noise import Noise
from sordino.dp.plan import DPPlan
from sordino.errors import DPError
from sordino.ledger import Journal

BATCH = 40


def mechanism_of(folder, weight, *, batch=BATCH, units=200, steps=400, **more):
    """A mechanism on one weight vector, of which the gradient of a unit is whatever it is multiplied by."""
    settings = DPConfig(noise_multiplier=1.0, clipping="adaptive", **more)
    plan = DPPlan.of(settings, units=units, batch=batch, steps=steps)
    module = torch.nn.Linear(len(weight), 1, bias=False)
    return Mechanism(plan, module, bytes(range(32)), Journal(folder / "steps"))


def clip(mechanism, gradients):
    x = torch.as_tensor(gradients, dtype=torch.float32)
    return mechanism.clip(lambda: mechanism.clipper.module(x)[:, 0], units=len(x))


def test_the_update_is_that_of_the_paper(tmp_path):
    mechanism = mechanism_of(tmp_path, [0.0] * 3, quantile=0.7, clip_norm=2.0)
    plan, noise = mechanism.plan, mechanism.adaptive._noise
    rng, expected = np.random.default_rng(0), 2.0
    for step in range(5):
        mechanism.sample(step)
        gradients = rng.normal(size=(30, 3)) * 2
        for part in (gradients[:11], gradients[11:]):
            clip(mechanism, part)
        assert mechanism.clip_norm == expected  # one norm for all parts of a step
        drawn = torch.zeros(1, dtype=torch.float64)
        noise.add_(drawn, BATCH / 20, step=step, name="count")
        lengths = np.linalg.norm(gradients, axis=1)
        clipped = gradients * np.minimum(1, expected / lengths)[:, None]
        added = []
        mechanism._noise = Recorded(mechanism._noise, added)
        mechanism.release()
        mechanism._noise = mechanism._noise.inner
        [(std, filled)] = added
        assert std == pytest.approx(plan.gradient_noise * expected) and std > expected
        released = mechanism.clipper.module.weight.grad[0].double().numpy()
        np.testing.assert_allclose(released, (clipped.sum(axis=0) + filled[0].numpy()) / BATCH, atol=1e-5)
        share = 0.5 + ((lengths <= expected).sum() - 15 + float(drawn)) / BATCH
        expected *= math.exp(-0.2 * (share - 0.7))
        assert mechanism.clip_norm == pytest.approx(expected, rel=1e-12)
        expected = mechanism.clip_norm


class Recorded:
    def __init__(self, inner, kept):
        self.inner, self.kept = inner, kept

    def add_(self, out, std, **named):
        drawn = torch.zeros_like(out)
        self.inner.add_(drawn, std, **named)
        self.kept.append((std, drawn))
        out.add_(drawn)


@pytest.mark.parametrize(("quantile", "sampler"), [(0.5, "poisson"), (0.9, "fixed-size")])
def test_the_norm_converges_to_the_quantile(tmp_path, quantile, sampler):
    rng = np.random.default_rng(1)
    gradients = rng.normal(size=(200, 4)) * rng.lognormal(1.0, 0.5, size=(200, 1))
    mechanism = mechanism_of(tmp_path, [0.0] * 4, quantile=quantile, sampler=sampler, clip_norm=0.05)
    seen = []
    for step in range(250):
        chosen = mechanism.sample(step)
        if len(chosen):
            clip(mechanism, gradients[chosen])
        mechanism.release()
        seen.append(mechanism.clip_norm)
    lengths = np.linalg.norm(gradients, axis=1)
    assert abs((lengths <= np.median(seen[100:])).mean() - quantile) < 0.07


def test_a_gradient_that_is_no_number_adds_nothing_and_counts_for_nothing(tmp_path):
    plan = mechanism_of(tmp_path, [0.0]).plan
    norms = [[0.5, 3.0], [0.5, 3.0, math.nan, math.inf]]
    moved = []
    for values in norms:
        adaptive = AdaptiveNorm(plan, Noise(bytes(32)))
        adaptive.see(torch.tensor(values), 1.0)
        moved.append(adaptive.moved(1.0, 0))
    assert moved[0] == moved[1]


def test_a_step_that_fails_is_not_counted(tmp_path):
    mechanism = mechanism_of(tmp_path, [0.0] * 2)
    mechanism.sample(0)
    clip(mechanism, [[9.0, 9.0]] * 20)
    with pytest.raises(ZeroDivisionError):
        mechanism.clip(lambda: 1 / 0, units=1)
    assert mechanism.adaptive._count == 0.0


def test_the_norm_is_given_back_between_steps_only(tmp_path):
    mechanism = mechanism_of(tmp_path, [0.0] * 2)
    mechanism.restore(0.3)
    assert mechanism.clip_norm == 0.3
    mechanism.sample(0)
    with pytest.raises(DPError, match="between steps"):
        mechanism.restore(0.4)
    flat = DPPlan.of(DPConfig(noise_multiplier=1.0), units=200, batch=20, steps=4)
    fixed = Mechanism(flat, torch.nn.Linear(2, 1), bytes(32), Journal(tmp_path / "other"))
    fixed.restore(1.0)
    with pytest.raises(DPError, match="Only adaptive clipping"):
        fixed.restore(2.0)


def test_the_norm_stays_within_reason(tmp_path):
    mechanism = mechanism_of(tmp_path, [0.0] * 2, clip_norm=1.0)
    adaptive = mechanism.adaptive
    norm = 1.0
    for step in range(300):
        adaptive._count = 20.0 * BATCH
        norm = adaptive.moved(norm, step)
    assert norm == 1e-6
