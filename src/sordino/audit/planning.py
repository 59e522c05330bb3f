"""How much evidence a wanted figure takes, before there is a run: the table of `sordino audit --plan`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from sordino.errors import ConfigError
from sordino.stats.power import (
    MOST_COINS,
    Goal,
    coins_for_bound,
    gaussian_accuracy,
    gdp_from_epsilon,
    members_for_tpr,
    nonmembers_for_fpr,
    records_for_auc,
    response_accuracy,
)

__all__ = ["Need", "Wanted", "needs"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What an audit is to be able to say, with probability `power`.

    ε̂ ≥ `epsilon` at `delta` where the truth is `truth` (None: twice `epsilon`); a TPR of `tpr` at `fpr` with
    an interval of ± half of it; an attack of AUC `auc` told from chance.
    """

    epsilon: float = 2.0
    truth: float | None = None
    delta: float = 1e-5
    fpr: float = 0.01
    tpr: float = 0.1
    auc: float = 0.55
    power: float = 0.8
    confidence: float = 0.95


@dataclass(frozen=True, kw_only=True)
class Need:
    """One wanted figure and the evidence it takes; None where it needs none of a kind, or no number suffices.

    `members` are trained on and `nonmembers` held out; of `coins` each decides about one of them. `how`
    says on what that rests.
    """

    wanted: str
    members: int | None
    nonmembers: int | None
    coins: int | None
    how: str


def needs(wanted: Wanted) -> tuple[Need, ...]:
    """The evidence that every figure of `wanted` takes; raises `ConfigError` for what cannot be meant."""
    return (*_bounds(wanted), *_rates(wanted), *_areas(wanted))


def _bounds(w: Wanted) -> list[Need]:
    truth = 2 * w.epsilon if w.truth is None else w.truth
    if truth <= w.epsilon:
        message = f"The true ε is {truth:g}, which is not above the {w.epsilon:g} that is to be shown."
        raise ConfigError(message, "No lower bound reaches the truth: raise --truth, or lower --epsilon.")
    gaussian = partial(gaussian_accuracy, gdp_from_epsilon(truth, w.delta))
    return [
        _bound(w, "one-run", lambda share: response_accuracy(truth), f"randomised response of ε = {truth:g}"),
        _bound(w, "one-run", gaussian, f"Gaussian noise of ε = {truth:g}"),
        _bound(w, "f-dp", gaussian, f"Gaussian noise of ε = {truth:g}"),
    ]


def _bound(w: Wanted, bound: Literal["one-run", "f-dp"], accuracy: Callable[[float], float], truth: str) -> Need:
    goal = Goal(epsilon=w.epsilon, delta=w.delta, bound=bound, confidence=w.confidence)
    found = coins_for_bound(goal, accuracy, w.power)
    name = f"ε̂ ≥ {w.epsilon:g} at δ = {w.delta:g} (audit.bound: {bound})"
    if found is None:
        how = f"{truth}: not with {MOST_COINS:,} coins"
        return Need(wanted=name, members=None, nonmembers=None, coins=None, how=how)
    how = f"{truth}; audit.guess_share: {found.share:g}; power {found.power:.2f}"
    half = -(-found.m // 2)
    return Need(wanted=name, members=half, nonmembers=half, coins=found.m, how=how)


def _rates(w: Wanted) -> list[Need]:
    members = members_for_tpr(w.tpr, w.tpr / 2, w.confidence)
    name = f"a TPR of {w.tpr:g} ± {w.tpr / 2:g} at {w.fpr:g} FPR"
    return [
        _records(f"{name}, one attack", members, nonmembers_for_fpr(w.fpr), "non-members in halves: threshold, judged"),
        _records(
            f"{name}, the strongest",
            -(-members * 3 // 2),
            nonmembers_for_fpr(w.fpr, 3),
            "non-members in thirds: choice, threshold, judged; a third of the members choose",
        ),
    ]


def _areas(w: Wanted) -> list[Need]:
    count = records_for_auc(w.auc, w.power, 1 - w.confidence)
    more = -(-count * 3 // 2)
    name = f"AUC {w.auc:g} told from chance"
    return [
        _records(f"{name}, one attack", count, count, f"one-sided test; power {w.power:g}"),
        _records(f"{name}, the strongest", more, more, f"the same; a third choose; power {w.power:g}"),
    ]


def _records(name: str, members: int, nonmembers: int, how: str) -> Need:
    # A fair coin gives as many of one kind as of the other.
    return Need(wanted=name, members=members, nonmembers=nonmembers, coins=2 * max(members, nonmembers), how=how)
