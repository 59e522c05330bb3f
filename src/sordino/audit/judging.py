"""How many of some records come out: shares of members and non-members, and the difference that decides."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sordino import stats
from sordino.attacks.base import Attack
from sordino.audit.evaluate import Evidence, estimate
from sordino.results import Attempt, Estimate

__all__ = ["Judge", "attempted", "difference"]


def attempted(attack: Attack, **found: Any) -> Attempt:
    """The `Attempt` of an extraction `attack`: what it is, and what was `found`."""
    return Attempt(
        name=attack.name, family="extraction", summary=attack.summary, paper=attack.paper, access=attack.access,
        p_value=None, **found,
    )  # fmt: skip


_DRAWN = 41


def difference(first: Estimate, second: Estimate) -> Estimate:
    """The difference of two independent shares with Newcombe's interval (1998, method 10)."""
    a, b = first.value or 0.0, second.value or 0.0
    low = a - b - math.hypot(a - first.low, second.high - b)
    high = a - b + math.hypot(first.high - a, b - second.low)
    return Estimate(
        value=a - b, low=max(-1.0, low), high=min(1.0, high), n=min(first.n, second.n),
        method="Newcombe's interval for a difference", confidence=first.confidence,
    )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Judge:
    """Who was trained on, the `confidence` of shares, and that of the excess, which is `decisive`.

    The excess of any of several attacks is called a leak, so each is held to a confidence at which all their
    intervals hold together.
    """

    evidence: Evidence
    confidence: float
    decisive: float

    @classmethod
    def of(cls, evidence: Evidence, confidence: float, attacks: int) -> "Judge":
        """The judge of so many attacks (Bonferroni)."""
        return cls(evidence=evidence, confidence=confidence, decisive=1 - (1 - confidence) / max(1, attacks))

    def drawn(self, possible: np.ndarray, most: int, seed: int) -> np.ndarray:
        """The numbers of at most so many of the `possible` records on either side, in order."""
        rng, found = np.random.default_rng([seed, _DRAWN]), []
        for side in (self.evidence.member, ~self.evidence.member):
            found.append(rng.permutation(np.flatnonzero(side & possible))[:most])
        return np.sort(np.concatenate(found))

    def coins(self, possible: np.ndarray) -> int:
        """How many coins decided about the records that are `possible`."""
        return len(np.unique(self.evidence.group[possible])) if possible.any() else 0

    def share(self, hit: np.ndarray, chosen: np.ndarray, confidence: float | None = None) -> Estimate:
        """The share of the `chosen` records that are `hit`, with an interval that heeds whose they are."""
        if not chosen.any():
            return Estimate(value=None, low=0.0, high=1.0, n=0, method="records long enough to be tried", needs=1)
        return estimate(stats.korn_graubard(hit[chosen], self.evidence.group[chosen], confidence or self.confidence))

    def shares(self, hit: np.ndarray, possible: np.ndarray) -> dict[str, Estimate]:
        """Of the `possible` records: the share of members and of non-members that are `hit`, and the excess."""
        sides = (possible & self.evidence.member, possible & ~self.evidence.member)
        members, others = (self.share(hit, side) for side in sides)
        wide = (self.share(hit, side, self.decisive) for side in sides)
        return {"rate": members, "non-members": others, "excess": difference(*wide)}
