"""A plan at work on a model: samples, clipped sums and noise of one training, in the only order that is private."""

import hashlib
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sordino.dp.engine import Clipper, Clipping, Mode
from sordino.dp.noise import Noise
from sordino.dp.plan import DPPlan
from sordino.dp.sampling import PoissonSampler
from sordino.dp.selftest import self_test, synthetic
from sordino.errors import DPError
from sordino.ledger import Journal

__all__ = ["Mechanism"]


# Of a row of the self-test.
_TOKENS = 16


def _key(secret: bytes, purpose: str) -> bytes:
    return hashlib.blake2b(purpose.encode(), key=secret, digest_size=32).digest()


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
    `sample`, any number of `clip`s, `release`; anything else raises `DPError`. `mode` decides about speed and
    memory only.
    """

    def __init__(
        self, plan: DPPlan, module: nn.Module, secret: bytes, journal: Journal, *, mode: Mode = "book-keeping"
    ) -> None:
        _refuse_ranks()
        self.plan, self.journal = plan, journal
        settings = plan.settings
        clipping = Clipping(norm=settings.clip_norm, kind=settings.clipping)
        self.clipper = Clipper(module, clipping, mode=mode)
        self.sampler = PoissonSampler(units=plan.units, rate=plan.rate, cap=plan.cap, secret=_key(secret, "sampling"))
        self._noise = Noise(_key(secret, "noise"), secure=settings.secure)
        self._rows = _key(secret, "rows")
        self._open: int | None = None

    def check(self, losses_of: Callable[[Tensor, Tensor], Tensor], vocabulary: int) -> None:
        """Compare the clipper with one unit at a time on random tokens; raises `DPError` where they differ.

        `losses_of(ids, mask)` gives the losses of the rows of a batch as training computes them.
        """
        rows = min(2, self.plan.settings.records_per_unit)
        batch = synthetic(vocabulary, _TOKENS, rows, next(self.clipper.module.parameters()).device)
        clipper = self.clipper
        self_test(clipper.module, clipper.clipping, losses_of, mode=clipper.mode, batch=batch)

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
        most = self.plan.settings.records_per_unit
        if available <= most:
            return list(range(available))
        seed = hashlib.blake2b(f"{step}/{unit}".encode(), key=self._rows, digest_size=16).digest()
        chosen = np.random.default_rng(int.from_bytes(seed, "big")).choice(available, most, replace=False)
        return sorted(chosen.tolist())

    def clip(self, losses: Callable[[], Tensor], *, units: int) -> Tensor:
        """Add the clipped gradients of `units` to the sum of the open step; returns their norms (units)."""
        if self._open is None:
            raise DPError("No step is open.", "Call sample() first.")
        # Attached only meanwhile: validation, saving and whoever else holds the model see it as it is.
        with self.clipper:
            return self.clipper.add(losses, units=units)

    def release(self) -> None:
        """Noise once, divide by the expected batch, and put the result into `.grad`; the step is over."""
        if self._open is None:
            raise DPError("No step is open.", "Call sample() first.")
        step, std = self._open, self.plan.noise_multiplier * self.plan.settings.clip_norm

        def fill(name: str, out: Tensor) -> None:
            self._noise.fill_(out, std, step=step, name=name)

        with torch.no_grad():
            self.clipper.finish(fill, float(self.plan.batch))
        self._open = None
