"""Many p-values at once: Holm, Benjamini–Hochberg, and conformal p-values of single records."""

import numpy as np
from numpy.typing import ArrayLike

from sordino.errors import AuditError
from sordino.stats.common import Floats, check_numbers

__all__ = ["benjamini_hochberg", "conformal_p", "holm"]


def _check_p(p: ArrayLike) -> Floats:
    """`p` as a vector of p-values; else raises `AuditError`."""
    values = check_numbers("p-values", p)
    if values.size and (values.min() < 0 or values.max() > 1):
        worst = values.min() if values.min() < 0 else values.max()
        raise AuditError(f"A p-value is {worst:g}.", "p-values lie in [0, 1].")
    return values


def holm(p: ArrayLike) -> Floats:
    """p-values (n,) adjusted for the family-wise error. Holm, Scandinavian J. Statistics 6 (1979)."""
    values = _check_p(p)
    order = np.argsort(values, kind="stable")
    adjusted = np.empty_like(values)
    steps = np.arange(values.size, 0, -1) * values[order]
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 1.0)
    return adjusted


def benjamini_hochberg(p: ArrayLike) -> Floats:
    """p-values (n,) adjusted for the false discovery rate. Benjamini and Hochberg, JRSS B 57 (1995)."""
    values = _check_p(p)
    order = np.argsort(values, kind="stable")[::-1]
    adjusted = np.empty_like(values)
    steps = values[order] * values.size / np.arange(values.size, 0, -1)
    adjusted[order] = np.minimum(np.minimum.accumulate(steps), 1.0)
    return adjusted


def conformal_p(calibration: ArrayLike, scores: ArrayLike) -> Floats:
    """(1 + #{calibration ≥ score})/(n + 1) for each of `scores` (k,), against non-members (n,).

    A valid p-value of "this record is a non-member" if it is exchangeable with the calibration ones.
    Bates et al., Annals of Statistics 51 (2023).
    """
    known = np.sort(check_numbers("calibration scores", calibration))
    values = check_numbers("scores", scores)
    return np.asarray((1 + known.size - np.searchsorted(known, values, "left")) / (known.size + 1))
