"""The plan: what follows from a target, and what is refused."""

import math
from dataclasses import replace

import dp_accounting
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis
from hypothesis import strategies as st

from sordino.config import DPConfig, load
from sordino.dp.accounting import (
    composed,
    decode_event,
    fixed_size_gaussian,
    poisson_gaussian,
    shuffled_gaussian,
    spend,
)
from sordino.dp.plan import DPPlan, steps_of
from sordino.dp.sampling import FixedSize, Shuffled
from sordino.errors import ConfigError

SIZES = {"units": 1000, "batch": 50, "steps": 100}


def test_a_target_is_met_and_hardly_undercut():
    plan = DPPlan.of(DPConfig(epsilon=3.0), **SIZES)
    assert 3.0 * 0.999 < plan.spent.epsilon <= 3.0
    assert plan.delta == pytest.approx(1000**-1.1) and plan.rate == 0.05
    assert plan.cap == math.ceil(50 + 5 * math.sqrt(1000 * 0.05 * 0.95))


def test_the_event_is_that_of_what_is_sampled():
    plan = DPPlan.of(DPConfig(noise_multiplier=1.1, delta=1e-5), **SIZES)
    event = poisson_gaussian(plan.rate, 1.1, 100, units=1000, cap=plan.cap)
    assert plan.spent == spend(event, delta=1e-5, relation="add-or-remove-one")
    # The cut is accounted for, and costs next to nothing.
    assert plan.spent.epsilon == pytest.approx(
        spend(
            poisson_gaussian(plan.rate, 1.1, 100, units=1000, cap=None), delta=1e-5, relation="add-or-remove-one"
        ).epsilon,
        abs=1e-2,
    )


def test_one_for_another_costs_more():
    weak = DPPlan.of(DPConfig(noise_multiplier=1.1), **SIZES)
    strong = DPPlan.of(DPConfig(noise_multiplier=1.1, relation="replace-one"), **SIZES)
    assert strong.spent.epsilon > weak.spent.epsilon


@pytest.mark.parametrize("relation", ["add-or-remove-one", "replace-one"])
def test_batches_of_fixed_size_are_accounted_and_drawn_as_such(relation):
    plan = DPPlan.of(DPConfig(epsilon=8.0, sampler="fixed-size", relation=relation), **SIZES)
    event = fixed_size_gaussian(plan.noise_multiplier, 100, units=1000, batch=50)
    assert plan.event() == event and 7.99 < plan.spent.epsilon <= 8.0
    assert isinstance(plan.sampler(bytes(32)), FixedSize) and plan.cap == len(plan.sampler(bytes(32)).batch(3)) == 50
    assert plan.noise_multiplier > DPPlan.of(DPConfig(epsilon=8.0, relation=relation), **SIZES).noise_multiplier
    assert plan.described()["sampling"] == "fixed size, exactly 50 without replacement"


def test_an_epoch_of_shuffled_batches_that_was_begun_counts_as_a_whole():
    settings = DPConfig(noise_multiplier=4.0, sampler="shuffled", relation="replace-one")
    plan = DPPlan.of(settings, units=1010, batch=50, steps=steps_of(1010, 50, 3))
    assert plan.steps == 63 and plan.steps_per_event == 21 and isinstance(plan.sampler(bytes(32)), Shuffled)
    assert plan.event() == shuffled_gaussian(4.0, 3, relation="replace-one")
    assert plan.event(22) == plan.event(42) == shuffled_gaussian(4.0, 2, relation="replace-one")
    kept = plan.recorded()
    assert kept["steps_per_event"] == 21 and decode_event(kept["event"]) == plan.event(1) == plan.event(21)
    assert "shuffled, 21 batches an epoch, no amplification" in plan.described()["sampling"]
    assert "50 a step, shuffled" in plan.sentence()
    with pytest.raises(ConfigError, match="no accountant"):
        replace(plan, settings=replace(settings, relation="add-or-remove-one"))


@given(z=st.floats(0.3, 20.0), batch=st.integers(8, 2000))
@hypothesis(max_examples=20, deadline=None)
def test_noisy_counts_and_gradients_are_together_one_gaussian_mechanism(z, batch):
    if z >= 0.999 * batch / 10:
        return
    settings = DPConfig(noise_multiplier=z, clipping="adaptive")
    plan = DPPlan(settings=settings, units=4000, batch=batch, steps=1, delta=1e-6, noise_multiplier=z)
    assert plan.gradient_noise > z
    # A unit is worth 1 on gradients over C and ½ on the count: two Gaussian mechanisms, composed.
    parts = [dp_accounting.GaussianDpEvent(plan.gradient_noise), dp_accounting.GaussianDpEvent(2 * plan.count_noise)]
    both = spend(composed(parts), delta=1e-6, relation="replace-one")
    one = spend(dp_accounting.GaussianDpEvent(z), delta=1e-6, relation="replace-one")
    assert both.epsilon == pytest.approx(one.epsilon, rel=1e-3, abs=1e-3)


