"""What a mechanism costs: ε(δ) from dp-accounting, cross-checked, and the noise that a target needs.

The judge is the privacy-loss-distribution accountant, rounded pessimistically: an upper bound. Beside it
stand the same distribution rounded optimistically (a lower bound) and Rényi DP (a looser upper bound);
where these three are out of order, no figure is given.
"""

import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from sordino.dp.events import (
    composed,
    decode_event,
    encode_event,
    fixed_size_gaussian,
    leaves,
    poisson_gaussian,
    repeated,
    shuffled_gaussian,
)
from sordino.errors import AccountingError, ConfigError

if TYPE_CHECKING:
    import dp_accounting

__all__ = [
    "Relation",
    "Spent",
    "calibrate",
    "composed",
    "curve",
    "decode_event",
    "deltas",
    "encode_event",
    "fixed_size_gaussian",
    "poisson_gaussian",
    "repeated",
    "shuffled_gaussian",
    "spend",
]

Relation = Literal["add-or-remove-one", "replace-one"]

# ε at which a curve is given: from almost nothing to where a guarantee has no meaning left.
_GRID = (0.0, 0.1, 0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 10.0, 12.0, 15.0, 20.0, 30.0)
# By how much PLD may lie above RDP, relative to 1 + ε: rounding errors of both, no more.
_SLACK = 1e-3
_TOLERANCE = 1e-4  # of a calibrated noise multiplier, relative
_LEAST_DELTA = 1e-12  # below it stand the rounding errors of Fourier transforms, some 1e-14 each
_SMALLEST, _LARGEST = 0.1, 1e6  # noise multipliers between which a calibration searches


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What was spent: `epsilon` at `delta` for neighbours under `relation`, an upper bound.

    `lower` is the optimistic estimate of the same distribution, loose by about half an interval a step;
    `rdp` the bound of Rényi DP, None where it has no rule. `accountant` names library, version, interval.
    """

    epsilon: float
    delta: float
    relation: Relation
    lower: float
    rdp: float | None
    accountant: str


def _neighbours(relation: Relation) -> Any:
    import dp_accounting

    kinds = dp_accounting.NeighboringRelation
    return {"add-or-remove-one": kinds.ADD_OR_REMOVE_ONE, "replace-one": kinds.REPLACE_ONE}[relation]


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise ConfigError(f"`delta` is {delta}.", "It must be in (0, 1), and well below one in the number of units.")


def _pld(event: "dp_accounting.DpEvent", relation: Relation, interval: float) -> Any:
    return _composed_pld(tuple(leaves(event).items()), relation, interval)


# A calibration, the figure and the curve ask for the same distribution, which takes about a second.
@lru_cache(maxsize=4)
def _composed_pld(parts: "tuple[tuple[dp_accounting.DpEvent, int], ...]", relation: Relation, interval: float) -> Any:
    import dp_accounting

    accountant = dp_accounting.pld.PLDAccountant(_neighbours(relation), interval)
    try:
        for step, count in parts:
            accountant.compose(step, count)
    except dp_accounting.UnsupportedEventError as error:
        message = f"dp-accounting has no privacy loss distribution for {[step for step, _ in parts]} under {relation}."
        raise AccountingError(message, "Use Poisson sampling, or the other relation.") from error
    return accountant


def _optimistic(event: "dp_accounting.DpEvent", delta: float, relation: Relation, interval: float) -> float:
    return float(_optimistic_pld(tuple(leaves(event).items()), relation, interval).get_epsilon_for_delta(delta))


# PLDAccountant rounds up only, so the distributions are put together here: a second path to the same figure. A card,
# an audit of the claim and its bound at another δ ask for the same one.
@lru_cache(maxsize=4)
def _optimistic_pld(parts: "tuple[tuple[dp_accounting.DpEvent, int], ...]", relation: Relation, interval: float) -> Any:
    import dp_accounting
    from dp_accounting.pld import privacy_loss_distribution as pld
    from scipy.stats import binom

    replace = _neighbours("replace-one")

    def gaussian(sigma: float, rate: float, neighbours: Any) -> Any:
        settings = {"sampling_prob": rate, "neighboring_relation": neighbours}
        return pld.from_gaussian_mechanism(
            sigma,
            pessimistic_estimate=False,
            value_discretization_interval=interval,
            use_connect_dots=False,
            **settings,
        )

    whole = pld.identity(interval, pessimistic_estimate=False)
    for step, count in parts:
        if isinstance(step, dp_accounting.GaussianDpEvent):
            whole = whole.compose(gaussian(step.noise_multiplier / math.sqrt(count), 1.0, _neighbours(relation)))
        elif isinstance(step, dp_accounting.PoissonSampledDpEvent):
            one = gaussian(step.event.noise_multiplier, step.sampling_probability, _neighbours(relation))
            whole = whole.compose(one.self_compose(count))
        else:
            # The mixture of arXiv:2508.15089: where the batch is cut, a unit that comes in pushes one out.
            size, cap, rate = step.dataset_size, step.truncated_batch_size, step.sampling_probability
            one = gaussian(step.noise_multiplier, rate, _neighbours(relation))
            cut = float(binom.sf(cap - 1, size - 1, rate))
            if cut > 0:
                taken = float(binom.sf(cap, size, rate)) * cap / cut / size
                one = gaussian(step.noise_multiplier / 2, taken, replace).compute_mixture(one, cut)
            whole = whole.compose(one.self_compose(count))
    return whole


def _rdp(event: "dp_accounting.DpEvent", delta: float, relation: Relation) -> float | None:
    import dp_accounting

    parts = []
    for step, count in leaves(event).items():
        rule = step
        if isinstance(step, dp_accounting.TruncatedSubsampledGaussianDpEvent):
            if relation != "replace-one" or step.sampling_probability < 1:
                return None
            # Its rule knows sensitivity 1 only; one unit for another is 2C.
            inner = dp_accounting.GaussianDpEvent(step.noise_multiplier / 2)
            size, batch = step.dataset_size, step.truncated_batch_size
            rule = dp_accounting.SampledWithoutReplacementDpEvent(size, batch, inner)
        elif isinstance(step, dp_accounting.PoissonSampledDpEvent):
            if relation == "replace-one":
                return None
        elif relation == "replace-one":
            rule = dp_accounting.GaussianDpEvent(step.noise_multiplier / 2)
        parts.append(dp_accounting.SelfComposedDpEvent(rule, count))
    accountant = dp_accounting.rdp.RdpAccountant(None, _neighbours(relation))
    return float(accountant.compose(dp_accounting.ComposedDpEvent(parts)).get_epsilon(delta))


def _upper(
    event: "dp_accounting.DpEvent", delta: float, relation: Relation, interval: float
) -> tuple[float, float | None, float]:
    """ε by PLD, ε by RDP, and the interval that was fine enough."""
    rdp = _rdp(event, delta, relation)
    # Losses far below the interval are rounded up to it: over many steps that alone exceeds RDP.
    for finer in (interval, interval / 10, interval / 100):
        epsilon = float(_pld(event, relation, finer).get_epsilon(delta))
        if delta < _LEAST_DELTA or not math.isfinite(epsilon):
            message = f"The accountant gives ε = {epsilon:g} at δ = {delta:g}: that δ is below what it resolves."
            raise AccountingError(message, "Ask for a larger δ, or add noise.")
        if rdp is None or epsilon <= rdp + _SLACK * (1 + rdp):
            return epsilon, rdp, finer
    message = f"Two accountants disagree: PLD gives ε = {epsilon:g}, above the {rdp:g} of RDP, at δ = {delta:g}."
    raise AccountingError(message, "Change the noise multiplier or the number of steps, and report this.")


def spend(event: "dp_accounting.DpEvent", *, delta: float, relation: Relation, interval: float = 1e-3) -> Spent:
    """ε of `event` at `delta`, cross-checked: optimistic PLD ≤ PLD ≤ RDP (to 1e-3·(1 + ε)).

    `interval` is the width to which privacy losses are rounded: 1e-3 while training, 1e-4 on a certificate
    (ten times the time). It is refined where rounding would dominate the figure.

    Raises `AccountingError` where no accountant fits the event under `relation`, or where they disagree.
    """
    _check_delta(delta)
    epsilon, rdp, used = _upper(event, delta, relation, interval)
    lower = _optimistic(event, delta, relation, used)
    if not lower <= epsilon + 1e-6 * (1 + epsilon):
        message = f"The accountant contradicts itself: ε is at least {lower:g}, and at most {epsilon:g}."
        raise AccountingError(message, "Change the noise multiplier or the number of steps, and report this.")
    name = f"dp-accounting {version('dp-accounting')} PLD, pessimistic, interval {used:g}"
    return Spent(epsilon=epsilon, delta=delta, relation=relation, lower=lower, rdp=rdp, accountant=name)


def curve(event: "dp_accounting.DpEvent", *, relation: Relation, interval: float = 1e-3) -> list[tuple[float, float]]:
    """The whole guarantee: pairs of ε and the δ that goes with it, an upper bound, for ε from 0 to 30."""
    accountant = _pld(event, relation, interval)
    points, least = [], 1.0
    for epsilon in _GRID:
        # δ falls as ε rises: what rounding adds far out, where nothing is left, is no part of the bound.
        least = min(least, max(0.0, float(accountant.get_delta(epsilon))))
        points.append((epsilon, least))
    return points


def deltas(
    event: "dp_accounting.DpEvent", epsilons: Sequence[float], *, relation: Relation, interval: float = 1e-3
) -> list[float]:
    """The δ that goes with each of `epsilons`, which ascend: an upper bound, never below what is resolved (1e-12)."""
    found = _pld(event, relation, interval).get_delta(list(epsilons))
    # δ falls as ε rises: what rounding adds far out, where nothing is left, is no part of the bound.
    points, least = [], 1.0
    for delta in found:
        least = min(least, max(_LEAST_DELTA, float(delta)))
        points.append(least)
    return points


def _guess(make: "Callable[[float], dp_accounting.DpEvent]", target: tuple[float, float], relation: Relation) -> float:
    # The central-limit approximation (Bu et al. 2020, arXiv:1911.11607): no bound, but close and costs nothing.
    import dp_accounting

    epsilon, delta = target
    low, high = _SMALLEST, _LARGEST
    while high > 1.01 * low:
        sigma, square = math.sqrt(low * high), 0.0
        for step, count in leaves(make(sigma)).items():
            if isinstance(step, dp_accounting.TruncatedSubsampledGaussianDpEvent):
                rate, noise = step.sampling_probability, step.noise_multiplier
                if rate == 1:
                    rate, noise = step.truncated_batch_size / step.dataset_size, noise / 2
            elif isinstance(step, dp_accounting.PoissonSampledDpEvent):
                rate, noise = step.sampling_probability, step.event.noise_multiplier
            else:
                rate, noise = 1.0, step.noise_multiplier
            # At rate 1 the approximation is the mechanism itself: 1/σ².
            chi = noise**-2 if rate == 1 else rate**2 * math.expm1(min(noise**-2, 500.0))
            square += count * chi * (4 if relation == "replace-one" else 1)
        enough = square == 0 or (
            square < 1e8 and dp_accounting.get_epsilon_gaussian(1 / math.sqrt(square), delta) <= epsilon
        )
        low, high = (low, sigma) if enough else (sigma, high)
    return high


def _solve(spent: Callable[[float], float], epsilon: float, start: float, slope: float = -1.0) -> tuple[float, float]:
    """The least noise multiplier (to 1e-4) that spends at most `epsilon`, and by what power of it ε falls there.

    Secants of ln ε over ln σ, which is nearly a line, aimed a little above the root: as soon as a probe spends no
    more than `epsilon` and the secant through it and the last one puts the root within the tolerance, it is taken.
    """
    tolerance = math.log1p(_TOLERANCE)
    x, last = math.log(start), (math.nan, math.nan)
    bounds = [math.log(_SMALLEST / 2), math.log(2 * _LARGEST)]  # too little, enough
    for turn in range(100):
        y = math.log(max(spent(math.exp(x)), 1e-12) / epsilon)
        bounds[y <= 0] = x
        if math.isfinite(y) and math.isfinite(last[1]) and x != last[0] and (y - last[1]) / (x - last[0]) < -0.01:
            slope = (y - last[1]) / (x - last[0])
        if y <= 0 and (-y / -slope <= 0.9 * tolerance or bounds[1] - bounds[0] <= tolerance):
            return math.exp(x), slope
        if x <= math.log(_SMALLEST) and y <= 0:
            message = f"ε = {epsilon:g} needs less noise than {_SMALLEST:g} times the clip norm."
            raise ConfigError(message, "Lower ε, or set the noise multiplier itself.")
        last, wanted = (x, y), x - y / slope + tolerance / 3
        # Downwards with care: at little noise ε is large, and with it the accountant's work.
        wanted = max(x - math.log(1.5), min(wanted, x + math.log(10.0)), math.log(_SMALLEST))
        low, high = bounds
        x = wanted if low < wanted < high and turn % 8 < 6 else (low + high) / 2
    message = f"No noise multiplier was found that spends ε = {epsilon:g}."
    raise AccountingError(message, "Set the noise multiplier itself, and report this.")


def calibrate(
    make: "Callable[[float], dp_accounting.DpEvent]",
    *,
    epsilon: float,
    delta: float,
    relation: Relation,
    interval: float = 1e-3,
) -> float:
    """The smallest noise multiplier σ (to 1e-4, relative) for which `make(σ)` spends at most `epsilon` at `delta`.

    ε(σ) ≤ `epsilon` holds for the σ returned, as `spend` computes it at the same `interval`.

    Raises `ConfigError` where no noise multiplier between 0.1 and a million does it.
    """
    _check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise ConfigError(f"`epsilon` is {epsilon}.", "It must be a positive number.")
    if _pld(make(_LARGEST), relation, interval).get_epsilon(delta) > epsilon:
        message = f"ε = {epsilon:g} is out of reach: noise {_LARGEST:g} times the clip norm still spends more."
        raise ConfigError(message, "Raise ε or δ, take fewer steps, or do not compose it with what was spent.")

    def by(width: float) -> Callable[[float], float]:
        return lambda sigma: float(_pld(make(sigma), relation, width).get_epsilon(delta))

    sigma, slope = _guess(make, (epsilon, delta), relation), -1.0
    # Wide intervals cost a tenth, and show where to look with narrow ones, unless they hide the losses altogether.
    for width in (w for w in (1e-2, 1e-3) if w > interval):
        with suppress(ConfigError, AccountingError):
            sigma, slope = _solve(by(width), epsilon, sigma, slope)
    sigma, slope = _solve(by(interval), epsilon, sigma, slope)
    if _upper(make(sigma), delta, relation, interval)[2] < interval:
        # Held against RDP, rounding was too coarse: `spend` refines it, so that less noise is enough.
        sigma, slope = _solve(lambda s: _upper(make(s), delta, relation, interval)[0], epsilon, sigma, slope)
    return sigma
