"""Adaptive clipping: the norm follows a quantile of the gradients' norms (Andrew et al. 2021, arXiv:1905.03871)."""

import math

import torch
from torch import Tensor

from sordino.dp.noise import Noise
from sordino.dp.plan import DPPlan

__all__ = ["RATE", "AdaptiveNorm"]

RATE = 0.2  # η of the geometric update, as in the paper
_FARTHEST = 1e6  # how far C may go from where it began, either way: gradients of zero drive it down forever


class AdaptiveNorm:
    """Moves C towards the norm that a share `quantile` of gradients does not exceed, by a noisy count a step.

    Released is Σ(b − ½) + N(0, σ_b²) over the units of a step, where b is 1 for a gradient that was not clipped:
    with the noise of `DPPlan.gradient_noise` on the sum, that is part of the step's one event. A unit whose
    gradient is not finite adds nothing to either. All units of a step meet the same C.
    """

    def __init__(self, plan: DPPlan, noise: Noise) -> None:
        self.plan, self._noise = plan, noise
        self._count = 0.0

    def see(self, norms: Tensor, clip_norm: float) -> None:
        """Count the units with gradients of `norms` (n) among those within or beyond `clip_norm`."""
        within = (norms <= clip_norm).to(torch.float32) - 0.5
        self._count += float(within[norms.isfinite()].sum())

    def forget(self) -> None:
        """Count from zero: no unit was seen."""
        self._count = 0.0

    def moved(self, clip_norm: float, step: int) -> float:
        """End `step`: C of the next, C · exp(−η (share within − quantile)), from the noisy count alone."""
        drawn, settings = torch.zeros(1, dtype=torch.float64), self.plan.settings
        self._noise.add_(drawn, self.plan.count_noise, step=step, name="count")
        share = 0.5 + (self._count + float(drawn)) / self.plan.batch
        self._count = 0.0
        least, most = settings.clip_norm / _FARTHEST, settings.clip_norm * _FARTHEST
        return min(max(clip_norm * math.exp(-RATE * (share - settings.quantile)), least), most)