def test_adaptive_clipping_costs_the_same_and_says_what_it_adds():
    plain, plan = (DPPlan.of(DPConfig(epsilon=8.0, clipping=kind), **SIZES) for kind in ("flat", "adaptive"))
    assert plan.noise_multiplier == plain.noise_multiplier and plan.event() == plain.event()
    assert plan.gradient_noise > plain.gradient_noise == plain.noise_multiplier
    assert plan.described()["clipping"].startswith("adaptive, quantile 0.5, first norm 1, noise 0.")
    assert plan.recorded()["count_noise"] == plan.count_noise == 2.5 and "count_noise" not in plain.recorded()
    with pytest.raises(ConfigError, match="noisy count of adaptive clipping alone"):
        DPPlan.of(DPConfig(noise_multiplier=1.0, clipping="adaptive"), units=1000, batch=8, steps=100)


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ConfigError, match="only 20 units"):
        DPPlan.of(DPConfig(epsilon=8.0), units=20, batch=50, steps=10)
    with pytest.raises(ConfigError, match="publishing one of them whole"):
        DPPlan.of(DPConfig(epsilon=8.0, delta=0.01), **SIZES)
    for settings in (DPConfig(), DPConfig(epsilon=8.0, noise_multiplier=1.0)):
        with pytest.raises(ConfigError, match="Under differential privacy"):
            DPPlan.of(settings, **SIZES)
    with pytest.raises(ConfigError, match="too few"):
        DPPlan.of(DPConfig(epsilon=8.0), units=1, batch=1, steps=10)


def test_everything_that_makes_a_claim_is_told():
    plan = DPPlan.of(DPConfig(epsilon=8.0, unit="cluster"), **SIZES)
    told = plan.described()
    assert told["epsilon"] <= 8 and told["protected unit"] == "cluster" and "dp-accounting" in told["accountant"]
    assert told["sampling"] == f"Poisson, rate 0.05, at most {plan.cap}"
    assert "for each of 1,000 units (cluster, add-or-remove-one) after 100 steps" in plan.sentence()
    epsilons, deltas = zip(*plan.curve(), strict=True)
    assert list(epsilons) == sorted(epsilons) and list(deltas) == sorted(deltas, reverse=True)
    assert plan.recorded() != replace(plan, noise_multiplier=plan.noise_multiplier + 0.1).recorded()


def test_steps_show_every_unit_as_often_as_epochs_say():
    assert steps_of(1000, 50, 3) == 60 and steps_of(1001, 50, 3) == 63


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"dp": {}}, "neither dp.epsilon nor dp.noise_multiplier"),
        ({"dp": {"epsilon": 8, "noise_multiplier": 1.0}}, "both are set"),
        ({"dp": {"epsilon": 0}}, "dp.epsilon is 0"),
        ({"dp": {"noise_multiplier": 0.0}}, "dp.noise_multiplier is 0"),
        ({"dp": {"epsilon": 8, "delta": 1.0}}, "dp.delta is 1"),
        ({"dp": {"epsilon": 8, "clip_norm": 0}}, "dp.clip_norm is 0"),
        ({"dp": {"epsilon": 8, "unit": "person"}}, "dp.unit is 'person'"),
        ({"dp": {"epsilon": 8, "sampler": "random-allocation"}}, "dp.sampler is 'random-allocation'.* poisson"),
        ({"dp": {"epsilon": 8, "sampler": "shuffled"}}, "no accountant knows under dp.relation add-or-remove-one"),
        ({"dp": {"epsilon": 8, "clipping": "adaptive", "quantile": 1}}, "dp.quantile is 1"),
        ({"dp": {"epsilon": 8, "quantile": 0.9}}, "dp.clipping flat has no use for it"),
        ({"dp": {"epsilon": 8}, "train": {"select": "best"}}, "read off private losses"),
    ],
)
def test_configurations_that_promise_nothing_are_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load(values={"data": {"path": "a.jsonl"}, **values}, environment={})


def test_the_loop_in_the_documentation_runs(tmp_path, capsys):
    import re
    from pathlib import Path

    import torch

    text = (Path(__file__).parents[2] / "docs" / "differential-privacy.md").read_text(encoding="utf-8")
    [block] = re.findall(r"```python\n(.*?)```", text, re.S)
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    data = [torch.randn(3) for _ in range(200)]

    def losses(model, sampled):
        x = torch.stack(sampled)
        return (model(x)[:, 0] - x.sum(dim=1)).square()

    before = losses(model, data).mean().item()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    exec(block, {"data": data, "model": model, "losses": losses, "optimizer": optimizer, "folder": tmp_path})
    assert losses(model, data).mean().item() < 0.8 * before
    assert "differentially private: ε = 8 at" in capsys.readouterr().out
