"""What a mechanism releases, as the DpEvents of dp-accounting: built, composed, and kept as JSON.

A noise multiplier is always noise std / clip norm C, where one unit contributes a vector of norm ≤ C.
"""

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from sordino.errors import AccountingError, ConfigError

if TYPE_CHECKING:
    import dp_accounting

__all__ = [
    "composed",
    "decode_event",
    "encode_event",
    "fixed_size_gaussian",
    "leaves",
    "poisson_gaussian",
    "repeated",
    "shuffled_gaussian",
]


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < math.inf


def _rate(value: Any) -> bool:
    return _positive(value) and value <= 1


# The events that are built here, and what each of their fields may be.
_FIELDS: Mapping[str, Mapping[str, tuple[Callable[[Any], bool], str]]] = {
    "NoOpDpEvent": {},
    "GaussianDpEvent": {"noise_multiplier": (_positive, "a positive number")},
    "PoissonSampledDpEvent": {"sampling_probability": (_rate, "in (0, 1]")},
    "TruncatedSubsampledGaussianDpEvent": {
        "dataset_size": (_whole, "a whole number from 1"),
        "sampling_probability": (_rate, "in (0, 1]"),
        "truncated_batch_size": (_whole, "a whole number from 1"),
        "noise_multiplier": (_positive, "a positive number"),
    },
    "SelfComposedDpEvent": {"count": (_whole, "a whole number from 1")},
    "ComposedDpEvent": {},
}


def _check(**values: tuple[Any, Callable[[Any], bool], str]) -> None:
    for name, (value, good, rule) in values.items():
        if not good(value):
            raise ConfigError(f"`{name}` is {value!r}.", f"It must be {rule}.")


def _check_noise_and_steps(noise_multiplier: float, steps: int, name: str = "steps") -> None:
    _check(
        noise_multiplier=(noise_multiplier, _positive, "a positive number: without noise nothing is private"),
        **{name: (steps, _whole, "a whole number from 1")},
    )


def poisson_gaussian(
    rate: float, noise_multiplier: float, steps: int, *, units: int, cap: int | None
) -> "dp_accounting.DpEvent":
    """DP-SGD: each of `units` is in a step's batch independently with probability `rate`.

    With a `cap`, longer batches are cut to a uniformly random subset of that size
    (arXiv:2508.15089), as `sampling.PoissonSampler` does. Valid under both relations.

    Raises `ConfigError` for values that cannot be meant.
    """
    import dp_accounting

    _check_noise_and_steps(noise_multiplier, steps)
    _check(rate=(rate, _rate, "in (0, 1]"), units=(units, _whole, "a whole number from 1"))
    if cap is not None:
        _check(cap=(cap, _whole, "a whole number from 1, or nothing"))
    if cap is not None and cap < units:
        if rate == 1:
            raise ConfigError(
                f"`rate` is 1, so that all {units} units are in every batch, but `cap` is {cap}.",
                "Lower the rate, or use batches of fixed size.",
            )
        step = dp_accounting.TruncatedSubsampledGaussianDpEvent(units, float(rate), cap, float(noise_multiplier))
    else:
        step = dp_accounting.GaussianDpEvent(float(noise_multiplier))
        if rate < 1:
            step = dp_accounting.PoissonSampledDpEvent(float(rate), step)
    return repeated(step, steps)


def fixed_size_gaussian(noise_multiplier: float, steps: int, *, units: int, batch: int) -> "dp_accounting.DpEvent":
    """Batches of exactly `batch` of `units`, drawn without replacement, anew for every step.

    The truncated Poisson event at rate 1: all units are drawn and cut to a random subset. Its accountant
    takes sensitivity 2C, since the unit that comes in pushes another one out; so this costs far more than
    Poisson sampling at the same noise, under both relations. Raises `ConfigError`.
    """
    import dp_accounting

    _check_noise_and_steps(noise_multiplier, steps)
    _check(units=(units, _whole, "a whole number from 1"), batch=(batch, _whole, "a whole number from 1"))
    if batch > units:
        raise ConfigError(f"`batch` is {batch}, but there are {units} units.", "Lower it.")
    if batch == units:
        return repeated(dp_accounting.GaussianDpEvent(float(noise_multiplier)), steps)
    step = dp_accounting.TruncatedSubsampledGaussianDpEvent(units, 1.0, batch, float(noise_multiplier))
    return repeated(step, steps)


