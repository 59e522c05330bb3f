"""From scores and labels to estimates: every membership attack, its control, and the strongest of them."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace

import numpy as np

from sordino import stats
from sordino.attacks.base import Attack, check, offered
from sordino.audit.identified import Identified, identify
from sordino.records import Example
from sordino.results import Attempt, AuditPlan, Curve, Estimate
from sordino.signals import Scores, Signals

__all__ = ["Evidence", "Outcome", "curve", "delta", "estimate", "evaluate", "noted", "rates", "score"]

_POINTS = 200


def estimate(interval: stats.Interval) -> Estimate:
    """An `Interval` as the schema's `Estimate`."""
    return Estimate(**asdict(interval))


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """Whose membership is judged: a label and a coin group a record, and what a coin is used for.

    `calibration` marks the half of the non-members that sets the thresholds of each attack's own figures.
    The headline needs three parts: coins that `choose` the strongest attack, non-members that
    `calibrate` it, and all others, on which it is reported.
    """

    member: np.ndarray
    group: np.ndarray
    calibration: np.ndarray
    choose: np.ndarray
    calibrate: np.ndarray

    @classmethod
    def of(cls, examples: Sequence[Example], seed: int) -> "Evidence":
        """The evidence that candidates give, split by `seed`."""
        member = np.array([e.included for e in examples], dtype=bool)
        _, group = np.unique([e.group for e in examples], return_inverse=True)
        half = stats.calibration_split(member, group, seed)
        choose, calibrate = stats.three_way_split(member, group, seed)
        return cls(member=member, group=group, calibration=half, choose=choose, calibrate=calibrate)

    def take(self, keep: np.ndarray) -> "Evidence":
        """The evidence of some records."""
        return Evidence(**{f.name: getattr(self, f.name)[keep] for f in fields(self)})

    def coin_scores(self, scores: Scores) -> tuple[np.ndarray, np.ndarray]:
        """One mean score and one label a coin."""
        codes, place = np.unique(self.group, return_inverse=True)
        counts = np.bincount(place, minlength=len(codes))
        means = np.bincount(place, weights=scores, minlength=len(codes)) / counts
        return means, np.bincount(place, weights=self.member, minlength=len(codes)) > 0


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """All membership attacks on one run: `scores` (attacks, records), ids of `records`, and what they come to.

    `control_scores` are those under the untuned model, None where there is none; `identified` is what the
    strongest attack says of single records.
    """

    records: tuple[str, ...]
    attempts: tuple[Attempt, ...]
    scores: np.ndarray
    control_scores: np.ndarray | None
    evidence: Evidence
    p_value: float
    strongest: str
    headline: Mapping[str, Estimate]
    identified: Identified
    unscored: int


def score(attack: Attack, signals: Signals) -> Scores:
    """The attack's scores on what it has declared of `signals`, checked."""
    return check(signals, attack(offered(attack, signals)), attack)


def evaluate(
    attacks: Mapping[str, Attack],
    signals: Signals,
    control: Signals | None,
    evidence: Evidence,
    plan: AuditPlan,
    seed: int,
) -> Outcome:
    """Run `attacks` on the tuned (`signals`) and the untuned model (`control`) and judge the scores.

    The p-value of each attack is adjusted for all (max-T). The strongest attack is the one with the
    best AUC on the coins that choose; the headline is what it does on the others.
    Records that some attack cannot score are left out of all and counted.
    """
    scores = np.stack([score(a, signals) for a in attacks.values()])
    controls = None if control is None else np.stack([score(a, control) for a in attacks.values()])
    keep = np.isfinite(scores).all(axis=0)
    if controls is not None:
        keep &= np.isfinite(controls).all(axis=0)
        controls = controls[:, keep]
    scores, judged = scores[:, keep], evidence.take(keep)
    overall, adjusted = stats.max_t(scores, judged.member, judged.group, plan.shuffles, seed)
    attempts = tuple(
        _attempt(attack, scores[i], None if controls is None else controls[i], judged, plan, float(adjusted[i]))
        for i, attack in enumerate(attacks.values())
    )
    strongest, headline = _strongest(list(attacks), scores, judged, plan)
    best = scores[list(attacks).index(strongest)]
    identified = identify(
        best, judged.member, judged.group, judged.calibrate, ~judged.choose & ~judged.calibrate, plan.confidence
    )
    return Outcome(
        records=tuple(r for r, kept in zip(signals.record_ids, keep, strict=True) if kept),
        attempts=attempts,
        scores=scores,
        control_scores=controls,
        evidence=judged,
        p_value=overall,
        strongest=strongest,
        headline={**headline, **identified.estimates},
        identified=identified,
        unscored=int((~keep).sum()),
    )


