"""Attacks on the whole data set: learned on one half of the coins, tested once on the other."""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from scipy.stats import ttest_ind

from sordino import stats
from sordino.attacks.base import Attack, check, offered
from sordino.audit.evaluate import Evidence, Outcome, curve, estimate
from sordino.results import Attempt, AuditPlan
from sordino.signals import Known, Scores, Signals, Statistics

__all__ = ["attempts_on_the_set"]


def attempts_on_the_set(attacks: Mapping[str, Attack], outcome: Outcome, plan: AuditPlan, seed: int) -> list[Attempt]:
    """Carry out the `attacks` of level "dataset" on the scores of all others.

    They learn from one half of the coins, drawn from `seed`. Their p-value is of one test on the other half,
    members' coins against non-members' (one-sided Welch), and not adjusted for other attacks.
    """
    evidence = outcome.evidence
    sides = (evidence.member, ~evidence.member)
    learned = np.logical_or(*(stats.calibration_split(side, evidence.group, seed) for side in sides))
    return [_attempt(attack, outcome, learned, plan) for attack in attacks.values()]


def _bare(scores: np.ndarray) -> Signals:
    """Signals that hold nothing but `scores` (records, attacks)."""
    names, none = tuple(map(str, range(len(scores)))), np.empty(0)
    whole = none.astype(np.int32)
    statistics = Statistics(
        offsets=np.zeros(len(scores) + 1, dtype=np.int64), position=whole, token=whole, logprob=none, mean=none,
        variance=none, rank=whole, top=whole,
    )  # fmt: skip
    return Signals(record_ids=names, texts=names, statistics=statistics, measured={"scores": scores})


def _judged(attack: Attack, scores: np.ndarray, learned: np.ndarray, evidence: Evidence) -> Scores:
    """The attack's scores of the half that it has not `learned` from; `scores` are (attacks, records)."""
    known = Known(signals=_bare(scores.T[learned]), member=evidence.member[learned])
    signals = replace(_bare(scores.T[~learned]), known=known)
    return check(signals, attack(offered(attack, signals)), attack)


def _attempt(attack: Attack, outcome: Outcome, learned: np.ndarray, plan: AuditPlan) -> Attempt:
    evidence, other, control = outcome.evidence, outcome.evidence.take(~learned), outcome.control_scores
    found = _judged(attack, outcome.scores, learned, evidence)
    before = None if control is None else _judged(attack, control, learned, evidence)
    coins, inside = other.coin_scores(found)
    # Scores that do not differ at all test nothing.
    p_value = 1.0
    if np.ptp(coins) > 0:
        p_value = float(ttest_ind(coins[inside], coins[~inside], equal_var=False, alternative="greater").pvalue)

    def area(scores: Scores) -> dict[str, object]:
        return {"auc": estimate(stats.delong(scores, other.member, other.group, plan.confidence, scale="logit"))}

    return Attempt(
        name=attack.name,
        family="membership",
        summary=attack.summary,
        paper=attack.paper,
        access=attack.access,
        parameters=attack.parameters,
        estimates=area(found),  # type: ignore[arg-type]
        control={} if before is None else area(before),  # type: ignore[arg-type]
        p_value=p_value,
        records=len(found),
        coins=len(coins),
        roc=curve(found, other.member),
        control_roc=None if before is None else curve(before, other.member),
        level=attack.level,
        notes=("One test on the half of the records that the weights were not learned from; not adjusted for others.",),
    )
