"""The one way to differential privacy: a plan, from which sampler, clipping, noise and accountant follow together."""

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from sordino.config import DPConfig, check_target
from sordino.dp.accounting import Relation, Spent, calibrate, curve, encode_event, poisson_gaussian, spend
from sordino.dp.sampling import truncation
from sordino.errors import ConfigError

__all__ = ["DPPlan"]


@dataclass(frozen=True, kw_only=True)
class DPPlan:
    """DP-SGD (Abadi et al. 2016, arXiv:1607.00133) on Poisson samples of `units`, `batch` expected a step.

    The noise on the sum of clipped gradients has standard deviation `noise_multiplier`·C. `settings`
    are those it was made from. Rate, largest batch, event and ε follow from these and are nowhere
    else to be set, so that what is sampled, what is added and what is claimed cannot differ.
    """

    settings: DPConfig
    units: int
    batch: int
    steps: int
    delta: float
    noise_multiplier: float

    @classmethod
    def of(cls, settings: DPConfig, *, units: int, batch: int, steps: int) -> "DPPlan":
        """The plan for `steps` of `batch` expected units out of `units`, calibrated to the target ε if one is given.

        Raises `ConfigError` where no noise reaches the target or where the numbers make no sense.
        """
        check_target(settings)
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
                lambda sigma: _event(units, batch, steps, sigma),
                epsilon=settings.epsilon,
                delta=delta,
                relation=settings.relation,
            )
        assert noise is not None  # one of the two was given
        return cls(settings=settings, units=units, batch=batch, steps=steps, delta=delta, noise_multiplier=noise)

    @property
    def rate(self) -> float:
        """The probability with which each unit is in a step's sample."""
        return self.batch / self.units

    @property
    def cap(self) -> int:
        """The largest batch: five standard deviations above the mean. The accountant knows of it."""
        return truncation(self.units, self.rate)

    def event(self, steps: int | None = None) -> Any:
        """The DpEvent of `steps` of training, by default of all."""
        return _event(self.units, self.batch, self.steps if steps is None else steps, self.noise_multiplier)

    @property
    def spent(self) -> Spent:
        """ε at `delta` of the whole training."""
        return _spent(self.units, self.batch, self.steps, self.noise_multiplier, self.delta, self.settings.relation)

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
            "clipping": f"{self.settings.clipping}, norm {self.settings.clip_norm:g}",
            "sampling": f"Poisson, rate {self.rate:.6g}, at most {self.cap}",
            "units protected": self.units,
            "expected batch": self.batch,
            "accountant": self.spent.accountant,
        }

    def sentence(self) -> str:
        """The promise in a sentence."""
        settings = self.settings
        return (
            f"differentially private: ε = {self.spent.epsilon:.3g} at δ = {self.delta:.2g} for each of {self.units:,} "
            f"units ({settings.unit}, {settings.relation}) after {self.steps:,} steps; noise multiplier "
            f"{self.noise_multiplier:.3g}, {self.batch} expected a step"
        )

    def recorded(self) -> dict[str, Any]:
        """What the ledger keeps: the mechanism, and the event of one step."""
        return {
            "sampler": "poisson",
            "rate": self.rate,
            "cap": self.cap,
            "units": self.units,
            "noise_multiplier": self.noise_multiplier,
            "clip_norm": self.settings.clip_norm,
            "clipping": self.settings.clipping,
            "records_per_unit": self.settings.records_per_unit,
            "event": encode_event(self.event(1)),
        }


# A dry run, the training and its card ask for the same figure, which takes a second or two.
@lru_cache(maxsize=64)
def _spent(units: int, batch: int, steps: int, noise_multiplier: float, delta: float, relation: Relation) -> Spent:
    return spend(_event(units, batch, steps, noise_multiplier), delta=delta, relation=relation)


def _event(units: int, batch: int, steps: int, noise_multiplier: float) -> Any:
    rate = batch / units
    return poisson_gaussian(rate, noise_multiplier, steps, units=units, cap=truncation(units, rate))


def steps_of(units: int, batch: int, epochs: int) -> int:
    """How many steps show each unit `epochs` times on average."""
    return math.ceil(units / batch) * epochs
