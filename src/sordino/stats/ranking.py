"""How well scores rank members above non-members: AUC, DeLong intervals, smallest detectable AUC."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtr, ndtri

from sordino.errors import ConfigError
from sordino.stats.common import (
    Bools,
    Floats,
    Interval,
    Ints,
    check_count,
    check_fraction,
    check_members,
    check_numbers,
    group_codes,
    group_sums,
    largest,
)

__all__ = ["AucError", "PairedDifference", "auc", "auc_error", "delong", "paired_delong", "smallest_detectable_auc"]

# Below this a variance is rounding: one placement off by one rank gives more, up to 10^6 records.
NO_VARIANCE = 1e-26


@dataclass(frozen=True, kw_only=True)
class PairedDifference:
    """The AUC of one score minus that of another on the same records, with its two-sided test."""

    difference: float
    se: float
    z: float
    p_value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True)
class AucError:
    """An AUC, its standard `error` (0 where none can be estimated) with `df`, and the members' and others' `groups`."""

    value: float
    error: float
    df: float
    groups: tuple[int, int]


def _doubled_placements(scores: Floats, member: Bools) -> tuple[Ints, Ints]:
    """Twice the number of opponents each member beats and each non-member loses to; ties count one."""
    inside, outside = scores[member], scores[~member]
    below, above = np.sort(outside), np.sort(inside)
    wins = np.searchsorted(below, inside, "left") + np.searchsorted(below, inside, "right")
    beaten = np.searchsorted(above, outside, "left") + np.searchsorted(above, outside, "right")
    return wins.astype(np.int64), (2 * inside.size - beaten).astype(np.int64)


def _placements(scores: Floats, member: Bools) -> tuple[Floats, float]:
    """Placement values (n,), members' and non-members' in their own places, and the AUC, their mean."""
    wins, losses = _doubled_placements(scores, member)
    values = np.empty(scores.size)
    values[member] = wins / (2 * losses.size)
    values[~member] = losses / (2 * wins.size)
    return values, float(wins.sum() / (2 * wins.size * losses.size))


def auc(scores: ArrayLike, member: ArrayLike) -> float:
    """P(member scores above non-member) + P(tie)/2, the Mann–Whitney statistic; O(n log n).

    `scores` (n,) higher for likelier members, `member` (n,) booleans. Raises `AuditError` for NaN or
    where one kind is missing.
    """
    values = check_numbers("scores", scores)
    return _placements(values, check_members(member, values.size))[1]


def _clustered_variance(placements: Floats, centre: float, member: Bools, codes: Ints, groups: int) -> float:
    """Obuchowski's variance of an AUC (or of a difference of AUCs); 0 where it cannot be estimated.

    Residuals are summed per group and kind; with one record per group this is DeLong's variance.
    """
    residual = placements - centre
    total = 0.0
    sums = []
    for kind in (member, ~member):
        count = int(np.count_nonzero(kind))
        held = np.unique(codes[kind]).size
        if held < 2:
            return 0.0
        sums.append(group_sums(np.where(kind, residual, 0.0), codes, groups) / count)
        total += held / (held - 1) * float(sums[-1] @ sums[-1])
    return total + 2 * groups / (groups - 1) * float(sums[0] @ sums[1])


def _disjoint_pairs(member: Bools, codes: Ints, groups: int) -> int:
    """How many pairs of a member's and a non-member's group can be formed that share no group."""
    return min(np.unique(codes[member]).size, np.unique(codes[~member]).size, groups // 2)


def _without_variance(value: float, pairs: int, confidence: float) -> tuple[float, float, str]:
    """Limits of an AUC whose estimated variance is 0, from `pairs` independent member/non-member pairs.

    At AUC 1 all of them are in order, so AUC ≥ (α/2)^(1/pairs) (Clopper–Pearson); elsewhere
    Hoeffding's inequality for U-statistics (JASA 58, 1963, §5). Exact for groups of one record.
    """
    tail = (1 - confidence) / 2
    if pairs and value in (0.0, 1.0):
        bound = tail ** (1 / pairs)
        low, high = (bound, 1.0) if value else (0.0, 1 - bound)
        return low, high, f"no variance to estimate: Clopper–Pearson on {pairs} disjoint pairs"
    reach = math.sqrt(-math.log(tail) / (2 * pairs)) if pairs else 1.0
    method = f"no variance to estimate: Hoeffding on {pairs} disjoint pairs"
    return max(0.0, value - reach), min(1.0, value + reach), method


def auc_error(scores: ArrayLike, member: ArrayLike, group: ArrayLike | None = None) -> AucError:
    """The AUC with its clustered standard error and Satterthwaite's degrees of freedom, for tests by t.

    All (n,). For groups of one record they are those of Brunner and Munzel, Biometrical Journal 42 (2000); with groups,
    groups stand for records.
    """
    values = check_numbers("scores", scores)
    labels = check_members(member, values.size)
    codes, groups = group_codes(group, values.size)
    placements, value = _placements(values, labels)
    held = tuple(np.unique(codes[kind]).size for kind in (labels, ~labels))
    variance = _clustered_variance(placements, value, labels, codes, groups)
    if variance < NO_VARIANCE:
        return AucError(value=value, error=0.0, df=math.inf, groups=(held[0], held[1]))
    parts = []
    for kind, count in zip((labels, ~labels), held, strict=True):
        sums = group_sums(np.where(kind, placements - value, 0.0), codes, groups) / int(np.count_nonzero(kind))
        parts.append(count / (count - 1) * float(sums @ sums))
    df = sum(parts) ** 2 / sum(part**2 / (count - 1) for part, count in zip(parts, held, strict=True))
    return AucError(value=value, error=math.sqrt(variance), df=df, groups=(held[0], held[1]))


def delong(
    scores: ArrayLike,
    member: ArrayLike,
    group: ArrayLike | None = None,
    confidence: float = 0.95,
    scale: Literal["wald", "logit"] = "wald",
) -> Interval:
    """Estimate the AUC with DeLong's interval, clustered where records share a coin; n counts groups.

    `scores`, `member`, `group` (n,). `scale` "wald" clips to [0, 1]; "logit" works on log odds. Where the
    variance is 0 (AUC 0 or 1, all tied, one group) a conservative interval takes its place and
    `method` says so. DeLong et al., Biometrics 44 (1988); Obuchowski, Biometrics 53 (1997), eq. 3–4.
    """
    check_fraction("confidence", confidence)
    if scale not in ("wald", "logit"):
        raise ConfigError(f"scale is '{scale}'.", "Choose 'wald' or 'logit'.")
    values = check_numbers("scores", scores)
    labels = check_members(member, values.size)
    codes, groups = group_codes(group, values.size)
    placements, value = _placements(values, labels)
    variance = _clustered_variance(placements, value, labels, codes, groups)
    method = "DeLong" if groups == values.size else f"DeLong, clustered: {values.size} records"
    reach = float(ndtri((1 + confidence) / 2)) * math.sqrt(max(variance, 0.0))
    if variance < NO_VARIANCE:
        pairs = _disjoint_pairs(labels, codes, groups)
        low, high, method = _without_variance(value, pairs, confidence)
    elif scale == "logit":
        odds, reach = value / (1 - value), math.exp(reach / (value * (1 - value)))
        low, high = odds / (odds + reach), odds * reach / (1 + odds * reach)
        method += ", logit scale"
    else:
        low, high = max(0.0, value - reach), min(1.0, value + reach)
    return Interval(value=value, low=low, high=high, n=groups, method=method, confidence=confidence)


def paired_delong(
    scores_a: ArrayLike,
    scores_b: ArrayLike,
    member: ArrayLike,
    group: ArrayLike | None = None,
    confidence: float = 0.95,
) -> PairedDifference:
    """AUC of `scores_a` minus AUC of `scores_b` on the same records: se, z, two-sided p, interval.

    All (n,). The variance is that of the difference of placement values, clustered as in `delong`.
    Where it is 0 the interval and the p-value are Hoeffding's, and z is 0 or infinite.
    """
    check_fraction("confidence", confidence)
    first = check_numbers("scores_a", scores_a)
    second = check_numbers("scores_b", scores_b, first.size)
    labels = check_members(member, first.size)
    codes, groups = group_codes(group, first.size)
    (placed_a, auc_a), (placed_b, auc_b) = _placements(first, labels), _placements(second, labels)
    value = auc_a - auc_b
    variance = _clustered_variance(placed_a - placed_b, value, labels, codes, groups)
    if variance < NO_VARIANCE:
        pairs = _disjoint_pairs(labels, codes, groups)
        tail = (1 - confidence) / 2
        se, z = 0.0, math.copysign(math.inf, value) if value else 0.0
        p_value = min(1.0, 2 * math.exp(-pairs * value**2 / 2))
        reach = math.sqrt(-2 * math.log(tail) / pairs) if pairs else 2.0
        method = f"no variance to estimate: Hoeffding on {pairs} disjoint pairs"
    else:
        se = math.sqrt(variance)
        z = value / se
        p_value = 2 * float(ndtr(-abs(z)))
        reach = se * float(ndtri((1 + confidence) / 2))
        method = "paired DeLong" if groups == first.size else f"paired DeLong, clustered: {first.size} records"
    interval = Interval(
        value=value,
        low=max(-1.0, value - reach),
        high=min(1.0, value + reach),
        n=groups,
        method=method,
        confidence=confidence,
    )
    return PairedDifference(difference=value, se=se, z=z, p_value=p_value, interval=interval)


def smallest_detectable_auc(n_members: int, n_nonmembers: int, power: float = 0.8, alpha: float = 0.05) -> float:
    """Find the AUC that a one-sided Mann–Whitney test at `alpha` finds with probability `power`.

    Normal approximation with the null variance (m+n+1)/12mn and Hanley and McNeil's (Radiology 143,
    1982) under the alternative. 1.0 where the sample is too small to detect any.
    """
    m, n = check_count("n_members", n_members, 1), check_count("n_nonmembers", n_nonmembers, 1)
    strict = float(ndtri(1 - check_fraction("alpha", alpha))) * math.sqrt((m + n + 1) / (12 * m * n))
    ask = float(ndtri(check_fraction("power", power)))

    def missed(area: float) -> bool:
        ahead, behind = area / (2 - area) - area**2, 2 * area**2 / (1 + area) - area**2
        spread = (area * (1 - area) + (m - 1) * ahead + (n - 1) * behind) / (m * n)
        return area - 0.5 < strict + ask * math.sqrt(max(spread, 0.0))

    return largest(missed, 0.5, 1.0)
