"""Private adapters trained together: clipped sums against one unit at a time, runs against private runs alone."""

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from train_fixtures import fresh, new_run, some_tokens

from sordino.config import DPConfig, MethodConfig, TrainConfig
from sordino.dp.mechanism import Mechanism
from sordino.dp.plan import DPPlan
from sordino.errors import ConfigError, DPError
from sordino.ledger import Journal
from sordino.model import attach
from sordino.train import joint_private, stacked
from sordino.train.adapters import Adapters
from sordino.train.dropout import set_dropout
from sordino.train.joint import JointOptions, train_joint
from sordino.train.joint_batches import Corpus, passes
from sordino.train.joint_private import JointPrivacy, PrivatePart
from sordino.train.loop import train
from sordino.train.objective import Objective
from sordino.train.private import PrivateSteps

LORA = MethodConfig(rank=4, alpha=8.0)
SEEDS = (3, 8)
SLOW = pytest.mark.slow


def part(k, units, members=None, *, steps=3, **settings):
    values = {"noise_multiplier": 0.7, "clip_norm": 0.5} | settings
    plan = DPPlan.of(DPConfig(**values), units=units, batch=3, steps=steps)
    return PrivatePart(plan=plan, secret=bytes([k + 1]) * 32, members=members or [[i] for i in range(units)])


def double(make_model, shape="llama"):
    model = make_model(shape)
    model.module.double()
    set_dropout(model.module, 0.0)
    return model


def scattered(adapters, size=0.1):
    generator = torch.Generator().manual_seed(1)
    adapters.flat.copy_(size * torch.randn(adapters.flat.shape, generator=generator))
    return adapters


def one_at_a_time(adapters, k, units, tokens, *, bound, kind):
    """Σ of the clipped gradients of `units` by autograd through the adapter in PEFT, each unit alone."""
    with adapters.wrapped(k) as tuned:
        tuned.module.eval()
        names = {n.replace(".default", ""): p for n, p in tuned.module.named_parameters() if p.requires_grad}
        total, norms = {n: torch.zeros_like(p) for n, p in names.items()}, []
        for unit in units:
            losses, count = [], 0
            for i in unit:
                ids = torch.from_numpy(tokens[i].ids.astype(np.int64))
                keep = torch.from_numpy(tokens[i].target[1:])
                logits = tuned.module(input_ids=ids[None]).logits[0, :-1]
                losses.append(cross_entropy(logits[keep], ids[1:][keep], reduction="sum"))
                count += int(keep.sum())
            grads = torch.autograd.grad(sum(losses) / count, list(names.values()))
            norm = torch.cat([g.flatten() for g in grads]).norm()
            factor = bound / (norm + 0.01) if kind == "automatic" else min(1.0, bound / float(norm))
            for name, g in zip(names, grads, strict=True):
                total[name] += factor * g
            norms.append(float(norm))
    return total, norms


@pytest.mark.parametrize(
    "family", ["llama", "gpt2", "opt", *(pytest.param(f, marks=SLOW) for f in ("gpt_neox", "gemma"))]
)
@pytest.mark.parametrize("kind", ["flat", "automatic"])
def test_clipped_sums_are_those_of_one_unit_at_a_time(family, kind, make_model):
    model, tokens = double(make_model, family), some_tokens(12, prompt=True)
    adapters = scattered(Adapters(model, LORA, SEEDS))
    # Units of one, two and three records; adapters with unequal numbers of units.
    units = {0: [[0], [1, 2], [3, 4, 5], [6]], 1: [[2, 7], [8]]}
    privacy = JointPrivacy(adapters, [part(k, 12, clipping=kind) for k in range(2)])
    corpus, objective = Corpus(tokens, 2, model.device), Objective(model)
    for limit in (1 << 20, 90):
        adapters.grads.zero_()
        with adapters.attached():
            for one in passes(units, corpus.lengths, limit=limit, spare=1 << 20):
                batch, owner = corpus.batch(one.rows.ravel(), one.width)
                grads = privacy.room(len(one.chosen) * one.rows.shape[1])
                adapters.select(one.chosen, one.rows.size, one.width, grads=grads)
                nll = cross_entropy(objective.scores(batch), batch.wanted, reduction="none")
                (nll * torch.from_numpy(privacy.weights(one, corpus.targets)[owner])).sum().backward()
                privacy.add(one.chosen, grads)
        for k, own in units.items():
            total, norms = one_at_a_time(adapters, k, own, tokens, bound=0.5, kind=kind)
            assert max(norms) > 0.5
            for layer in adapters.layers:
                for letter, found in zip("AB", layer.factors(adapters.grads[k : k + 1]), strict=True):
                    # Shares of a unit's mean are float32, as in a private training alone.
                    assert (found[0] - total[f"{layer.name}.lora_{letter}.weight"]).abs().max() <= 1e-6


