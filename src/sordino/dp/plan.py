"""The one way to differential privacy: a plan, from which sampler, clipping, noise and accountant follow together."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sordino.config import DPConfig, check_dp
from sordino.dp.accounting import (
    Spent,
    calibrate,
    curve,
    encode_event,
    fixed_size_gaussian,
    poisson_gaussian,
    shuffled_gaussian,
    spend,
)
from sordino.dp.sampling import FixedSize, PoissonSampler, Shuffled, truncation
from sordino.errors import ConfigError

__all__ = ["DPPlan"]

# Noise on the count behind adaptive clipping, in expected batches, as in Andrew et al. 2021, arXiv:1905.03871.
_COUNT_NOISE = 1 / 20


@dataclass(frozen=True, kw_only=True)
class DPPlan:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133) on samples of `units`, `batch` expected a step.

    `noise_multiplier` is that of the whole of what a step releases: its noise by what one unit can change.
    `settings` are those it was made from. Sampler, rate, largest batch, the noise of each part, event and ε
    follow from these and are nowhere else to be set, so that what is sampled, what is added and what is
    claimed cannot differ. Raises `ConfigError` where they promise nothing.
    """

    settings: DPConfig
    units: int
    batch: int
    steps: int
    delta: float
    noise_multiplier: float

    def __post_init__(self) -> None:
        """Refuse what no accountant knows, and a count that would spend all there is to spend."""
        check_dp(self.settings)
        if self.settings.clipping == "adaptive" and self.noise_multiplier >= 2 * self.count_noise:
            message = (
                f"With {self.batch} units a step, the noisy count of adaptive clipping alone spends what a noise "
                f"multiplier of {2 * self.count_noise:g} does, and {self.noise_multiplier:.3g} is asked for."
            )
            raise ConfigError(message, "Raise train.batch_size or dp.epsilon, or use clipping: flat.")

    @classmethod
    def of(cls, settings: DPConfig, *, units: int, batch: int, steps: int) -> "DPPlan":
        """The plan for `steps` of `batch` expected units out of `units`, calibrated to the target ε if one is given.

        Raises `ConfigError` where no noise reaches the target or where the numbers make no sense.
        """
        check_dp(settings)
        if units < 2:
            raise ConfigError(f"{units} units are too few for differential privacy.", "Use more data.")
        if batch > units:
            message = f"train.batch_size is {batch}, but there are only {units} units to protect."
            raise ConfigError(message, f"Set it to {units} or less.")
        delta = settings.delta if settings.delta is not None else units**-1.1
        if delta >= 1 / units:
            message = f"dp.delta is {delta:.2g}, with {units:,} units: publishing one of them whole would keep to it."
            raise ConfigError(message, f"Stay far below {1 / units:.2g}; the default is {units**-1.1:.2g}.")
        noise = settings.noise_multiplier
        if settings.epsilon is not None:
            noise = calibrate(
                lambda sigma: _event(settings, units, batch, steps, sigma),
                epsilon=settings.epsilon,
                delta=delta,
                relation=settings.relation,
            )
        assert noise is not None  # one of the two was given
        return cls(settings=settings, units=units, batch=batch, steps=steps, delta=delta, noise_multiplier=noise)

    @property
    def rate(self) -> float:
        """The probability with which each unit is in a step's sample (shuffled: in the average step's)."""
        return self.batch / self.units

    @property
    def cap(self) -> int:
        """The largest batch. Under Poisson sampling, five standard deviations above the mean; accounted for."""
        return truncation(self.units, self.rate) if self.settings.sampler == "poisson" else self.batch

    def sampler(self, secret: bytes) -> PoissonSampler | FixedSize | Shuffled:
        """The sampler that the event is of, from a secret of 16 to 64 bytes."""
        if self.settings.sampler == "poisson":
            return PoissonSampler(self.units, self.rate, self.cap, secret)
        if self.settings.sampler == "fixed-size":
            return FixedSize(self.units, self.batch, secret)
        return Shuffled(self.units, self.batch, secret)

    @property
    def count_noise(self) -> float:
        """σ_b, the standard deviation of the noise on the count of adaptive clipping: a twentieth of the batch."""
        return self.batch * _COUNT_NOISE

    @property
    def gradient_noise(self) -> float:
        """Standard deviation of the noise on the sum of clipped gradients, in clip norms.

        That is the noise multiplier z, but for adaptive clipping, which also releases Σ(b − ½) with noise σ_b, where
        b is 1 for gradients within the norm. Each unit adds (gradient / C, b − ½), of lengths ≤ 1 and ½: over the
        noises z_Δ and σ_b that is a vector of length ≤ √(1/z_Δ² + 1/(2σ_b)²), which is 1/z for this z_Δ, so that
        both together are one Gaussian mechanism of multiplier z (Andrew et al. 2021, arXiv:1905.03871, theorem 1).
        """
        if self.settings.clipping != "adaptive":
            return self.noise_multiplier
        return 1 / math.sqrt(self.noise_multiplier**-2 - (2 * self.count_noise) ** -2)

    def event(self, steps: int | None = None) -> Any:
        """The DpEvent of `steps` of training, by default of all."""
        steps = self.steps if steps is None else steps
        return _event(self.settings, self.units, self.batch, steps, self.noise_multiplier)

    @property
    def steps_per_event(self) -> int:
        """How many steps the event of one covers: shuffled, an epoch, in which each unit takes part once; else one."""
        return _steps_per_event(self.settings, self.units, self.batch)

    @property
    def spent(self) -> Spent:
        """ε at `delta` of the whole training."""
        return _spent(self)

    def curve(self) -> list[tuple[float, float]]:
        """(ε, δ) pairs of the whole training."""
        return curve(self.event(), relation=self.settings.relation)

    def described(self) -> dict[str, Any]:
        """What a person must know to say what is promised."""
        return {
            "epsilon": round(self.spent.epsilon, 4),
            "delta": self.delta,
            "protected unit": self.settings.unit,
            "neighbours": self.settings.relation,
            "noise multiplier": round(self.noise_multiplier, 5),
            "clipping": self._clipping(),
            "sampling": self._sampling(),
            "units protected": self.units,
            "expected batch": self.batch,
            "accountant": self.spent.accountant,
        }

    def _clipping(self) -> str:
        settings = self.settings
        if settings.clipping != "adaptive":
            return f"{settings.clipping}, norm {settings.clip_norm:g}"
        noises = f"noise {self.gradient_noise:.4g} on gradients, {self.count_noise:g} on counts"
        return f"adaptive, quantile {settings.quantile:g}, first norm {settings.clip_norm:g}, {noises}"

    def _sampling(self) -> str:
        return {
            "poisson": f"Poisson, rate {self.rate:.6g}, at most {self.cap}",
            "fixed-size": f"fixed size, exactly {self.batch} without replacement",
            "shuffled": f"shuffled, {math.ceil(self.units / self.batch)} batches an epoch, no amplification",
        }[self.settings.sampler]

    def sentence(self) -> str:
        """The promise in a sentence."""
        settings = self.settings
        drawn = {"poisson": "expected a step", "fixed-size": "a step, of fixed size", "shuffled": "a step, shuffled"}
        return (
            f"differentially private: ε = {self.spent.epsilon:.3g} at δ = {self.delta:.2g} for each of {self.units:,} "
            f"units ({settings.unit}, {settings.relation}) after {self.steps:,} steps; noise multiplier "
            f"{self.noise_multiplier:.3g}, {self.batch} {drawn[settings.sampler]}"
        )

    def recorded(self) -> dict[str, Any]:
        """What the ledger keeps: the mechanism, and the event of one step (shuffled: of one epoch)."""
        settings, more = self.settings, dict[str, Any]()
        if settings.clipping == "adaptive":
            more |= {"quantile": settings.quantile, "count_noise": self.count_noise}
        if self.steps_per_event > 1:
            more["steps_per_event"] = self.steps_per_event
        return {
            "sampler": settings.sampler,
            "rate": self.rate,
            "cap": self.cap,
            "units": self.units,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": settings.clip_norm,
            "clipping": settings.clipping,
            "records_per_unit": settings.records_per_unit,
            **more,
            "event": encode_event(self.event(1)),
        }


# A dry run, the training and its card ask for the same figure, which takes a second or two.
@lru_cache(maxsize=64)
def _spent(plan: DPPlan) -> Spent:
    return spend(plan.event(), delta=plan.delta, relation=plan.settings.relation)


def _steps_per_event(settings: DPConfig, units: int, batch: int) -> int:
    return math.ceil(units / batch) if settings.sampler == "shuffled" else 1


def _event(settings: DPConfig, units: int, batch: int, steps: int, noise_multiplier: float) -> Any:
    if settings.sampler == "fixed-size":
        return fixed_size_gaussian(noise_multiplier, steps, units=units, batch=batch)
    if settings.sampler == "shuffled":
        # An epoch that was begun counts as a whole: any unit may have been in the part that was taken.
        epochs = math.ceil(steps / _steps_per_event(settings, units, batch))
        return shuffled_gaussian(noise_multiplier, epochs, relation=settings.relation)
    rate = batch / units
    return poisson_gaussian(rate, noise_multiplier, steps, units=units, cap=truncation(units, rate))


def steps_of(units: int, batch: int, epochs: int) -> int:
    """How many steps show each unit `epochs` times on average (shuffled: exactly so often)."""
    return math.ceil(units / batch) * epochs
