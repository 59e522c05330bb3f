"""True positive rate at a false positive rate: in sample, and as audits report it, out of sample."""

import math
from dataclasses import replace

import numpy as np
from numpy.typing import ArrayLike

from sordino.errors import AuditError
from sordino.stats.common import (
    Bools,
    Floats,
    Interval,
    Ints,
    check_booleans,
    check_fraction,
    check_members,
    check_numbers,
    group_codes,
)
from sordino.stats.curves import operating_points
from sordino.stats.proportions import clopper_pearson, korn_graubard

__all__ = ["calibration_split", "three_way_split", "tpr_at_fpr", "tpr_at_fpr_in_sample"]

# A false positive rate is resolved by ten expected false positives on each side of the split.
RESOLUTION = 10


def tpr_at_fpr_in_sample(
    scores: ArrayLike, member: ArrayLike, fpr: float, confidence: float = 0.95
) -> tuple[Interval, Interval, float]:
    """Find the largest TPR with realised FPR ≤ `fpr` on one sample; optimistic, for comparisons with papers.

    Returns TPR, realised FPR and the threshold (score ≥ threshold is a guess of "member"; +inf
    guesses none). Clopper–Pearson limits take the threshold as given. Equal TPRs: the smallest FPR.
    """
    check_fraction("fpr", fpr, zero=True, one=True)
    values = check_numbers("scores", scores)
    labels = check_members(member, values.size)
    thresholds, tp, fp = operating_points(values, labels)
    best = int(np.argmax(np.where(fp <= fpr * fp[-1] + 1e-9, tp, -1)))
    tpr = clopper_pearson(int(tp[best]), int(tp[-1]), confidence)
    return tpr, clopper_pearson(int(fp[best]), int(fp[-1]), confidence), float(thresholds[best])


def calibration_split(member: ArrayLike, group: ArrayLike | None = None, seed: int = 0) -> Bools:
    """Which non-members set thresholds: half of their groups, whole, drawn from `seed`; (n,) booleans."""
    array = np.asarray(member, dtype=np.bool_)
    labels = check_members(array, array.size)
    codes, groups = group_codes(group, labels.size)
    outside = np.unique(codes[~labels])
    drawn = np.random.default_rng(seed).permutation(outside)[: outside.size // 2]
    chosen = np.zeros(groups, dtype=np.bool_)
    chosen[drawn] = True
    return np.asarray(chosen[codes] & ~labels)


def three_way_split(member: ArrayLike, group: ArrayLike | None = None, seed: int = 0) -> tuple[Bools, Bools]:
    """Who chooses an attack, and which non-members set its thresholds; two (n,) booleans, disjoint.

    A third of the groups of either kind choose, at least one; half of the other non-members calibrate.
    All else is judged. Groups stay whole, drawn from `seed`.
    """
    array = np.asarray(member, dtype=np.bool_)
    labels = check_members(array, array.size)
    codes, groups = group_codes(group, labels.size)
    rng = np.random.default_rng([abs(seed), 3])
    role = np.zeros(groups, dtype=np.int8)
    for kind in (labels, ~labels):
        drawn = rng.permutation(np.unique(codes[kind]))
        first = max(1, drawn.size // 3)
        role[drawn[:first]] = 1
        if kind is not labels:
            role[drawn[first : first + (drawn.size - first) // 2]] = 2
    return role[codes] == 1, role[codes] == 2


def _conformal_threshold(scores: Floats, codes: Ints, fpr: float) -> float:
    """Find the smallest score that leaves enough of the calibration non-members (n,) at or below it.

    Each of G groups weighs one, spread over its records, and one more is taken to lie above:
    weight above + 1 ≤ fpr (G + 1). With groups of one record this is the ⌈(G+1)(1−fpr)⌉-th order
    statistic; else P(a new group's record exceeds it) ≤ fpr (Lee, Barber and Willett 2023).
    """
    _, place, sizes = np.unique(codes, return_inverse=True, return_counts=True)
    values, at = np.unique(scores, return_inverse=True)
    weight = np.bincount(at, weights=1 / sizes[place])
    above = weight[::-1].cumsum()[::-1] - weight
    enough = np.flatnonzero(above + 1 <= fpr * (sizes.size + 1) + 1e-9)
    return float(values[enough[0]]) if enough.size else math.inf


def tpr_at_fpr(
    scores: ArrayLike,
    member: ArrayLike,
    calibration: ArrayLike,
    fpr: float,
    group: ArrayLike | None = None,
    confidence: float = 0.95,
) -> tuple[Interval, Interval, float]:
    """TPR and realised FPR of "score > threshold", the threshold set by other non-members.

    All arrays (n,). Non-members marked `calibration` set the threshold by the conformal rule, so that
    the expected FPR is at most `fpr`; the other non-members and all members are judged. Limits are
    Clopper–Pearson, or Korn–Graubard where groups hold several records. With fewer than 10/fpr
    groups of non-members on either side the TPR's value is None, and `needs` the number of them,
    split in halves, that would do. Returns TPR, realised FPR and threshold; raises `AuditError`
    where a group lies on both sides of the split.
    """
    check_fraction("fpr", fpr)
    check_fraction("confidence", confidence)
    values = check_numbers("scores", scores)
    labels = check_members(member, values.size)
    codes, _ = group_codes(group, values.size)
    held = check_booleans("calibration", calibration, values.size)
    held, judged = held & ~labels, ~held & ~labels
    shared = np.intersect1d(codes[held], codes[judged]).size
    if shared:
        raise AuditError(
            f"{shared} groups have records on both sides of the calibration split.",
            "Split whole groups: see calibration_split.",
        )
    threshold = _conformal_threshold(values[held], codes[held], fpr)
    tpr = korn_graubard(values[labels] > threshold, codes[labels], confidence)
    realised = korn_graubard(values[judged] > threshold, codes[judged], confidence)
    sides = [np.unique(codes[side]).size for side in (held, judged)]
    need = math.ceil(RESOLUTION / fpr - 1e-9)
    rule = f"threshold from {sides[0]} other non-members for FPR ≤ {fpr:g}"
    if min(sides) >= need:
        return replace(tpr, method=f"{tpr.method}; {rule}"), realised, threshold
    unresolved = Interval(
        value=None,
        low=0.0,
        high=1.0,
        n=sum(sides),
        method=f"non-members, half of them to set the threshold for FPR ≤ {fpr:g}",
        confidence=confidence,
        needs=2 * need,
    )
    return unresolved, realised, threshold
