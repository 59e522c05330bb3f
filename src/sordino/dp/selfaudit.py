"""The self-audit of a mechanism: what it does to a toy model must be what its plan says, whatever it is made of.

The start-up test of `selftest` compares gradients on the user's model; this one takes sampler, clipper, noise
and denominator together, sees only what is released, and needs no record and no model.
"""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sordino.config import DPConfig
from sordino.dp.adaptive import RATE
from sordino.dp.mechanism import Mechanism
from sordino.dp.plan import DPPlan
from sordino.errors import DPError
from sordino.ledger import Journal

__all__ = ["self_audit"]

_UNITS, _BATCH, _STEPS = 200, 20, 400
# Standard errors that a true figure may be off: one in a million audits fails by chance.
_SIGMAS = 5.0
_ROUNDING = 1e-6


class _Toy(nn.Module):
    """A bigram model with a tied head, in float64."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embedding = nn.Embedding(40, 24, dtype=torch.float64)
        self.inner = nn.Linear(24, 24, dtype=torch.float64)
        self.head = nn.Linear(24, 40, bias=False, dtype=torch.float64)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.5, generator=generator)
        self.head.weight = self.embedding.weight

    def forward(self, ids: Tensor) -> Tensor:
        logits: Tensor = self.head(torch.tanh(self.inner(self.embedding(ids))))
        return logits


Build = Callable[[DPPlan, nn.Module, bytes, Journal], Mechanism]


class _Bench:
    """Mechanisms under test: each on a toy and a journal of its own, from a secret that may be shared."""

    def __init__(self, settings: DPConfig, build: Build, folder: Path) -> None:
        self.plan = DPPlan(
            settings=replace(settings, epsilon=None, noise_multiplier=1.0), units=_UNITS, batch=_BATCH, steps=_STEPS,
            delta=1e-5, noise_multiplier=1.0,
        )  # fmt: skip
        self.build, self.folder, self.made = build, folder, 0
        self.ids = torch.randint(0, 40, (_UNITS, 6), generator=torch.Generator().manual_seed(1))

    def mechanism(self, secret: bytes) -> Mechanism:
        self.made += 1
        return self.build(self.plan, _Toy(), secret, Journal(self.folder / str(self.made)))

    def released(self, mechanism: Mechanism, step: int, parts: list[list[tuple[int, float]]]) -> Tensor:
        """What `step` releases, times the expected batch, when its sample is `parts` of (unit, factor of its loss)."""
        mechanism.sample(step)
        toy = mechanism.clipper.module
        for part in parts:
            rows = self.ids[[unit for unit, _ in part]]
            factors = torch.tensor([factor for _, factor in part], dtype=torch.float64)

            def losses(rows: Tensor = rows, factors: Tensor = factors) -> Tensor:
                logits = toy(rows[:, :-1])
                each = cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none")
                return each.view(len(rows), -1).sum(dim=1) * factors

            mechanism.clip(losses, units=len(part))
        mechanism.release()
        found = [p.grad.flatten() if p.grad is not None else p.new_zeros(p.numel()) for p in toy.parameters()]
        return torch.cat(found).double() * _BATCH


def self_audit(settings: DPConfig, *, build: Build = Mechanism) -> dict[str, float]:
    """Audit the mechanism of `settings` on a toy model; returns what was measured, by name.

    `build` makes the mechanism under test from (plan, module, secret, journal). Raises `DPError` naming the
    first promise that is broken: the sampler's, the noise's, the sensitivity's or the denominator's.
    """
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(settings, build, Path(folder))
        adaptive = settings.clipping == "adaptive"
        counts = _counts(bench) if adaptive else {}
        return {**_SAMPLERS[settings.sampler](bench), **_noise(bench), **counts, **_sensitivity(bench)}


def _fail(what: str, value: float, wanted: str) -> None:
    raise DPError(f"The self-audit measured {what} of {value:.4g}; {wanted}.", "Do not train with this build.")


def _within(what: str, value: float, mean: float, deviation: float) -> dict[str, float]:
    if not abs(value - mean) <= _SIGMAS * deviation:
        _fail(what, value, f"the plan says {mean:.4g} ± {deviation:.2g}")
    return {what: value}


def _drawn(bench: _Bench) -> np.ndarray:
    """Who took part in which step, (steps, units)."""
    mechanism = bench.mechanism(b"s" * 32)
    drawn = np.zeros((_STEPS, _UNITS))
    for step in range(_STEPS):
        drawn[step, mechanism.sample(step)] = 1
        mechanism.release()
    return drawn


def _poisson(bench: _Bench) -> dict[str, float]:
    """Units come independently of each other and of the step before."""
    drawn = _drawn(bench)
    rate, sizes = _BATCH / _UNITS, drawn.sum(axis=1)
    spread = _UNITS * rate * (1 - rate)
    pairs = float((drawn[1:] * drawn[:-1]).sum())
    # Of products of two draws of which neighbours share one.
    expected, count = rate * rate, (_STEPS - 1) * _UNITS
    variance = count * (expected * (1 - expected) + 2 * (rate**3 - rate**4))
    return {
        **_within("the mean batch", float(sizes.mean()), _BATCH, float(np.sqrt(spread / _STEPS))),
        **_within("the variance of batches", float(sizes.var()), spread, spread * float(np.sqrt(2 / _STEPS))),
        **_within("units drawn twice running", pairs, count * expected, float(np.sqrt(variance))),
    }


def _exact(what: str, values: np.ndarray, wanted: int) -> dict[str, float]:
    worst = float(values.flat[np.abs(values - wanted).argmax()])
    if worst != wanted:
        _fail(what, worst, f"the plan says {wanted}, always")
    return {what: worst}


def _fixed_size(bench: _Bench) -> dict[str, float]:
    """Batches of one size, of units that come independently of the step before."""
    drawn, rate = _drawn(bench), _BATCH / _UNITS
    found = _exact("the size of a batch", drawn.sum(axis=1), _BATCH)
    pairs, often = float((drawn[1:] * drawn[:-1]).sum()), drawn.sum(axis=0)
    # The overlap of two batches is hypergeometric.
    overlap = _BATCH * rate * (1 - rate) * (_UNITS - _BATCH) / (_UNITS - 1)
    spread = _STEPS * rate * (1 - rate) * _UNITS / (_UNITS - 1)
    return {
        **found,
        **_within("units drawn twice running", pairs, (_STEPS - 1) * _BATCH * rate, ((_STEPS - 1) * overlap) ** 0.5),
        **_within("the variance of draws of a unit", float(often.var(ddof=1)), spread, spread * (2 / _UNITS) ** 0.5),
    }


def _shuffled(bench: _Bench) -> dict[str, float]:
    """Each unit once an epoch, in an order that is new in each."""
    epochs = _drawn(bench).reshape(-1, _UNITS // _BATCH, _UNITS)
    found = _exact("the steps an epoch of a unit", epochs.sum(axis=1), 1)
    again, rate, count = float((epochs[1:] * epochs[:-1]).sum()), _BATCH / _UNITS, (len(epochs) - 1) * _UNITS
    variance = count * rate * (1 - rate) * _UNITS / (_UNITS - 1)
    return {**found, **_within("units in the same place an epoch later", again, count * rate, variance**0.5)}


_SAMPLERS = {"poisson": _poisson, "fixed-size": _fixed_size, "shuffled": _shuffled}


def _noise(bench: _Bench) -> dict[str, float]:
    """N(0, (σC)²) once a step, new in each step and each run, however many parts the step has."""
    one, two = bench.mechanism(b"n" * 32), bench.mechanism(b"m" * 32)
    silent = [[(0, 0.0)], [(1, 0.0)], [(2, 0.0)]]

    def scaled(mechanism: Mechanism, step: int, parts: list[list[tuple[int, float]]]) -> Tensor:
        std = bench.plan.gradient_noise * mechanism.clip_norm
        return bench.released(mechanism, step, parts) / std

    first, second = (scaled(one, step, silent) for step in (0, 1))
    other, empty = scaled(two, 0, silent), scaled(two, 1, [])
    count = len(first)
    found: dict[str, float] = {}
    for name, values in (("in parts", first), ("of an empty batch", empty)):
        variance = float(values.square().mean())
        found |= _within(f"the variance of noise {name}", variance, 1.0, float(np.sqrt(2 / count)))
    for name, a, b in (("steps", first, second), ("runs", first, other), ("neighbours", first[1:], first[:-1])):
        found |= _within(
            f"the correlation of noise between {name}", float((a * b).mean()), 0.0, 1 / float(np.sqrt(count))
        )
    return found


def _count(bench: _Bench, mechanism: Mechanism, step: int, parts: list[list[tuple[int, float]]]) -> float:
    """The count that adaptive clipping releases in `step`, read off what becomes of the norm."""
    settings, before = bench.plan.settings, mechanism.clip_norm
    bench.released(mechanism, step, parts)
    share = settings.quantile - float(np.log(mechanism.clip_norm / before)) / RATE
    return (share - 0.5) * _BATCH


def _counts(bench: _Bench) -> dict[str, float]:
    """N(0, σ_b²) on the count, new in each step and each run; a unit moves it by ½ at most."""
    norm, std, drawn = bench.plan.settings.clip_norm, bench.plan.count_noise, []
    for secret in (b"c" * 32, b"e" * 32):
        mechanism = bench.mechanism(secret)
        drawn.append(np.zeros(_STEPS))
        for step in range(_STEPS):
            mechanism.restore(norm)
            drawn[-1][step] = _count(bench, mechanism, step, []) / std
    first, other, few = *drawn, _STEPS**-0.5
    found = {
        **_within("the variance of noise on counts", float(first.var()), 1.0, few * 2**0.5),
        **_within("the mean of noise on counts", float(first.mean()), 0.0, few),
        **_within("the correlation of counts between steps", float((first[1:] * first[:-1]).mean()), 0.0, few),
        **_within("the correlation of counts between runs", float((first * other).mean()), 0.0, few),
    }
    without = _count(bench, bench.mechanism(b"d" * 32), 0, [[(0, 1.0)]])
    for factor in (1e6, 1.0, 1e-3, 0.0):
        moved = abs(_count(bench, bench.mechanism(b"d" * 32), 0, [[(0, 1.0), (1, factor)]]) - without)
        if moved > 0.5 * (1 + _ROUNDING):
            _fail("a sensitivity of the count", moved, "a unit is worth ½")
    return found


def _sensitivity(bench: _Bench) -> dict[str, float]:
    """Adding a unit moves what is released by C at most, by as much whatever else is in the batch."""
    norm, secret, worst = bench.plan.settings.clip_norm, b"d" * 32, 0.0

    def first(parts: list[list[tuple[int, float]]]) -> Tensor:
        return bench.released(bench.mechanism(secret), 0, parts)

    # Gradients that are huge, tiny, opposed to the rest, in a part of their own or along with others.
    for others in ([], [(0, 1.0)], [(0, 1.0), (1, 50.0), (2, -1.0)]):
        rest = [others] if others else []
        without = first(rest)
        for factor in (1e6, 1.0, -3.0, 1e-3):
            batches = [[*rest, [(0, factor)]], *([[*others, (0, factor)]] for _ in rest)]
            moved = [first(batch) - without for batch in batches]
            length = max(float(m.norm()) for m in moved)
            worst = max(worst, length)
            if length > norm * (1 + _ROUNDING):
                _fail("a sensitivity", length, f"the clip norm is {norm:g}")
    alone, crowd = [(3, 40.0)], [(4, 1.0), (5, 2.0), (6, 3.0), (7, 4.0)]
    shares = []
    for among in ([], crowd):
        shares.append(first([[*among, *alone]]) - first([among] if among else []))
    apart = float((shares[0] - shares[1]).norm())
    if apart > norm * 1e-6:
        _fail("a change of a unit's share by its batch", apart, "the denominator is the expected batch, always")
    return {"the largest sensitivity": worst}
