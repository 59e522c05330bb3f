"""What is compared, and how: scores of records and metrics of seeds against what they should be, by equivalence tests.

No torch is loaded: a certificate repeats all of it from stored scores.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict

import numpy as np

from sordino import stats
from sordino.errors import SordinoError
from sordino.results import UNBOUNDED, Columns, Comparison, Estimate, Margins, Outcome, Scores
from sordino.unlearn.measuring.measures import attack_scores, metrics_of

__all__ = ["MISSING", "compare_models", "compare_requests", "seed_metrics", "together"]

MISSING = "missing: "
"""How the definition of a comparison begins that could not be made."""

_SHARES = ("extraction_strength", "exact_memorisation", "rouge_l")
_DEFINITIONS = {
    "auc_calibrated": "AUC of base_loss − loss of forgotten against never-trained records, less ½",
    "loss_calibrated": "mean loss − base_loss (nats a token), forgotten less never-trained",
    "extraction_strength": "mean extraction strength, forgotten less never-trained",
    "exact_memorisation": "mean exact memorisation, forgotten less never-trained",
    "rouge_l": "mean ROUGE-L recall of generated text, forgotten less never-trained",
    "utility": "mean loss on validation records (nats a token), after less before; falling is no failure",
}
_SEED_DEFINITIONS = {
    "auc_calibrated": "AUC of base_loss − loss of forgotten against never-trained records",
    "loss": "mean loss of forgotten records (nats a token)",
    "extraction_strength": "mean extraction strength of forgotten records",
    "exact_memorisation": "mean exact memorisation of forgotten records",
    "rouge_l": "mean ROUGE-L recall of forgotten records",
    "utility": "mean loss on validation records (nats a token); falling is no failure",
}


def together(outcomes: Sequence[Outcome]) -> Outcome:
    """One outcome of several: fail if any is, else inconclusive if any is or there are none, else pass."""
    if "fail" in outcomes:
        return "fail"
    return "pass" if outcomes and set(outcomes) == {"pass"} else "inconclusive"


def _outcome(found: stats.Equivalence, margins: Margins, side: str) -> Outcome:
    if found.difference.value is None:
        return "inconclusive"
    if found.p_value <= margins.alpha:
        return "pass"
    above = found.difference.low > found.margin
    below = side == "both" and found.difference.high < -found.margin
    return "fail" if above or below else "inconclusive"


def _compared(metric: str, definition: str, found: stats.Equivalence, margins: Margins, side: str) -> Comparison:
    return Comparison(
        metric=metric,
        definition=definition,
        margin=found.margin,
        difference=Estimate(**asdict(found.difference)),
        p_value=found.p_value,
        power=found.power,
        detectable=found.detectable,
        outcome=_outcome(found, margins, side),
        side="above" if side == "above" else "both",
    )


def _missing(metric: str, definition: str, margin: float, why: str) -> Comparison:
    nothing = Estimate(value=None, low=-UNBOUNDED, high=UNBOUNDED, n=0, method="not measured")
    return Comparison(
        metric=metric, definition=f"{MISSING}{why} ({definition})", margin=margin, difference=nothing, p_value=1.0,
        power=0.0, detectable=None, outcome="inconclusive",
    )  # fmt: skip


def _values(columns: Columns, name: str) -> np.ndarray | None:
    """A column of as many finite numbers as there are subjects; else None."""
    values, subjects = (np.asarray(columns.get(n, ()), dtype=np.float64) for n in (name, "subject"))
    whole = values.size and values.size == subjects.size and np.isfinite(values).all() and np.isfinite(subjects).all()
    return values if whole else None


def compare_requests(before: Scores, after: Scores, margins: Margins) -> tuple[Comparison, ...]:
    """Forgotten records against those of never-trained subjects under the same model, and utility after against before.

    Losses are paired with the untuned model's on the same record, and those of validation records with the model's own
    before. All intervals are clustered by subject. What cannot be compared is there as "inconclusive", and says why.
    """
    made = [_auc(after, margins), _loss(after, margins)]
    asked = ["rouge_l"] * any("rouge_l" in columns for columns in (after.forget, after.never))
    made += [_share(name, after, margins) for name in (*_SHARES[:2], *asked)]
    return (*made, _utility(before, after, margins))


def _auc(after: Scores, margins: Margins) -> Comparison:
    name, definition = "auc_calibrated", _DEFINITIONS["auc_calibrated"]
    sides = (after.forget, after.never)
    if any(_values(columns, column) is None for columns in sides for column in ("loss", "base_loss")):
        return _missing(name, definition, margins.auc, "there are no calibrated losses of both kinds of records")
    scores = [attack_scores(sides[0], "forget", "calibrated"), attack_scores(sides[1], "never", "calibrated")]
    member = np.arange(sum(map(len, scores))) < len(scores[0])
    group = np.concatenate([np.asarray(columns["subject"]) for columns in sides])
    found = stats.auc_tost(np.concatenate(scores), member, margins.auc, group=group, alpha=margins.alpha)
    return _compared(name, definition, found, margins, "both")


def _loss(after: Scores, margins: Margins) -> Comparison:
    name, definition = "loss_calibrated", _DEFINITIONS["loss_calibrated"]
    sides = (after.forget, after.never)
    columns = [[_values(side, column) for column in ("loss", "base_loss")] for side in sides]
    if any(column is None for side in columns for column in side):
        return _missing(name, definition, margins.loss, "there are no calibrated losses of both kinds of records")
    first, second = (loss - base for loss, base in columns)  # type: ignore[operator]
    groups = (np.asarray(sides[0]["subject"]), np.asarray(sides[1]["subject"]))
    found = stats.welch_tost(first, second, margins.loss, groups=groups, alpha=margins.alpha)
    return _compared(name, definition, found, margins, "both")


def _share(name: str, after: Scores, margins: Margins) -> Comparison:
    margin, definition = getattr(margins, name), _DEFINITIONS[name]
    first, second = _values(after.forget, name), _values(after.never, name)
    if first is None or second is None:
        return _missing(name, definition, margin, "it was not measured on both kinds of records")
    groups = (np.asarray(after.forget["subject"]), np.asarray(after.never["subject"]))
    found = stats.welch_tost(first, second, margin, groups=groups, alpha=margins.alpha, bound=1.0)
    return _compared(name, definition, found, margins, "both")


def _utility(before: Scores, after: Scores, margins: Margins) -> Comparison:
    name, definition = "utility", _DEFINITIONS["utility"]
    first, second = _values(after.validation, "loss"), _values(before.validation, "loss")
    if first is None or second is None:
        return _missing(name, definition, margins.utility, "there are no losses of validation records")
    same = all(after.validation.get(n) == before.validation.get(n) for n in ("subject", "tokens"))
    if first.size != second.size or not same:
        return _missing(name, definition, margins.utility, "before and after are of different validation records")
    margin = margins.utility * float(second.mean())
    if not margin > 0:
        return _missing(name, definition, margins.utility, "the loss on validation records was 0 before")
    found = stats.paired_tost(
        first - second, margin, group=np.asarray(after.validation["subject"]), alpha=margins.alpha, side="above"
    )
    return _compared(name, f"{definition}; the margin is {margins.utility:g} of it before", found, margins, "above")


def seed_metrics(scores: Scores) -> dict[str, float]:
    """The figures of one seed's model by which methods are compared; those that cannot be had are left out."""
    try:
        found = metrics_of(scores)
    except SordinoError:
        return {}
    named = {name: found[name].value for name in _SEED_DEFINITIONS if name != "utility" and name in found}
    named["utility"] = found["validation_loss"].value if "validation_loss" in found else None
    return {name: value for name, value in named.items() if value is not None and math.isfinite(value)}


