"""Broken mechanisms, each of which a real library or a real paper's code once was: all must be caught."""

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sordino.config import DPConfig
from sordino.dp.engine import Clipper
from sordino.dp.mechanism import Mechanism
from sordino.dp.plan import DPPlan
from sordino.dp.selfaudit import self_audit
from sordino.errors import DPError
from sordino.ledger import Journal

SETTINGS = DPConfig(noise_multiplier=1.0, clip_norm=0.7)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("automatic", "per-layer")]


@pytest.mark.parametrize("clipping", ["flat", *SLOW, "adaptive"])
def test_a_sound_mechanism_passes(clipping):
    found = self_audit(DPConfig(noise_multiplier=1.0, clip_norm=0.7, clipping=clipping))
    assert found["the largest sensitivity"] <= 0.7 * (1 + 1e-6)
    assert found["the variance of noise in parts"] == pytest.approx(1, abs=0.3)


@pytest.mark.parametrize("sampler", ["fixed-size", "shuffled"])
def test_every_sampler_draws_what_its_event_is_of(sampler):
    settings = DPConfig(noise_multiplier=1.0, relation="replace-one", sampler=sampler)
    assert self_audit(settings)["the largest sensitivity"] <= 1 + 1e-6
    other = "shuffled" if sampler == "fixed-size" else "fixed-size"

    class Another(Mechanism):
        def __init__(self, plan, *arguments):
            super().__init__(plan, *arguments)
            self.sampler = replace(plan, settings=replace(plan.settings, sampler=other)).sampler(bytes(32))

    with pytest.raises(DPError, match=r"twice running|an epoch of a unit"):
        self_audit(settings, build=Another)


class NoNoise(Mechanism):
    def release(self):
        self._noise.add_ = lambda out, std, **_: None
        super().release()


class NoiseAPart(Mechanism):
    """Noise for every micro-batch."""

    parts = 0

    def clip(self, losses, *, units):
        self.parts += 1
        return super().clip(losses, units=units)

    def release(self):
        add, parts = type(self._noise).add_, max(1, self.parts)

        def often(out, std, **named):
            for part in range(parts):
                add(self._noise, out, std, step=named["step"], name=f"{named['name']}/{part}")

        self._noise.add_, self.parts = often, 0
        super().release()


class ClippedAfterSumming(Mechanism):
    """The mean is clipped, not what it is made of."""

    def clip(self, losses, *, units):
        return super().clip(lambda: losses().sum()[None], units=1)

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.clipper = Clipper(self.clipper.module, self.clipper.clipping, mode="one-by-one")


class ActualBatch(Mechanism):
    """Divides by the size of the sample."""

    taken = 0

    def clip(self, losses, *, units):
        self.taken += units
        return super().clip(losses, units=units)

    def release(self):
        plan, taken, self.taken = self.plan, max(1, self.taken), 0
        finish = type(self.clipper).finish
        self.clipper.finish = lambda noise, expected: finish(self.clipper, noise, taken)
        super().release()
        self.plan = plan


