"""The gates: controls that decide what an audit may say."""

from collections.abc import Sequence

import numpy as np

from sordino import stats
from sordino.audit.blind import Blind
from sordino.audit.bounds import from_coins, value_of
from sordino.audit.claimed import Claimed
from sordino.audit.evaluate import Outcome
from sordino.audit.planted import Found
from sordino.results import AuditPlan, Estimate, Gate

__all__ = ["base_gate", "blind_gate", "bound_gate", "canary_gate", "lower_bound", "shuffle_gate"]

# A gate that fails one valid audit in a hundred.
_LEVEL = 0.01
_DRAWS = 200


def blind_gate(blind: Blind) -> Gate:
    """Gate (a): the texts alone do not tell who is a member."""
    return Gate(
        name="blind",
        question="Can members be told from non-members by their texts alone, without the model?",
        passed=blind.p_value >= _LEVEL,
        finding=(
            f"A classifier that never saw the model reached AUC {blind.auc:.3f} (p = {blind.p_value:.3g}); "
            f"the smallest AUC this sample can detect is about {blind.detectable_auc:.2f}."
        ),
        p_value=blind.p_value,
    )


def base_gate(outcome: Outcome, plan: AuditPlan, seed: int) -> Gate:
    """Gate (b): no attack works on the untuned model; one max-T permutation test over all attacks."""
    question = "Are all attacks at chance on the untuned model?"
    if outcome.control_scores is None:
        finding = (
            "There is no untuned model to compare with. So it was not ruled out that the members were easier texts "
            "all along, for any model, or that the model knew them before it was tuned."
        )
        return Gate(name="base", question=question, passed=None, finding=finding)
    p_value, _ = stats.max_t(
        outcome.control_scores,
        outcome.evidence.member,
        outcome.evidence.group,
        plan.shuffles,
        seed,
        "two-sided",
    )
    areas = [a.control["auc"].value or 0.5 for a in outcome.attempts]
    far = max(areas, key=lambda a: abs(a - 0.5))
    return Gate(
        name="base",
        question=question,
        passed=p_value >= _LEVEL,
        finding=f"The AUC farthest from ½ on the untuned model is {far:.3f} (max-T p = {p_value:.3g} over all).",
        p_value=p_value,
    )


def lower_bound(outcome: Outcome, plan: AuditPlan) -> tuple[Estimate, int, int]:
    """ε̂ of the pre-declared attack from one run, with the guesses made and those that were right."""
    row = [a.name for a in outcome.attempts].index(plan.headline)
    return from_coins(*outcome.evidence.coin_scores(outcome.scores[row]), plan)


def shuffle_gate(outcome: Outcome, plan: AuditPlan, seed: int, scores: np.ndarray | None = None) -> Gate:
    """Gate (c): with coins that mean nothing, ε̂ is above 0 no more often than it may be.

    `scores` (m) are those of the coins of the declared bound, where it is not from the candidates.
    """
    if scores is None:
        row = [a.name for a in outcome.attempts].index(plan.headline)
        scores, _ = outcome.evidence.coin_scores(outcome.scores[row])
    rng = np.random.default_rng([seed, 7])
    above = sum(value_of(scores, rng.random(len(scores)) < 0.5, plan) > 0 for _ in range(_DRAWS))
    level = 1 - plan.confidence
    limit = level + 2 * float(np.sqrt(level * plan.confidence / _DRAWS))
    return Gate(
        name="shuffles",
        question="Does the lower bound on ε stay at 0 when the coins are drawn anew?",
        passed=above / _DRAWS <= limit,
        finding=f"It was above 0 in {above} of {_DRAWS} draws; up to {limit:.1%} may be.",
    )


def canary_gate(
    found: Sequence[Found], planted: bool = True, task: str = "causal-lm", claim: Claimed | None = None
) -> Gate:
    """Gate (d): canaries trained on many times are found, so the instrument works on this model.

    Where none could be `planted`, as Sordino did not train the model, it cannot be judged, nor under
    differential privacy, where repetition counts nothing.
    """
    question = "Are canaries that were trained on many times more exposed than those left out?"
    if claim is not None:
        finding = (
            "Under differential privacy a canary counts once, however often it stands in the data: none need show."
        )
        return Gate(name="canaries", question=question, passed=None, finding=finding)
    if not planted:
        finding = "The model was trained elsewhere: no canaries of Sordino's are in its training data."
        return Gate(name="canaries", question=question, passed=None, finding=finding)
    if task == "classification":
        finding = "No canaries are planted for a classifier: nothing shows that its memory would be found."
        return Gate(name="canaries", question=question, passed=None, finding=finding)
    top = sorted({f.repetitions for f in found})[-2:]
    inside = [f.bits for f in found if f.included and f.repetitions in top]
    outside = [f.bits for f in found if not f.included]
    if len(inside) < 3 or len(outside) < 3:
        finding = f"{len(inside)} canaries in and {len(outside)} left out are too few to judge."
        return Gate(name="canaries", question=question, passed=None, finding=finding)
    from scipy.stats import mannwhitneyu

    p_value = float(mannwhitneyu(inside, outside, alternative="greater").pvalue)
    return Gate(
        name="canaries",
        question=question,
        passed=p_value < 0.05,
        finding=(
            f"Median exposure {np.median(inside):.1f} bits at {' and '.join(map(str, top))} repetitions against "
            f"{np.median(outside):.1f} bits left out (one-sided p = {p_value:.2g})."
        ),
        p_value=p_value,
    )


def bound_gate(bound: Estimate, claim: Claimed | None, confidence: float) -> Gate:
    """Gate (e): the one pre-declared lower bound does not exceed the ε that is claimed."""
    question = "Is the measured lower bound on ε within what is claimed?"
    said = f"ε ≥ {bound.value:.2f} at {confidence:.0%} confidence ({bound.method})"
    if claim is None:
        finding = f"No differential privacy is claimed. Measured: {said}."
        return Gate(name="bound", question=question, passed=None, finding=finding)
    if claim.epsilon is None:
        finding = f"Claimed {claim.words}. {claim.why} Measured, and not comparable: {said}."
        return Gate(name="bound", question=question, passed=None, finding=finding)
    falsified = (bound.value or 0.0) > claim.epsilon
    finding = (
        f"DP claim falsified: {said}, where at most {claim.epsilon:.3g} is claimed. The claim: {claim.words}."
        if falsified
        else f"Claimed {claim.words}; at the audit's δ, ε = {claim.epsilon:.3g}. Measured {said}."
    )
    return Gate(name="bound", question=question, passed=not falsified, finding=finding)