def alone(folder, model, tokens, config, seed, own):
    tuned = attach(fresh(model), LORA, seed)
    run = new_run(folder, f"s{seed}")
    mechanism = Mechanism(own.plan, tuned.module, own.secret, Journal(run.private / "steps"))
    train(run, tuned, (tokens, []), config, seed=seed, private=PrivateSteps(tuned, tokens, own.members, mechanism))
    return {n.replace(".default", ""): p.detach() for n, p in tuned.module.named_parameters() if ".lora_" in n}


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"clipping": "automatic"},
        *(pytest.param(m, marks=SLOW) for m in ({"loss": "sum"}, {"sampler": "fixed-size"})),
    ],
)
def test_a_private_run_together_is_the_private_run_alone(more, make_model, tmp_path):
    model, tokens = double(make_model), some_tokens(20)
    # The first in units of one, two or more records than may stand for one; the second record by record.
    shares = [list(range(14)), list(range(6, 20))]
    members = [[0], [1, 2], [3, 4, 5, 6, 7], [8], [9, 10], [11], [12, 13]]
    parts = [part(0, 7, members, steps=4, records_per_unit=3, **more), part(1, 14, steps=6, **more)]
    adapters = Adapters(model, LORA, SEEDS)
    # Ten times the usual rate; AdamW makes steps of the whole rate out of rounding where a gradient has vanished.
    config = TrainConfig(epochs=1, batch_size=3, learning_rate=2e-3)
    result = train_joint(tmp_path / "joint", adapters, tokens, shares, config, private=parts)
    assert result.steps == (4, 6)
    for k, own in enumerate(parts):
        wanted = alone(tmp_path, model, [tokens[i] for i in shares[k]], config, SEEDS[k], own)
        state = adapters.state(k)
        assert max(float((state[n] - wanted[n]).abs().max()) for n in state) <= 1e-6


def test_a_killed_private_training_goes_on_bit_for_bit(make_model, tmp_path):
    model, tokens = make_model("llama"), some_tokens(20)
    config = TrainConfig(epochs=1, batch_size=3, learning_rate=0.01, checkpoint_every=2)
    parts = [part(0, 20, steps=5), part(1, 20, steps=7)]

    def run(folder, stop=None):
        def monitor(progress, steps):
            if progress.step == stop:
                raise KeyboardInterrupt

        adapters = Adapters(model, LORA, SEEDS)
        train_joint(folder, adapters, tokens, [range(20)] * 2, config, private=parts, monitor=monitor)
        return adapters.flat

    wanted = run(tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", 3)
    assert torch.equal(run(tmp_path / "cut"), wanted)


def test_few_units_at_once_and_an_empty_batch(make_model, tmp_path, monkeypatch):
    model, tokens = double(make_model), some_tokens(20)
    parts = [part(k, 20, steps=4) for k in range(2)]
    monkeypatch.setattr(parts[0].plan.sampler(b"x" * 32).__class__, "batch", lambda self, step: np.arange(step * 2))
    config, found = TrainConfig(epochs=1, batch_size=3, learning_rate=2e-3), []
    for most in (None, 1):
        if most:
            monkeypatch.setattr(joint_private, "_BYTES", 1)
        adapters = Adapters(model, LORA, SEEDS)
        train_joint(tmp_path / str(most), adapters, tokens, [range(20)] * 2, config, private=parts,
                    options=JointOptions(trunk="off"))  # fmt: skip
        found.append(adapters.flat)
    assert (found[0] - found[1]).abs().max() <= 1e-6


def test_noise_of_adapters_is_independent_and_as_large_as_planned(make_model):
    adapters = Adapters(make_model("llama"), MethodConfig(rank=16), SEEDS)
    privacy = JointPrivacy(adapters, [part(k, 20) for k in range(2)])
    adapters.grads.zero_()
    privacy.release(0, [0, 1])
    first, second = (row.double().numpy() for row in adapters.grads)
    wanted = 0.7 * 0.5 / 3
    assert np.allclose([first.std(), second.std()], wanted, rtol=0.05)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.05 and len(first) > 10_000


def test_a_unit_whose_gradient_is_no_number_adds_nothing(make_model):
    adapters = Adapters(make_model("llama"), LORA, SEEDS)
    privacy = JointPrivacy(adapters, [part(k, 20) for k in range(2)])
    grads = privacy.room(4)
    grads[0], grads[1, 3], grads[2], grads[3] = 1.0, torch.nan, torch.inf, 2.0
    adapters.grads.zero_()
    privacy.add([1, 0], grads)
    # Each of the two that are left is as long as the bound.
    assert torch.allclose(adapters.grads.norm(dim=1), torch.tensor([0.5, 0.5]))


def test_a_wrong_gradient_of_units_is_found_before_training(make_model, monkeypatch, tmp_path):
    def half(into, left, right):
        into.baddbmm_(left[:, ::2].transpose(1, 2), right[:, ::2])

    monkeypatch.setattr(stacked, "_add", half)
    adapters = Adapters(make_model("llama"), LORA, SEEDS)
    kept = adapters.flat.clone()
    with pytest.raises(DPError, match="of stacked adapters differ"):
        train_joint(tmp_path / "j", adapters, some_tokens(20), [range(20)] * 2, TrainConfig(),
                    private=[part(0, 20), part(1, 20)])  # fmt: skip
    assert torch.equal(adapters.flat, kept)


def test_what_no_proof_covers_is_refused(make_model):
    adapters = Adapters(make_model("llama"), LORA, SEEDS)
    for own, what in (
        (part(1, 20, clipping="per-layer"), "dp.clipping of adapter 1 is per-layer"),
        (part(1, 20, [[i] for i in range(19)]), "protects 20 units, and 19"),
        (part(1, 3, [[0], [1], [1]]), "in two units"),
        (part(0, 20), "1 secrets"),
    ):
        with pytest.raises(ConfigError, match=what):
            JointPrivacy(adapters, [part(0, 20), own])
    assert "secret" not in repr(part(0, 20))
