"""What scores of records say, with intervals: arithmetic that a certificate repeats, so no torch is loaded.

All intervals are clustered by "subject": records of one person are not independent.
"""

from dataclasses import asdict
from typing import Literal

import numpy as np
from jaxtyping import Float

from sordino import stats
from sordino.errors import UnlearningError
from sordino.results import UNBOUNDED, Columns, Estimate, Scores
from sordino.unlearn.measuring.metrics import priv_leak, probability

__all__ = ["SETS", "Attack", "Set", "attack_scores", "auc_against", "leak_against", "mean_of", "metrics_of"]

Set = Literal["forget", "never", "retain", "validation"]
"""The sets of records that `Scores` have."""

Attack = Literal["loss", "calibrated"]
"""What tells trained-on records from others: a low loss, or one that is low beside that of the untuned model."""

SETS: tuple[Set, ...] = ("forget", "never", "retain", "validation")
_MEANS = ("loss", "extraction_strength", "exact_memorisation", "rouge_l")
# Of PrivLeak, whose two AUCs are of the same records.
_RESAMPLES = 999


def metrics_of(scores: Scores, retrained: Scores | None = None) -> dict[str, Estimate]:
    """All metrics of a model: those of records to forget by their plain names, of other sets as "SET_NAME".

    "loss" (nats a token), "probability" (mean exp(−loss)), "extraction_strength", "exact_memorisation", "rouge_l" where
    text was generated; "auc" and "auc_calibrated" of forget against never; with the scores of a `retrained` model on
    the same records "priv_leak". Sets without a record have no metrics: what is missing is missed by who asks for it.
    """
    found: dict[str, Estimate] = {}
    for name in SETS:
        columns: Columns = getattr(scores, name)
        if not columns.get("loss"):
            continue
        before = "" if name == "forget" else f"{name}_"
        found |= {f"{before}{column}": mean_of(scores, name, column) for column in _MEANS if column in columns}
        found[f"{before}probability"] = mean_of(scores, name, "probability")
    if scores.forget.get("loss") and scores.never.get("loss"):
        found["auc"] = auc_against(scores)
        if scores.forget.get("base_loss") and scores.never.get("base_loss"):
            found["auc_calibrated"] = auc_against(scores, attack="calibrated")
        if retrained is not None:
            found["priv_leak"] = leak_against(scores, retrained)
    return found


def mean_of(scores: Scores, of: Set, column: str) -> Estimate:
    """The mean of a column over the records of a set; of "probability" the mean of exp(−loss).

    Raises `UnlearningError` where the set has no such column.
    """
    columns: Columns = getattr(scores, of)
    values = probability(_column(columns, of, "loss")) if column == "probability" else _column(columns, of, column)
    subject = _column(columns, of, "subject")
    if len(np.unique(subject)) == 1:
        # The mean is known; how far that of another subject would be from it is not.
        method = f"one subject of {values.size} records: no spread between subjects is seen"
        return Estimate(value=float(values.mean()), low=-UNBOUNDED, high=UNBOUNDED, n=1, method=method, needs=2)
    return _estimate(stats.mean_interval(values, subject))


def attack_scores(columns: Columns, of: Set, attack: Attack = "loss") -> Float[np.ndarray, " records"]:
    """One number a record, higher where it looks more like one that was trained on: −loss, or base_loss − loss."""
    loss = _column(columns, of, "loss")
    found: np.ndarray = -loss if attack == "loss" else _column(columns, of, "base_loss") - loss
    return found


def auc_against(scores: Scores, left: Set = "forget", right: Set = "never", attack: Attack = "loss") -> Estimate:
    """P(a record of `left` looks more trained on than one of `right`), DeLong's interval on the logit scale.

    0.5 is what never having been trained on gives. Raises `UnlearningError` where a set is empty.
    """
    inside, outside = (attack_scores(getattr(scores, of), of, attack) for of in (left, right))
    group = [_column(getattr(scores, of), of, "subject") for of in (left, right)]
    member = np.arange(len(inside) + len(outside)) < len(inside)
    return _estimate(
        stats.delong(np.concatenate([inside, outside]), member, np.concatenate(group), scale="logit"),
        f"{attack} attack",
    )


def leak_against(scores: Scores, retrained: Scores, attack: Attack = "loss") -> Estimate:
    """PrivLeak of forget against never (`metrics.priv_leak`), in percent; subjects are resampled for the interval.

    Both models must have been scored on the same records: they share the draws. None where the retrained model's AUC
    is 1, in the sample or in too many draws for an interval. Raises `UnlearningError` for other records.
    """
    for of in ("forget", "never"):
        ours, theirs = (_column(getattr(s, of), of, "subject") for s in (scores, retrained))
        if not np.array_equal(ours, theirs):
            message = f"The models were scored on different records to {of}: {len(ours)} and {len(theirs)}."
            raise UnlearningError(message, "Score both on the same deletion.")
    sides = [[attack_scores(getattr(s, of), of, attack) for of in ("forget", "never")] for s in (scores, retrained)]
    subjects = [_column(getattr(scores, of), of, "subject") for of in ("forget", "never")]
    rng, members = np.random.default_rng(0), [[np.flatnonzero(s == u) for u in np.unique(s)] for s in subjects]
    drawn = []
    for _ in range(_RESAMPLES):
        rows = [np.concatenate([held[i] for i in rng.integers(len(held), size=len(held))]) for held in members]
        drawn.append(_leak([[side[r] for side, r in zip(both, rows, strict=True)] for both in sides]))
    value, made = _leak(sides), np.array(drawn)
    method = f"PrivLeak by the {attack} attack: percentile bootstrap, {_RESAMPLES} resamples of subjects"
    count = min(len(held) for held in members)
    # Where one draw of forty has no value, neither end of the interval can be told.
    if not np.isfinite(value) or count < 2 or np.mean(~np.isfinite(made)) > 0.025:
        return Estimate(value=None, low=-UNBOUNDED, high=UNBOUNDED, n=count, method=method, needs=2)
    low, high = np.quantile(made[np.isfinite(made)], [0.025, 0.975])
    return Estimate(value=value, low=float(low), high=float(high), n=count, method=method)


def _leak(sides: list[list[np.ndarray]]) -> float:
    member = np.arange(len(sides[0][0]) + len(sides[0][1])) < len(sides[0][0])
    ours, theirs = (stats.auc(np.concatenate(both), member) for both in sides)
    return float(priv_leak(ours, theirs))


def _column(columns: Columns, of: Set, name: str) -> Float[np.ndarray, " records"]:
    values = np.asarray(columns.get(name, ()), dtype=np.float64)
    if not values.size:
        message = f"There is no score '{name}' of records of the set '{of}'."
        raise UnlearningError(message, "Score the model on all sets first.")
    if not np.isfinite(values).all():
        message = f"{int((~np.isfinite(values)).sum())} of {values.size} scores '{name}' of '{of}' are not numbers."
        raise UnlearningError(message, "Score the model again; what is not a number is no evidence.")
    return values


def _estimate(interval: stats.Interval, what: str = "") -> Estimate:
    named = asdict(interval)
    return Estimate(**{**named, "method": f"{what}: {named['method']}" if what else named["method"]})
