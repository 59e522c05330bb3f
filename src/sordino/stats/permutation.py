"""One permutation test for many attacks at once: Westfall and Young's single-step max-T."""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from sordino.errors import AuditError, ConfigError
from sordino.stats.common import Bools, Floats, Ints, check_count, check_members, group_codes

__all__ = ["max_t", "max_t_within"]

BLOCK = 256


def _centred_ranks(scores: Floats) -> Floats:
    """2·midrank − (n + 1) of each row of (A, n): whole numbers that sum to 0, so sums are exact."""
    ranks = np.empty_like(scores)
    for row, values in zip(ranks, scores, strict=True):
        _, place, counts = np.unique(values, return_inverse=True, return_counts=True)
        row[:] = (2 * counts.cumsum() - counts - values.size)[place]
    return ranks


def _group_labels(member: Bools, codes: Ints, groups: int) -> Floats:
    """Label each group, 1 for members (groups,); raises `AuditError` for a mixed group."""
    inside = np.bincount(codes, weights=member, minlength=groups)
    mixed = int(np.count_nonzero((inside > 0) & (inside < np.bincount(codes, minlength=groups))))
    if mixed:
        raise AuditError(
            f"{mixed} of {groups} groups have members and non-members.",
            "A permutation test needs one label per group: one coin for all its records.",
        )
    return (inside > 0).astype(np.float64)


def _check_matrix(scores: ArrayLike) -> Floats:
    """`scores` as (A, n) without NaN; else raises `AuditError`."""
    matrix = np.asarray(scores, dtype=np.float64)
    if matrix.ndim != 2 or not matrix.size:
        raise AuditError(f"scores has shape {matrix.shape}.", "Give one row per attack, one column per record.")
    bad = int(np.count_nonzero(np.isnan(matrix)))
    if bad:
        raise AuditError(f"{bad} of {matrix.size} scores are NaN.", "Find out why before testing them.")
    return matrix


def max_t(
    scores: ArrayLike,
    member: ArrayLike,
    group: ArrayLike | None = None,
    shuffles: int = 999,
    seed: int = 0,
    alternative: Literal["greater", "two-sided"] = "greater",
) -> tuple[float, Floats]:
    """Test that all AUCs are ½: the global p-value, and one per attack adjusted for all of them.

    `scores` (A, n), `member` and `group` (n,). Labels are permuted over groups. The statistic is the
    members' centred rank sum over its exact permutation standard deviation: its sign is that of
    AUC − ½, and it is the standardised AUC where groups are equally large. p = (1 + #)/(1 + shuffles).
    An attack without differing scores has statistic 0 and p = 1. Raises `AuditError` for NaN and
    for groups of mixed membership. Westfall and Young, "Resampling-based multiple testing", 1993.
    """
    check_count("shuffles", shuffles, 1)
    if alternative not in ("greater", "two-sided"):
        raise ConfigError(f"alternative is '{alternative}'.", "Choose 'greater' or 'two-sided'.")
    matrix = _check_matrix(scores)
    labels = check_members(member, matrix.shape[1])
    codes, groups = group_codes(group, labels.size)
    label = _group_labels(labels, codes, groups)
    order = np.argsort(codes, kind="stable")
    starts = np.searchsorted(codes[order], np.arange(groups))
    sums = np.add.reduceat(_centred_ranks(matrix)[:, order], starts, axis=1)
    chosen = label.sum()
    deviation = np.sqrt(chosen * (groups - chosen) / (groups * (groups - 1)) * (sums**2).sum(axis=1))
    live = deviation > 0
    adjusted = np.ones(matrix.shape[0])
    if not live.any():
        return 1.0, adjusted
    fold = np.abs if alternative == "two-sided" else np.positive
    scale = deviation[live, None]
    observed = fold(sums[live] @ label[:, None] / scale)
    rng = np.random.default_rng(seed)
    reached = np.zeros(observed.size)
    for start in range(0, shuffles, BLOCK):
        drawn = rng.permuted(np.tile(label, (min(BLOCK, shuffles - start), 1)), axis=1)
        highest = fold(sums[live] @ drawn.T / scale).max(axis=0)
        reached += (highest >= observed).sum(axis=1)
    adjusted[live] = (1 + reached) / (1 + shuffles)
    return float(adjusted.min()), adjusted


def max_t_within(
    scores: ArrayLike,
    member: ArrayLike,
    block: ArrayLike,
    shuffles: int = 999,
    seed: int = 0,
    alternative: Literal["greater", "two-sided"] = "greater",
) -> tuple[float, Floats]:
    """`max_t` where coins were drawn inside blocks, each with a fixed number of members: labels stay in their block.

    `scores` (A, n), `member` and `block` (n,). The statistic is the members' rank sum, ranks centred in each
    block, over its exact permutation standard deviation; what all records of a block share has no say.
    """
    check_count("shuffles", shuffles, 1)
    matrix = _check_matrix(scores)
    codes, blocks = group_codes(block, matrix.shape[1])
    order = np.argsort(codes, kind="stable")
    codes, labels = codes[order], check_members(member, matrix.shape[1])[order].astype(np.float64)
    sizes, chosen = np.bincount(codes), np.bincount(codes, weights=labels, minlength=blocks)
    ranks = _centred_ranks(matrix)[:, order]
    starts = np.searchsorted(codes, np.arange(blocks))
    ranks = ranks - (np.add.reduceat(ranks, starts, axis=1) / sizes)[:, codes]
    spread = chosen * (sizes - chosen) / (sizes * np.maximum(sizes - 1, 1))
    deviation = np.sqrt((np.add.reduceat(ranks**2, starts, axis=1) * spread).sum(axis=1))
    live, adjusted = deviation > 0, np.ones(len(matrix))
    if not live.any():
        return 1.0, adjusted
    fold = np.abs if alternative == "two-sided" else np.positive
    weights = ranks[live] / deviation[live, None]
    # A draw of the same labels is as far out as they are, whatever the order of the sum.
    observed = fold(weights @ labels[:, None]) - 1e-9
    rng = np.random.default_rng(seed)
    reached = np.zeros(len(weights))
    for start in range(0, shuffles, BLOCK):
        keys = codes + rng.random((min(BLOCK, shuffles - start), len(codes)))
        drawn = labels[np.argsort(keys, axis=1)]
        reached += (fold(weights @ drawn.T).max(axis=0) >= observed).sum(axis=1)
    adjusted[live] = (1 + reached) / (1 + shuffles)
    return float(adjusted.min()), adjusted
