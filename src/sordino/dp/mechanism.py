"""A plan at work on a model: samples, clipped sums and noise of one training, in the only order that is private."""

import hashlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from sordino.dp.adaptive import AdaptiveNorm
from sordino.dp.engine import Clipper, Clipping, Mode
from sordino.dp.noise import Noise
from sordino.dp.plan import DPPlan
from sordino.dp.selftest import self_test, synthetic
from sordino.errors import DPError
from sordino.ledger import Journal

__all__ = ["Mechanism", "rows_of", "subkey"]


# Of a row of the self-test.
_TOKENS = 16


def subkey(secret: bytes, purpose: str) -> bytes:
    """The key of 32 bytes that a mechanism derives from `secret` for "sampling", "noise", "count" or "rows"."""
    return hashlib.blake2b(purpose.encode(), key=secret, digest_size=32).digest()


def rows_of(key: bytes, step: int, unit: int, available: int, *, most: int) -> list[int]:
    """At most `most` of a unit's `available` sequences, those that stand for it in `step` by `key`."""
    if available <= most:
        return list(range(available))
    seed = hashlib.blake2b(f"{step}/{unit}".encode(), key=key, digest_size=16).digest()
    chosen = np.random.default_rng(int.from_bytes(seed, "big")).choice(available, most, replace=False)
    return sorted(chosen.tolist())


def _refuse_ranks() -> None:
    # Each of several ranks would sample on its own and add noise of its own: another mechanism than the plan's.
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        ranks = torch.distributed.get_world_size()
        if ranks > 1:
            message = f"This process is one of {ranks} ranks, and the mechanism is one of a single process."
            raise DPError(message, "Train in one process; train.accumulation makes room for large batches.")


class Mechanism:
    """The sampler, clipper and noise of `plan` on `module`; `journal` hears of every step before it is taken.

    Everything random follows from `secret` (32 bytes) and the number of the step. The order is
    `sample`, any number of `clip`s, `release`; anything else raises `DPError`. `mode` and `scale` are those of
    `Clipper` and decide about speed, memory and rounding only.
    """

    def __init__(
        self,
        plan: DPPlan,
        module: nn.Module,
        secret: bytes,
        journal: Journal,
        *,
        mode: Mode = "book-keeping",
        scale: float = 1.0,
    ) -> None:
        _refuse_ranks()
        self.plan, self.journal = plan, journal
        settings = plan.settings
        kind = "flat" if settings.clipping == "adaptive" else settings.clipping
        self.clipper = Clipper(module, Clipping(norm=settings.clip_norm, kind=kind), mode=mode, scale=scale)
        self.sampler = plan.sampler(subkey(secret, "sampling"))
        self._noise = Noise(subkey(secret, "noise"), secure=settings.secure)
        self.adaptive: AdaptiveNorm | None = None
        if settings.clipping == "adaptive":
            self.adaptive = AdaptiveNorm(plan, Noise(subkey(secret, "count"), secure=settings.secure))
        self._rows = subkey(secret, "rows")
        self._open: int | None = None

    @property
    def clip_norm(self) -> float:
        """C of the next step, or of the one that is open: what releases so far have made of it, so no secret."""
        return self.clipper.clipping.norm

    def restore(self, clip_norm: float) -> None:
        """Go on with the C that `clip_norm` was when the weights were saved that training goes on with.

        Raises `DPError` while a step is open, and where it is not the plan's and clipping is not adaptive.
        """
        if self._open is not None or (self.adaptive is None and clip_norm != self.clip_norm):
            message = f"The clip norm cannot become {clip_norm:g}: it is {self.clip_norm:g}."
            raise DPError(message, "Only adaptive clipping changes it, between steps.")
        self.clipper.clipping = replace(self.clipper.clipping, norm=clip_norm)

    def check(self, losses_of: Callable[[Tensor, Tensor], Tensor], vocabulary: int) -> None:
        """Compare the clipper with one unit at a time on random tokens; raises `DPError` where they differ.

        `losses_of(ids, mask)` gives the losses of the rows of a batch as training computes them.
        """
        rows = min(2, self.plan.settings.records_per_unit)
        batch = synthetic(vocabulary, _TOKENS, rows, next(self.clipper.module.parameters()).device)
        self_test(self.clipper, losses_of, batch=batch)

    def sample(self, step: int) -> np.ndarray:
        """The units (n) of `step`, which is spent from now on, whatever happens."""
        if self._open is not None or step < self.journal.started or step >= self.plan.steps:
            message = f"Step {step} cannot be taken: {self.journal.started} of {self.plan.steps} were begun."
            raise DPError(message, "A step is taken once, in order, and ended by release().")
        while self.journal.started <= step:
            self.journal.start(self.journal.started)
        self._open = step
        return self.sampler.batch(step)

    def rows(self, step: int, unit: int, available: int) -> list[int]:
        """Which of a unit's `available` sequences stand for it in `step`."""
        return rows_of(self._rows, step, unit, available, most=self.plan.settings.records_per_unit)

    def clip(self, losses: Callable[[], Tensor], *, units: int) -> Tensor:
        """Add the clipped gradients of `units` to the sum of the open step; returns their norms (units)."""
        if self._open is None:
            raise DPError("No step is open.", "Call sample() first.")
        # Attached only meanwhile: validation, saving and whoever else holds the model see it as it is.
        try:
            with self.clipper:
                norms = self.clipper.add(losses, units=units)
        except BaseException:
            # The sum is lost, and the count is of what is in the sum.
            if self.adaptive is not None:
                self.adaptive.forget()
            raise
        if self.adaptive is not None:
            self.adaptive.see(norms, self.clip_norm)
        return norms

    def release(self) -> None:
        """Noise once, divide by the expected batch, and put the result into `.grad`; the step is over."""
        if self._open is None:
            raise DPError("No step is open.", "Call sample() first.")
        step, std = self._open, self.plan.gradient_noise * self.clip_norm

        def add(name: str, total: Tensor) -> None:
            self._noise.add_(total, std, step=step, name=name)

        with torch.no_grad():
            self.clipper.finish(add, float(self.plan.batch))
        self._open = None
        if self.adaptive is not None:
            self.restore(self.adaptive.moved(self.clip_norm, step))
