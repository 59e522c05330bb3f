"""What a model still knows of records, from losses and ranks that were stored: no model is run, and no torch loaded.

TOFU's metrics (Maini et al. 2024, arXiv:2401.06121), those of MUSE (Shi et al. 2024, arXiv:2407.06460) and extraction
strength (Wang et al. 2024, arXiv:2410.21276). Losses are in nats.
"""

from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Num

from sordino.errors import AuditError

__all__ = [
    "ForgetQuality",
    "TruthRatio",
    "choice_probability",
    "exact_memorisation",
    "extraction_strength",
    "forget_quality",
    "model_utility",
    "priv_leak",
    "probability",
    "truth_ratio",
    "truth_ratio_mean",
]

_TINY = 1e-10

TruthRatio = Literal["closer to 1", "true better", "share"]
"""How truth ratios become one figure: three definitions circulate, and a report names the one it used.

"closer to 1" is of records to forget: mean min(TR, 1/TR), 1 where a model no longer tells true from false; "true
better" of records that stay: mean max(0, 1 − TR). "share" is mean 1 / (1 + TR), the true answer's probability of two.
"""


def probability(loss: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """exp(−nll / L) of each answer, whose mean loss a token is `loss`."""
    found: np.ndarray = np.exp(-np.asarray(loss, dtype=np.float64))
    return found


def choice_probability(
    true: Float[np.ndarray, " records"], false: Float[np.ndarray, "records wrong"]
) -> Float[np.ndarray, " records"]:
    """The probability of the true answer among the false ones: p / Σ p, each p = exp(−mean loss)."""
    mine, others = probability(true), probability(false)
    found: np.ndarray = mine / (mine + others.sum(axis=1) + _TINY)
    return found


def truth_ratio(
    paraphrased: Float[np.ndarray, " records"], perturbed: Float[np.ndarray, "records wrong"]
) -> Float[np.ndarray, " records"]:
    """TR = exp(−mean loss of the perturbed answers) / exp(−loss of the paraphrased one): false against true.

    Losses are means a token; the perturbed ones are averaged before exp, so TR is of geometric means.
    """
    found: np.ndarray = np.exp(-np.asarray(perturbed, dtype=np.float64).mean(axis=1)) / (
        probability(paraphrased) + _TINY
    )
    return found


def truth_ratio_mean(ratios: Float[np.ndarray, " records"], definition: TruthRatio) -> float:
    """One figure of truth ratios by a `definition`; NaN where there are none."""
    tr = np.asarray(ratios, dtype=np.float64)
    if not tr.size:
        return float("nan")
    if definition == "closer to 1":
        return float(np.minimum(tr, 1 / (tr + _TINY)).mean())
    return float((np.maximum(0, 1 - tr) if definition == "true better" else 1 / (1 + tr)).mean())


class ForgetQuality(NamedTuple):
    """The Kolmogorov–Smirnov test of truth ratios against a retrained model's: `p_value`, two-sided, and `statistic`.

    `smallest` is the smallest p-value that so many records can give: above the level, every model passes.
    """

    p_value: float
    statistic: float
    smallest: float


def forget_quality(
    ratios: Float[np.ndarray, " records"], retrained: Float[np.ndarray, " others"]
) -> ForgetQuality:  # fmt: skip
    """Are truth ratios of the unlearned model told from those of a model that never saw the records?

    A large p-value is no proof that they are alike (see `smallest`). Raises `AuditError` where one side is empty.
    """
    from scipy.stats import ks_2samp

    if not len(ratios) or not len(retrained):
        message = f"{len(ratios)} truth ratios are to be compared with {len(retrained)}."
        raise AuditError(message, "Both models need the losses of the same records.")
    found = ks_2samp(ratios, retrained)
    apart = ks_2samp(np.zeros(len(ratios)), np.ones(len(retrained)))
    return ForgetQuality(p_value=float(found.pvalue), statistic=float(found.statistic), smallest=float(apart.pvalue))


def model_utility(figures: Sequence[float]) -> float:
    """The harmonic mean of probabilities, ROUGE-L recalls and truth ratios on records that stay; 0 if one is 0.

    Raises `AuditError` for a figure that is missing: it is never taken for a good one.
    """
    from scipy.stats import hmean

    values = np.asarray(figures, dtype=np.float64)
    if not values.size or np.isnan(values).any() or (values < 0).any():
        message = f"The utility of a model cannot be had from {[float(v) for v in values]}."
        raise AuditError(message, "Every figure has to be measured, and is 0 or more.")
    return float(hmean(values)) if (values > 0).all() else 0.0


def extraction_strength(hit: Bool[np.ndarray, " T"]) -> float:
    """ES = 1 − k/T, k the fewest tokens after which all others are the likeliest ones; 0 where the last one is not.

    `hit` says of each scored token whether it is the likeliest after the true ones before it. NaN without tokens.
    """
    if not len(hit):
        return float("nan")
    wrong = np.flatnonzero(~hit)
    return 1.0 - (int(wrong[-1]) + 1 if wrong.size else 0) / len(hit)


def exact_memorisation(hit: Bool[np.ndarray, " T"]) -> float:
    """The share of tokens that are the likeliest after the true ones before them (Tirumala et al. 2022)."""
    return float(hit.mean()) if len(hit) else float("nan")


def priv_leak(auc: Num[np.ndarray, " n"] | float, retrained: Num[np.ndarray, " n"] | float) -> np.ndarray:
    """((1 − AUC) − (1 − AUC_ref)) / (1 − AUC_ref) · 100: AUC of attacks that tell forgotten from never-trained records.

    `retrained` is the AUC under a model that never saw the former. 0 is what is wanted; below 0 records are still
    known, above 0 forgetting has made them conspicuous. NaN where `retrained` is 1. Source: Shi et al. 2024.
    """
    ours, theirs = 1 - np.asarray(auc, dtype=np.float64), 1 - np.asarray(retrained, dtype=np.float64)
    with np.errstate(divide="ignore", invalid="ignore"):
        found: np.ndarray = np.where(theirs > 0, (ours - theirs) / theirs * 100, np.nan)
    return found
