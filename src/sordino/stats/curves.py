"""ROC curves: every operating point of a score, and a thinned curve that a page can carry."""

import numpy as np
from numpy.typing import ArrayLike

from sordino.errors import AuditError
from sordino.stats.common import Bools, Floats, Ints, check_count, check_members, check_numbers

__all__ = ["roc", "thin"]


def operating_points(scores: Floats, member: Bools) -> tuple[Floats, Ints, Ints]:
    """Thresholds from +inf down to every distinct score, with the counts (tp, fp) of score ≥ threshold."""
    values, place = np.unique(scores, return_inverse=True)
    tp = np.bincount(place[member], minlength=values.size)[::-1].cumsum()
    fp = np.bincount(place[~member], minlength=values.size)[::-1].cumsum()
    return (
        np.concatenate([[np.inf], values[::-1]]),
        np.concatenate([[0], tp]).astype(np.int64),
        np.concatenate([[0], fp]).astype(np.int64),
    )


def roc(scores: ArrayLike, member: ArrayLike) -> tuple[Floats, Floats]:
    """Compute (FPR, TPR) at every distinct threshold, from (0, 0) to (1, 1); `AuditError` as in `auc`."""
    values = check_numbers("scores", scores)
    labels = check_members(member, values.size)
    _, tp, fp = operating_points(values, labels)
    return fp / fp[-1], tp / tp[-1]


def _corners(fpr: Floats, tpr: Floats) -> Ints:
    """Index all points but those inside a horizontal or vertical run, which no axis shows."""
    flat = (np.diff(fpr)[:-1] == 0) & (np.diff(fpr)[1:] == 0)
    flat |= (np.diff(tpr)[:-1] == 0) & (np.diff(tpr)[1:] == 0)
    return np.flatnonzero(np.concatenate([[True], ~flat, [True]])).astype(np.int64)


def thin(fpr: ArrayLike, tpr: ArrayLike, points: int = 200) -> tuple[Floats, Floats]:
    """At most `points` of a ROC's own points, chosen for logarithmic axes.

    Points inside straight runs go first, which changes nothing. If more are left, the highest TPR
    within each of a geometric series of FPRs stays, so that the leftmost corners all survive.
    """
    check_count("points", points, 10)
    x = check_numbers("fpr", fpr, finite=True)
    y = check_numbers("tpr", tpr, x.size, finite=True)
    if x.size < 2 or np.any(np.diff(x) < 0) or np.any(np.diff(y) < 0) or x[-1] <= 0:
        raise AuditError("The rates do not rise from left to right.", "Give a curve made by `roc`.")
    kept = _corners(x, y)
    if kept.size > points:
        grid = np.geomspace(x[x > 0][0], x[-1], points - 2)
        tops = np.searchsorted(x, np.concatenate([[0.0], grid]), "right") - 1
        kept = np.unique(np.concatenate([[0], tops])).astype(np.int64)
    return x[kept], y[kept]
