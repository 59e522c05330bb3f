"""What an attacker measures of ε, against the claim: the one-run audit of the real mechanism, over many seeds.

Each canary has a direction of its own, in which no other unit ever moves anything: the attacker's best case. Its
score is how far the released gradients went that way, summed over all steps (Steinke, Nasr and Jagielski 2023,
section 5). The bound is declared here, before anything is trained: one-run, a fifth of the coins, 95 %.
"""

import math

import numpy as np
import pytest
import torch
from torch import nn

from sordino.config import DPConfig
from sordino.dp.mechanism import Mechanism
from sordino.dp.plan import DPPlan
from sordino.ledger import Journal
from sordino.stats import epsilon_one_run, one_run_guesses

CANARIES, SHARE, CONFIDENCE = 3000, 0.2, 0.95


def plan_for(epsilon: float, steps: int = 3) -> DPPlan:
    settings = DPConfig(epsilon=epsilon, delta=1e-6, clip_norm=0.5)
    return DPPlan.of(settings, units=CANARIES, batch=CANARIES // 2, steps=steps)


class Silent(Mechanism):
    """No noise."""

    def release(self):
        self._noise.add_ = lambda out, std, **_: None
        super().release()


class Whispering(Mechanism):
    """A quarter of the noise that the plan says."""

    def release(self):
        add = type(self._noise).add_
        self._noise.add_ = lambda out, std, **named: add(self._noise, out, std / 4, **named)
        super().release()


def lower_bound(plan: DPPlan, seed: int, folder, build=Mechanism) -> float:
    """What one run lets an attacker conclude about ε; a canary that is left out is a unit without a gradient."""
    member = np.random.default_rng(seed).random(CANARIES) < 0.5
    model = nn.Embedding(CANARIES, 1)
    counted = torch.tensor(member, dtype=torch.float32)
    # Some gradients are far longer than the clip norm, some just so.
    sizes = torch.logspace(0, 4, CANARIES)[torch.randperm(CANARIES, generator=torch.Generator().manual_seed(seed))]
    mechanism = build(plan, model, seed.to_bytes(32, "little"), Journal(folder / f"{build.__name__}{seed}"))
    scores = torch.zeros(CANARIES)
    for step in range(plan.steps):
        units = torch.from_numpy(mechanism.sample(step))
        mechanism.clip(
            lambda units=units: model(units[:, None]).sum((1, 2)) * (sizes * counted)[units], units=len(units)
        )
        mechanism.release()
        scores += model.weight.grad[:, 0] * plan.batch
    guesses, right = one_run_guesses(scores.double().numpy(), member, SHARE)
    return epsilon_one_run(CANARIES, guesses, right, plan.delta, CONFIDENCE)


def exceeding(plan: DPPlan, seeds: range, folder) -> tuple[int, float, float]:
    """In how many runs the bound is above the claim, how many may be by chance, and the mean bound."""
    bounds = [lower_bound(plan, seed, folder) for seed in seeds]
    claim, chance = plan.spent.epsilon, 1 - CONFIDENCE
    allowed = len(bounds) * chance + 2 * math.sqrt(len(bounds) * chance * (1 - chance))
    return sum(bound > claim for bound in bounds), allowed, float(np.mean(bounds))


def test_what_is_measured_stays_below_what_is_claimed(tmp_path):
    plan = plan_for(1.0)
    above, allowed, mean = exceeding(plan, range(40), tmp_path)
    assert above <= allowed
    # The attacker is no dummy; at a δ of 1e-6, Gaussian noise gives less than the claim away.
    assert mean > 0.15 * plan.spent.epsilon


@pytest.mark.parametrize(("broken", "times"), [(Silent, 2.0), (Whispering, 1.1)])
def test_too_little_noise_is_seen(tmp_path, broken, times):
    plan = plan_for(1.0)
    bounds = [lower_bound(plan, seed, tmp_path, broken) for seed in range(5)]
    assert min(bounds) > times * plan.spent.epsilon


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "steps"), [(0.3, 1), (1.0, 4), (2.0, 20), (4.0, 4)])
def test_the_same_over_many_more_runs(tmp_path, epsilon, steps):
    above, allowed, _ = exceeding(plan_for(epsilon, steps), range(1000, 1300), tmp_path)
    assert above <= allowed