def noted(
    attempts: Sequence[Attempt], attacks: Mapping[str, Attack], notes: Mapping[str, Sequence[str]]
) -> tuple[Attempt, ...]:
    """`attempts` with the `notes` on the inputs that each attack read, by the input's name."""
    return tuple(
        replace(a, notes=(*a.notes, *(text for name in sorted(attacks[a.name].inputs) for text in notes.get(name, ()))))
        for a in attempts
    )


def rates(scores: Scores, evidence: Evidence, plan: AuditPlan) -> dict[str, Estimate]:
    """AUC with its DeLong interval, and TPR and realised FPR at thresholds set on other non-members."""
    found = {"auc": estimate(stats.delong(scores, evidence.member, evidence.group, plan.confidence, scale="logit"))}
    held = evidence.calibration
    for fpr in plan.fpr:
        tpr, realised, _ = stats.tpr_at_fpr(scores, evidence.member, held, fpr, evidence.group, plan.confidence)
        found[f"tpr@{fpr:g}fpr"] = estimate(tpr)
        if tpr.value is not None:
            found[f"realised fpr@{fpr:g}fpr"] = estimate(realised)
    return found


def delta(outcome: Outcome, names: Sequence[str], confidence: float) -> Estimate | None:
    """The AUC of an attack less its AUC on the untuned model, on the coins that did not choose it.

    Chosen is the best of `names`: attacks that do not themselves compare with the untuned model, on
    which those are at ½ by construction. None where there is no untuned model or no such attack.
    """
    rows = [i for i, attempt in enumerate(outcome.attempts) if attempt.name in names]
    if outcome.control_scores is None or not rows:
        return None
    evidence, choose = outcome.evidence, outcome.evidence.choose
    best = max(rows, key=lambda i: stats.auc(outcome.scores[i][choose], evidence.member[choose]))
    after, before = (scores[best][~choose] for scores in (outcome.scores, outcome.control_scores))
    other = evidence.take(~choose)
    found = estimate(stats.paired_delong(after, before, other.member, other.group, confidence).interval)
    return replace(found, method=f"{outcome.attempts[best].name}, {found.method}")


def curve(scores: Scores, member: np.ndarray) -> Curve:
    """The ROC curve of `scores`, thinned."""
    fpr, tpr = stats.thin(*stats.roc(scores, member), _POINTS)
    return Curve(fpr=tuple(fpr.tolist()), tpr=tuple(tpr.tolist()))


def _attempt(
    attack: Attack, scores: Scores, control: Scores | None, evidence: Evidence, plan: AuditPlan, p_value: float
) -> Attempt:
    return Attempt(
        name=attack.name,
        family="membership",
        summary=attack.summary,
        paper=attack.paper,
        access=attack.access,
        parameters={k: list(v) if isinstance(v, tuple) else v for k, v in attack.parameters.items()},
        estimates=rates(scores, evidence, plan),
        control={} if control is None else rates(control, evidence, plan),
        p_value=p_value,
        records=len(scores),
        coins=len(np.unique(evidence.group)),
        roc=curve(scores, evidence.member),
        control_roc=None if control is None else curve(control, evidence.member),
        level=attack.level,
    )


def _strongest(
    names: Sequence[str], scores: np.ndarray, evidence: Evidence, plan: AuditPlan
) -> tuple[str, dict[str, Estimate]]:
    choose = evidence.choose
    chosen = int(np.argmax([stats.auc(row[choose], evidence.member[choose]) for row in scores]))
    # Whoever chose the attack is judged by none of its figures and sets none of its thresholds: on its own
    # choosers the best of many attacks looks better than it is.
    other = evidence.take(~choose)
    headline = rates(scores[chosen][~choose], replace(other, calibration=other.calibrate), plan)
    nonmembers = len(np.unique(evidence.group[~evidence.member]))
    return names[chosen], {k: _in_thirds(v, nonmembers) for k, v in headline.items()}


def _in_thirds(found: Estimate, nonmembers: int) -> Estimate:
    """The same figure; where not resolvable, with what it takes when a third of the non-members chose the attack."""
    if found.value is not None or found.needs is None:
        return found
    method = found.method.replace("half of them to set", "a third of them to choose the attack and a third to set")
    return replace(found, n=nonmembers, needs=found.needs // 2 * 3, method=method)