def compare_models(
    unlearned: Sequence[Mapping[str, float]], retrained: Sequence[Mapping[str, float]], margins: Margins
) -> tuple[Comparison, ...]:
    """Metrics of unlearned models against those of retrained ones, seed by seed; see `Qualification`.

    Both models of a seed have the same simulated request, so they are paired: what makes one request harder than
    another is in both, and requests differ more than seeds. The margin of utility is a share of the retrained mean.
    """
    asked = [name for name in _SEED_DEFINITIONS if name != "rouge_l" or any(name in seed for seed in retrained)]
    return tuple(_compared_seeds(name, unlearned, retrained, margins) for name in asked)


def _compared_seeds(
    name: str, unlearned: Sequence[Mapping[str, float]], retrained: Sequence[Mapping[str, float]], margins: Margins
) -> Comparison:
    definition = f"{_SEED_DEFINITIONS[name]}: unlearned less retrained model of the same request"
    margin = float(getattr(margins, {"auc_calibrated": "auc"}.get(name, name)))
    first, second = (np.array([seed.get(name, math.nan) for seed in seeds]) for seeds in (unlearned, retrained))
    if not first.size or first.size != second.size or not np.isfinite([first, second]).all():
        return _missing(name, definition, margin, "a seed has no such figure")
    side: stats.Side = "above" if name == "utility" else "both"
    margin = margin * float(second.mean()) if name == "utility" else margin
    if not margin > 0:
        return _missing(name, definition, margin, "the retrained models' loss on validation records is 0")
    found = stats.paired_tost(first - second, margin, alpha=margins.alpha, side=side)
    return _compared(name, definition, found, margins, side)
