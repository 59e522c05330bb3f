"""How many independent queries it takes to be given something once: in log space, as probabilities may be tiny."""

import math

import numpy as np
from jaxtyping import Float

from sordino.errors import AuditError, ConfigError

__all__ = ["log1mexp", "log10_queries", "queries", "within"]


def log1mexp(log_p: Float[np.ndarray, "..."] | float) -> np.ndarray:
    """ln(1 − e^x) of x ≤ 0: by expm1 near 0, by log1p far from it (Mächler 2012)."""
    with np.errstate(divide="ignore"):
        near = log_p > -math.log(2)
        return np.where(near, np.log(-np.expm1(np.where(near, log_p, -1.0))), np.log1p(-np.exp(np.minimum(log_p, 0))))


def _checked(log_p: np.ndarray | float) -> np.ndarray:
    found = np.asarray(log_p, dtype=np.float64)
    if (found > 0).any() or np.isnan(found).any():
        worst = found[(found > 0) | np.isnan(found)].flat[0]
        raise AuditError(f"A log-probability is {worst}.", "Give numbers of at most 0, or −∞ for what never comes.")
    return found


def within(log_p: Float[np.ndarray, "..."] | float, n: float) -> np.ndarray:
    """The probability that at least one of `n` samples is the target, where one is with probability e^`log_p`.

    1 − (1 − p)ⁿ as −expm1(n ln(1 − p)), which is not 0 where p is 1e-18. Source: Hayes et al. 2025, arXiv:2410.19482.
    """
    if n < 0:
        raise ConfigError(f"The number of queries is {n}.", "Give 0 or more.")
    found = _checked(log_p)
    if n == 0:
        return np.zeros_like(found)
    # Below e⁻⁷⁰⁰ the product n ln(1 − p) is −n p to the last digit, also where p is no normal number.
    tiny = found < -700
    exponent = np.where(tiny, -np.exp(np.minimum(math.log(n) + np.where(tiny, found, 0.0), 700)), n * log1mexp(found))
    return np.asarray(-np.expm1(exponent))


def queries(log_p: Float[np.ndarray, "..."] | float, wanted: float) -> np.ndarray:
    """The fewest samples among which the target is with probability `wanted`: whole, as floats, ∞ if it never comes.

    ⌈ln(1 − wanted) / ln(1 − p)⌉, at least 1. Above 2⁵³ rounded as floats are; beyond 1e308 it is ∞, and
    `log10_queries` tells. Source: Hayes et al. 2025, arXiv:2410.19482.
    """
    real = _log10(log_p, wanted)
    with np.errstate(divide="ignore", over="ignore"):
        exact = math.log1p(-wanted) / log1mexp(np.maximum(_checked(log_p), -40.0))
        far = 10.0 ** np.minimum(real, 400.0)
    return np.asarray(np.maximum(1.0, np.ceil(np.where(np.asarray(log_p) < -40, far, exact))))


def log10_queries(log_p: Float[np.ndarray, "..."] | float, wanted: float) -> np.ndarray:
    """log₁₀ of `queries`, also where that is beyond what floats hold; ∞ where the target never comes."""
    real = _log10(log_p, wanted)
    with np.errstate(divide="ignore"):
        return np.where(real < 15, np.log10(queries(log_p, wanted)), real)


def _log10(log_p: np.ndarray | float, wanted: float) -> np.ndarray:
    """log₁₀ of ln(1 − wanted) / ln(1 − p)."""
    if not 0 < wanted < 1:
        raise ConfigError(f"The wanted probability is {wanted}.", "Give one between 0 and 1, such as 0.5.")
    found = _checked(log_p)
    with np.errstate(divide="ignore"):
        # ln(−ln(1 − p)) is ln p where p is tiny.
        inner = np.where(found < -40, found, np.log(-log1mexp(np.maximum(found, -40.0))))
    return np.asarray((math.log(-math.log1p(-wanted)) - inner) / math.log(10))