def shuffled_gaussian(noise_multiplier: float, epochs: int, *, relation: str) -> "dp_accounting.DpEvent":
    """Disjoint batches of a permutation: one participation an epoch, no amplification by sampling.

    Valid for replace-one only: another unit in the same place changes one batch an epoch by at most 2C.
    Adding or removing a unit shifts those after it into other batches, so that a second batch changes as
    well; that relation is refused. There is no tight amplification theorem for shuffled Gaussian batches
    (Chua et al. 2024, arXiv:2403.17673, show that Poisson's figure is too low for them).

    Raises `AccountingError` for another relation, `ConfigError` for values that cannot be meant.
    """
    import dp_accounting

    if relation != "replace-one":
        raise AccountingError(
            f"Shuffled batches have no accountant under {relation!r}.",
            "Use Poisson sampling, or state the guarantee under replace-one.",
        )
    _check_noise_and_steps(noise_multiplier, epochs, "epochs")
    return repeated(dp_accounting.GaussianDpEvent(float(noise_multiplier)), epochs)


def repeated(step: "dp_accounting.DpEvent", steps: int) -> "dp_accounting.DpEvent":
    """The event of `steps` steps, each of them `step`; of none, nothing."""
    import dp_accounting

    if steps == 0:
        return dp_accounting.NoOpDpEvent()
    _check(steps=(steps, _whole, "a whole number"))
    return dp_accounting.SelfComposedDpEvent(step, steps)


def leaves(event: "dp_accounting.DpEvent") -> "dict[dp_accounting.DpEvent, int]":
    """The single steps an event is composed of, and how often each happens."""
    import dp_accounting

    found: dict[dp_accounting.DpEvent, int] = {}

    def walk(part: "dp_accounting.DpEvent", count: int) -> None:
        if isinstance(part, dp_accounting.ComposedDpEvent):
            for inner in part.events:
                walk(inner, count)
        elif isinstance(part, dp_accounting.SelfComposedDpEvent):
            walk(part.event, count * part.count)
        elif not isinstance(part, dp_accounting.NoOpDpEvent):
            found[part] = found.get(part, 0) + count

    walk(event, 1)
    return found


def composed(events: "Iterable[dp_accounting.DpEvent]") -> "dp_accounting.DpEvent":
    """All `events` on the same data, one after the other; equal steps are counted together."""
    import dp_accounting

    # Order is of no account: a bound on the composition holds for any.
    together = leaves(dp_accounting.ComposedDpEvent(list(events)))
    parts = [repeated(step, count) for step, count in together.items()]
    if not parts:
        return dp_accounting.NoOpDpEvent()
    return parts[0] if len(parts) == 1 else dp_accounting.ComposedDpEvent(parts)


def encode_event(event: "dp_accounting.DpEvent") -> dict[str, Any]:
    """An event as JSON; raises `AccountingError` for one that is not built here."""
    kind = type(event).__name__
    if kind not in _FIELDS:
        raise AccountingError(f"{kind} is not an event that Sordino builds.", f"Known: {', '.join(_FIELDS)}.")
    encoded: dict[str, Any] = {"kind": kind, **{name: getattr(event, name) for name in _FIELDS[kind]}}
    if kind in ("SelfComposedDpEvent", "PoissonSampledDpEvent"):
        encoded["event"] = encode_event(event.event)
    elif kind == "ComposedDpEvent":
        encoded["events"] = [encode_event(inner) for inner in event.events]
    return encoded


def decode_event(data: Any) -> "dp_accounting.DpEvent":
    """The event that `encode_event` wrote; raises `AccountingError` for anything else."""
    import dp_accounting

    hint = "Restore the ledger: what it does not say cannot be accounted for."
    kind = data.get("kind") if isinstance(data, Mapping) else None
    if not isinstance(kind, str) or kind not in _FIELDS:
        raise AccountingError(f"{str(data)[:80]!r} is not an event.", hint)
    inner = {"SelfComposedDpEvent": {"event"}, "PoissonSampledDpEvent": {"event"}, "ComposedDpEvent": {"events"}}
    expected = {"kind", *_FIELDS[kind], *inner.get(kind, ())}
    if set(data) != expected:
        raise AccountingError(f"A {kind} has {sorted(data)}, not {sorted(expected)}.", hint)
    for name, (good, rule) in _FIELDS[kind].items():
        if not good(data[name]):
            raise AccountingError(f"The `{name}` of a {kind} is {data[name]!r}, not {rule}.", hint)
    values = {name: data[name] for name in _FIELDS[kind]}
    if kind == "ComposedDpEvent":
        if not isinstance(data["events"], list):
            raise AccountingError(f"The `events` of a {kind} are {data['events']!r}, not a list.", hint)
        values["events"] = [decode_event(part) for part in data["events"]]
    elif "event" in expected:
        values["event"] = decode_event(data["event"])
        sampled = kind == "PoissonSampledDpEvent"
        if sampled and not isinstance(values["event"], dp_accounting.GaussianDpEvent):
            raise AccountingError(f"A {kind} of a {data['event']['kind']} has no accountant.", hint)
    return getattr(dp_accounting, kind)(**values)
