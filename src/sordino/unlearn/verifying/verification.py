"""What may be said of a deletion that was carried out: pass, fail, or inconclusive, by the rule of its tier.

Everything here is arithmetic on stored scores, without torch, so that whoever holds a certificate can repeat it.
Evidence that is missing is never a pass, and a sample that cannot say leaves the outcome open and says what it takes.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from sordino import stats
from sordino.errors import SordinoError
from sordino.results import (
    Comparison,
    DeletionRequest,
    Estimate,
    Margins,
    Outcome,
    Qualification,
    Robustness,
    Row,
    Scores,
    Tier,
    Verification,
)
from sordino.unlearn.measuring.measures import metrics_of
from sordino.unlearn.verifying.comparing import MISSING, compare_models, compare_requests, together

__all__ = ["LEAST_SEEDS", "SHOWN", "Evidence", "recompute", "requalify", "verify"]

LEAST_SEEDS = 5
"""Of unlearned and of retrained models each; fewer leave a qualification open."""

SHOWN: Mapping[Tier, Mapping[str, str]] = {
    "exact": {
        "roots": "the roots of the manifests before and after",
        "absence": "that every record is absent from the manifest after",
        "weights": "the digests of what was trained anew, and on what",
    },
    "dp": {"capacity": "that the guarantee covers so many units"},
    "approximate": {},
}
"""What each tier has to show beside scores."""


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """What is known of a deletion beside scores: its `tier`, which of `SHOWN` hold, and what else was tried.

    `untried` are attacks that were to be made and could not, and why: they are evidence for nothing.
    """

    tier: Tier = "approximate"
    shown: Mapping[str, bool] = field(default_factory=dict)
    qualification: Qualification | None = None
    robustness: tuple[Robustness, ...] = ()
    untried: Mapping[str, str] = field(default_factory=dict)


Judged = tuple[Outcome, tuple[str, ...]]


def verify(
    request: DeletionRequest, before: Scores, after: Scores, evidence: Evidence, margins: Margins | None = None
) -> Verification:
    """The verification of `request` from the scores of its records before and after, by the rule of its tier.

    The rows of both controls, retraining and doing nothing, come from the qualification of the method.
    """
    qualification = evidence.qualification
    cited = () if qualification is None else tuple(r for r in qualification.rows if r.name in ("retrain", "do_nothing"))
    started = Verification(
        request=request.id,
        outcome="inconclusive",
        reasons=(),
        comparisons=(),
        rows=cited,
        robustness=tuple(evidence.robustness),
        untried=dict(evidence.untried),
        qualification=None if qualification is None else qualification.id,
        qualified=None if qualification is None else qualification.outcome,
        tier=evidence.tier,
        shown=dict(evidence.shown),
        margins=margins or Margins(),
    )
    return recompute(started, before, after)


def recompute(verification: Verification, before: Scores, after: Scores) -> Verification:
    """All that follows from the scores, again: comparisons, rows, outcome and reasons.

    Margins, the rows of the qualification, robustness and what was shown are taken as they are recorded.
    """
    measured = [("before", before), ("after", after)]
    rows = [Row(name=name, metrics=_metrics(scores)) for name, scores in measured]
    rows += _controls(verification, rows)
    found = replace(
        verification, comparisons=compare_requests(before, after, verification.margins), rows=tuple(rows)
    )  # fmt: skip
    judged = {"exact": _exact, "dp": _private, "approximate": _approximate}[found.tier](found)
    outcome, reasons = judged
    if found.tier == "approximate" and before.model == after.model:
        outcome, reasons = "fail", (*reasons, "The weights are those from before: nothing was done.")
    return replace(found, outcome=outcome, reasons=reasons)


def _controls(found: Verification, measured: Sequence[Row]) -> list[Row]:
    """Both controls, those of the qualification where it has them."""
    cited = {row.name: row for row in found.rows if row.name in ("retrain", "do_nothing") and row.source not in _MADE}
    if "retrain" not in cited and found.tier == "exact":
        cited["retrain"] = Row(name="retrain", metrics=measured[1].metrics, source=_AS_AFTER)
    cited.setdefault("do_nothing", Row(name="do_nothing", metrics=measured[0].metrics, source=_AS_BEFORE))
    return [cited[name] for name in ("retrain", "do_nothing") if name in cited]


_AS_AFTER = "by construction: the weights are those of a training without the records"
_AS_BEFORE = "the model before: nothing was done to it"
_MADE = (_AS_AFTER, _AS_BEFORE)


def _metrics(scores: Scores) -> Mapping[str, Estimate]:
    try:
        return metrics_of(scores)
    except SordinoError:
        return {}  # the comparisons say what is missing


def _exact(found: Verification) -> Judged:
    """Exact: it is shown what was trained anew and on what; of the statistics only utility is judged.

    They cannot contradict the proof: how far the losses of forgotten records are from others' is then chance.
    """
    rule = (
        "Exact tier: what counts is that the weights were trained without the records, and that utility is kept; "
        "other statistics are printed and not judged."
    )
    utility = [c for c in found.comparisons if c.metric == "utility"]
    return _ruled(rule, [_demanded(found), _compared(utility)])


def _private(found: Verification) -> Judged:
    """DP: the guarantee covers the units; the weights are those from before, so nothing else can be shown of them."""
    rule = (
        "DP tier: what counts is that the guarantee of the training covers all units deleted under it; statistics are "
        "printed and not judged."
    )
    return _ruled(rule, [_demanded(found)])


def _approximate(found: Verification) -> Judged:
    """Approximate: every comparison is within its margin, the method is qualified, and robustness was measured."""
    rule = (
        "Approximate tier: empirical, no guarantee; every comparison has to be within its margin, the method to be "
        "qualified against retraining, and robustness to be measured, with nothing that plainly comes back."
    )
    return _ruled(rule, [_demanded(found), _compared(found.comparisons), _qualified(found), _robust(found)])


def _ruled(rule: str, parts: Sequence[Judged]) -> Judged:
    return together([outcome for outcome, _ in parts]), (rule, *(reason for _, reasons in parts for reason in reasons))


def _demanded(found: Verification) -> Judged:
    outcomes: list[Outcome] = ["pass"]
    reasons = []
    for name, what in SHOWN[found.tier].items():
        if name not in found.shown:
            outcomes.append("inconclusive")
            reasons.append(f"It was not shown: {what}.")
        elif not found.shown[name]:
            outcomes.append("fail")
            reasons.append(f"It does not hold: {what}.")
    return together(outcomes), tuple(reasons)


def _compared(comparisons: Sequence[Comparison]) -> Judged:
    return together([one.outcome for one in comparisons]), tuple(
        _reason(one) for one in comparisons if one.outcome != "pass"
    )


def _reason(one: Comparison) -> str:
    if one.definition.startswith(MISSING):
        return f"{one.metric} is {one.definition}."
    limit = f"+{one.margin:.3g}" if one.side == "above" else f"± {one.margin:.3g}"
    if one.outcome == "fail":
        return f"{one.metric} is off by {one.difference}, beyond {limit}."
    takes = ""
    if one.difference.needs:
        takes = f": it takes {one.difference.needs:,} of each kind (subjects or seeds) for a power of 80 %"
    return f"{one.metric} is not shown to be within {limit} ({one.difference}; power {one.power:.0%}){takes}."


def _qualified(found: Verification) -> Judged:
    if found.qualification is None or found.qualified is None:
        return "inconclusive", ("No qualification of the method against retraining is cited.",)
    if not any(row.name == "retrain" and row.metrics for row in found.rows):
        return "inconclusive", ("The qualification that is cited has no retrained models.",)
    if found.qualified != "pass":
        return found.qualified, (f"The qualification of the method ended as {found.qualified}.",)
    return "pass", ()


def _robust(found: Verification) -> Judged:
    if not found.robustness:
        return "inconclusive", ("Robustness was not measured.",)
    empty = [one.name for one in found.robustness if not _resolved(one.estimate)]
    if empty:
        return "inconclusive", (f"Robustness has no figure for: {', '.join(empty)}.",)
    back = [one for one in found.robustness if one.name != _TOLD and one.estimate.low > found.margins.auc]
    if back:
        said = "; ".join(f"{one.name}: {one.estimate}" for one in back)
        return "fail", (f"What was forgotten comes back beyond {found.margins.auc:g} of AUC ({said}).",)
    if found.untried:
        why = " ".join(f"{name}: {reason}" for name, reason in found.untried.items())
        return "inconclusive", (f"Some robustness was not measured. {why}",)
    return "pass", ()


_TOLD = "two_checkpoints"
"""An attack on the deletion, not on forgetting: retraining has it as well. All others are differences of AUCs, above 0
where what was forgotten comes back."""


def _resolved(estimate: Estimate) -> bool:
    return estimate.value is not None and all(map(math.isfinite, (estimate.value, estimate.low, estimate.high)))


def requalify(qualification: Qualification) -> Qualification:
    """Comparisons, rows, outcome and reasons of a qualification, from the metrics of its seeds alone."""
    q = qualification
    comparisons = compare_models(q.unlearned, q.retrained, q.margins)
    outcome, reasons = _compared(comparisons)
    # Whatever two seeds show, they do not show how far seeds are apart.
    fewest = min(len(q.unlearned), len(q.retrained))
    if fewest < LEAST_SEEDS:
        reasons = (f"There are {fewest} seeds of unlearned and retrained models; it takes {LEAST_SEEDS}.", *reasons)
        outcome = "inconclusive"
    kinds = (("unlearned", q.unlearned), ("retrain", q.retrained), ("do_nothing", q.untouched))
    rows = tuple(Row(name=name, metrics=_means(seeds), source=_source(q, len(seeds))) for name, seeds in kinds)
    return replace(q, comparisons=comparisons, rows=rows, outcome=outcome, reasons=tuple(reasons))


def _source(found: Qualification, seeds: int) -> str:
    return f"qualification {found.id}: {seeds} seeds of simulated requests"


def _means(seeds: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """The mean of each metric that all seeds have, with a t interval over seeds, within what the metric can be."""
    names = [name for name in (seeds[0] if seeds else ()) if all(name in seed for seed in seeds)]
    made = {}
    for name in names:
        found = stats.mean_interval(np.array([seed[name] for seed in seeds]))
        # Losses have no end, all else is a share; an interval without a value has no limits either.
        most = found.high if found.value is None or name in ("loss", "utility") else min(1.0, found.high)
        least = found.low if found.value is None else max(0.0, found.low)
        made[name] = Estimate(
            value=found.value, low=least, high=most, n=found.n, method=f"{found.method} over seeds",
            confidence=found.confidence, needs=found.needs,
        )  # fmt: skip
    return made
