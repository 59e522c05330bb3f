"""What a guarantee for one unit is worth to a group of units: exact where that is a theorem, else a bound."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sordino.dp.accounting import Relation, spend
from sordino.dp.events import leaves
from sordino.errors import ConfigError

if TYPE_CHECKING:
    import dp_accounting

__all__ = ["GroupSpent", "gaussian_delta", "gaussian_mu", "generic_group", "group"]


@dataclass(frozen=True, kw_only=True)
class GroupSpent:
    """The guarantee for a group of `size` units; `method` says which theorem it is from."""

    size: int
    epsilon: float
    delta: float
    method: str


def gaussian_mu(event: "dp_accounting.DpEvent", relation: Relation) -> float | None:
    """μ of Gaussian DP (Dong et al. 2019, arXiv:1905.02383, corollary 3.3); None for anything sampled."""
    import dp_accounting

    steps = leaves(event)
    if not steps or not all(isinstance(step, dp_accounting.GaussianDpEvent) for step in steps):
        return None
    sensitivity = 2.0 if relation == "replace-one" else 1.0
    return sensitivity * math.sqrt(sum(count / step.noise_multiplier**2 for step, count in steps.items()))


def gaussian_delta(mu: float, epsilon: float) -> float:
    """δ of a μ-GDP mechanism at ε: Φ(−ε/μ + μ/2) − e^ε Φ(−ε/μ − μ/2) (Balle & Wang 2018, theorem 8)."""
    from scipy.special import log_ndtr

    first = float(log_ndtr(-epsilon / mu + mu / 2))
    second = epsilon + float(log_ndtr(-epsilon / mu - mu / 2))
    # The difference in logarithms: both terms underflow, or agree in most digits, long before it is zero.
    return math.exp(first) * -math.expm1(min(0.0, second - first))


def generic_group(epsilon: float, delta: float, size: int) -> tuple[float, float]:
    """(kε, δ(e^{kε} − 1)/(e^ε − 1)): what any (ε, δ) guarantee gives groups of k (Vadhan 2017, lemma 2.2).

    Another guarantee at another δ, which may exceed 1: then it says nothing.
    """
    if epsilon == 0:
        return 0.0, size * delta
    try:
        return size * epsilon, delta * math.expm1(size * epsilon) / math.expm1(epsilon)
    except OverflowError:
        return size * epsilon, math.inf


def group(event: "dp_accounting.DpEvent", size: int, *, delta: float, relation: Relation) -> GroupSpent:
    """The guarantee for `size` units at once.

    Exact for Gaussian noise without sampling, where a group of k is kμ-GDP (Dong et al. 2019, theorem 2.14);
    else the generic bound, at the δ it comes with. Raises `ConfigError` for a size below 1.
    """
    import dp_accounting

    if not 0 < delta < 1:
        raise ConfigError(f"`delta` is {delta}.", "It must be in (0, 1).")
    if size < 1:
        raise ConfigError(f"`size` is {size}.", "A group has at least one unit.")
    mu = gaussian_mu(event, relation)
    if mu is not None:
        epsilon = float(dp_accounting.get_epsilon_gaussian(1 / (size * mu), delta))
        return GroupSpent(size=size, epsilon=epsilon, delta=delta, method=f"exact: {size}μ-GDP, μ = {mu:.6g}")
    spent = spend(event, delta=delta, relation=relation)
    epsilon, wider = generic_group(spent.epsilon, delta, size)
    return GroupSpent(size=size, epsilon=epsilon, delta=wider, method="generic bound on (ε, δ), at another δ")