class Shuffled(Mechanism):
    """A permutation an epoch, accounted as Poisson."""

    def sample(self, step):
        super().sample(step)
        a_epoch = self.plan.units // self.plan.batch
        order = np.random.default_rng(step // a_epoch).permutation(self.plan.units)
        return np.sort(order.reshape(a_epoch, -1)[step % a_epoch])


class ReusedNoise(Mechanism):
    """The same seed in each step."""

    def release(self):
        add = type(self._noise).add_
        self._noise.add_ = lambda out, std, **named: add(self._noise, out, std, step=0, name=named["name"])
        super().release()


class ReusedSeed(Mechanism):
    """The same seed in each run."""

    def __init__(self, plan, module, secret, journal):
        super().__init__(plan, module, b"0" * 32, journal)


class UnclippedLayer(Mechanism):
    """One layer goes past the clipper."""

    def clip(self, losses, *, units):
        weight = self.clipper.module.inner.weight
        extra = torch.autograd.grad(losses().sum(), weight)[0]
        norms = super().clip(losses, units=units)
        self.extra = getattr(self, "extra_sum", 0) + extra
        self.extra_sum = self.extra
        return norms

    def release(self):
        super().release()
        extra, self.extra_sum = getattr(self, "extra_sum", None), 0
        if isinstance(extra, torch.Tensor):
            self.clipper.module.inner.weight.grad += extra / self.plan.batch


class DoubleSensitivity(Mechanism):
    """Clips to twice the norm that the noise is made for."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        wide = copy.copy(self.clipper.clipping)
        object.__setattr__(wide, "norm", 2 * wide.norm)
        self.clipper = Clipper(self.clipper.module, wide, mode=self.clipper.mode)


class TiedOnce(Mechanism):
    """The norm of the tied weight leaves the embedding out."""

    def clip(self, losses, *, units):
        toy, captured = self.clipper.module, []
        embedding = toy.embedding

        class Detached(torch.nn.Module):
            def forward(self, ids):
                captured.append(ids)
                return embedding.weight.detach()[ids]

        toy.embedding = Detached()
        try:
            loose = losses()
        finally:
            toy.embedding = embedding
        # Factors from the norms without the embedding's part, applied to the whole gradient.
        norms = []
        for one in loose:
            grads = torch.autograd.grad(one, list(toy.parameters()), retain_graph=True, allow_unused=True)
            norms.append(torch.stack([g.square().sum() for g in grads if g is not None]).sum().sqrt())
        factors = (self.clipper.clipping.norm / torch.stack(norms)).clamp(max=1)
        whole = torch.autograd.grad((losses() * factors).sum(), list(toy.parameters()))
        self.extra = [a + b for a, b in zip(getattr(self, "extra", [0] * len(whole)), whole, strict=True)]
        return torch.stack(norms)

    def release(self):
        super().release()
        for parameter, extra in zip(self.clipper.module.parameters(), getattr(self, "extra", []), strict=False):
            parameter.grad += extra / self.plan.batch
        self.extra = [0] * len(list(self.clipper.module.parameters()))


class SameOrder(Mechanism):
    """Batches of one permutation in every epoch."""

    def sample(self, step):
        super().sample(step)
        return self.sampler.batch(step % self.sampler.batches)


class SilentCount(Mechanism):
    """The count of adaptive clipping is used as it is."""

    def release(self):
        self.adaptive._noise.add_ = lambda out, std, **_: out.zero_()
        super().release()


class SameCountNoise(Mechanism):
    """The noise on the count is the same in every step."""

    def release(self):
        add = type(self.adaptive._noise).add_
        self.adaptive._noise.add_ = lambda out, std, **named: add(self.adaptive._noise, out, std, step=0, name="x")
        super().release()


class CountForNothing(Mechanism):
    """Adds the noise of clipping without a count, and counts."""

    def release(self):
        add, less = type(self._noise).add_, self.plan.noise_multiplier / self.plan.gradient_noise
        self._noise.add_ = lambda out, std, **named: add(self._noise, out, less * std, **named)
        super().release()


class WholeCount(Mechanism):
    """Counts b, not b − ½, with the noise of the half."""

    def clip(self, losses, *, units):
        norms = super().clip(losses, units=units)
        self.adaptive._count += 0.5 * len(norms)
        return norms


MUTANTS = {
    NoNoise: "variance of noise", NoiseAPart: "variance of noise", ClippedAfterSumming: "sensitivity|share",
    ActualBatch: "share|sensitivity|variance of noise", Shuffled: "variance of batches", ReusedNoise: "between steps",
    ReusedSeed: "between runs", UnclippedLayer: "sensitivity", DoubleSensitivity: "sensitivity",
    TiedOnce: "sensitivity",
}  # fmt: skip


ADAPTIVE = {
    SilentCount: "variance of noise on counts", SameCountNoise: "noise on counts|counts between steps",
    CountForNothing: "variance of noise", WholeCount: "sensitivity of the count",
}  # fmt: skip


# One of them always, the rest, which take a quarter of a minute each, with the slow tests.
@pytest.mark.parametrize(
    "mutant",
    [m if m is SilentCount else pytest.param(m, marks=pytest.mark.slow) for m in ADAPTIVE],
    ids=lambda kind: kind.__name__,
)
def test_a_count_that_says_too_much_is_caught(mutant):
    with pytest.raises(DPError, match=ADAPTIVE[mutant]):
        self_audit(replace(SETTINGS, clipping="adaptive"), build=mutant)


def test_one_order_for_all_epochs_is_caught():
    with pytest.raises(DPError, match="same place an epoch later"):
        self_audit(replace(SETTINGS, relation="replace-one", sampler="shuffled"), build=SameOrder)


# Other mutants that the same check catches are among the slow tests.
@pytest.mark.parametrize(
    "mutant",
    [
        pytest.param(m, marks=pytest.mark.slow if m in (NoiseAPart, ClippedAfterSumming, UnclippedLayer) else ())
        for m in MUTANTS
    ],
    ids=lambda kind: kind.__name__,
)
def test_a_broken_mechanism_is_caught(mutant):
    with pytest.raises(DPError, match=MUTANTS[mutant]):
        self_audit(SETTINGS, build=mutant)


@pytest.mark.parametrize("ranks", [1, 2])
def test_several_ranks_are_refused(tmp_path, monkeypatch, ranks):
    # Each would add noise of its own, and sample its own units.
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: ranks)
    plan = DPPlan(settings=SETTINGS, units=9, batch=3, steps=2, delta=1e-3, noise_multiplier=1.0)
    arguments = plan, torch.nn.Linear(2, 2), b"0" * 32, Journal(tmp_path / "steps")
    if ranks == 1:
        assert len(Mechanism(*arguments).sample(0)) <= plan.cap
        return
    with pytest.raises(DPError, match="one of 2 ranks"):
        Mechanism(*arguments)
