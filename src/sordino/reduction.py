"""Logits reduced to six numbers a token, a piece of the head's output at a time.

On a CPU the sums are one pass over a piece that is still in cache (`kernel`); elsewhere, and for
float64, they are torch operations with the same result.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
from jaxtyping import Float, Int64
from torch import Tensor

__all__ = ["head_statistics", "token_statistics"]

# Bytes of logits that the head makes at once. On a CPU they should be in its cache when they are reduced;
# but the head's own weights are read again for each piece, so it has no fewer rows than pay for that.
_PIECE_BYTES = {"cpu": 8 << 20, "cuda": 512 << 20, "mps": 256 << 20}
_LEAST_ROWS = 64
# Below this, eˣ is no normal number, and a token has no weight.
_LOWEST = {torch.float32: -87.0, torch.float64: -700.0}

Result = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def token_statistics(logits: Float[Tensor, "N V"], targets: Int64[Tensor, " N"]) -> Result:
    """Statistics of N next-token distributions over V tokens.

    Returns ln p of the target, μ = Σ p ln p, σ² = Σ p ln² p − μ², the number of strictly larger
    logits, and the most likely token (of several, the first), each (N). With x = logit − max and
    S_k = Σ eˣ xᵏ: ln p = x_y − ln S₀, μ = S₁/S₀ − ln S₀, σ² = S₂/S₀ − (S₁/S₀)², which no constant
    added to the logits changes. Accumulates in float32, or in float64 for float64 logits.
    Source: Zhang et al. 2025 (Min-K%++), eq. 3; shifted sums as in the log-sum-exp trick.
    """
    return head_statistics(lambda rows: rows, logits, targets, logits.shape[1])


def head_statistics(
    head: Callable[[Tensor], Tensor], states: Float[Tensor, "N width"], targets: Int64[Tensor, " N"], vocabulary: int
) -> Result:
    """`token_statistics` of `head(states)`, of which only one piece of the rows exists at a time.

    Raises `IndexError` where a target is outside the vocabulary.
    """
    if len(targets) and not (int(targets.min()) >= 0 and int(targets.max()) < vocabulary):
        raise IndexError(f"A target is outside the vocabulary of {vocabulary} tokens.")
    rows = max(_LEAST_ROWS, _PIECE_BYTES.get(states.device.type, 8 << 20) // (4 * vocabulary))
    # One piece at least, so that no rows give empty columns of the right types.
    starts = range(0, max(1, len(states)), rows)
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(threads) as pool:  # starts no thread before it is needed
        pieces = [_sums(head(states[i : i + rows]), targets[i : i + rows], pool, threads) for i in starts]
    target, rank, top, s0, s1, s2 = (torch.cat(column) for column in zip(*pieces, strict=True))
    log_s0, ratio = s0.log(), s1 / s0
    variance = (s2 / s0 - ratio**2).clamp_min(0)
    # An impossible target stays a number that scores can be computed with.
    return target.clamp_min(-1e4) - log_s0, ratio - log_s0, variance, rank.long(), top.long()


def _sums(logits: Tensor, targets: Tensor, pool: ThreadPoolExecutor, threads: int) -> tuple[Tensor, ...]:
    """Logit − max of the targets, rank, top, S₀, S₁ and S₂, each (N)."""
    if logits.device.type == "cpu" and logits.dtype != torch.float64:
        return _by_kernel(logits.float().contiguous(), targets, pool, threads)
    return _by_operations(logits, targets)


def _by_kernel(x: Tensor, targets: Tensor, pool: ThreadPoolExecutor, threads: int) -> tuple[Tensor, ...]:
    from sordino.kernel import sums

    out = torch.empty(6, len(x))
    peaks = x.amax(dim=-1) if len(x) else x.new_empty(0)
    arrays = x.numpy(), targets.numpy(), peaks.numpy(), out.numpy()
    edges = [len(x) * i // threads for i in range(threads + 1)]
    part: Callable[[int, int], None] = partial(sums, *arrays)
    others = [pool.submit(part, edges[i], edges[i + 1]) for i in range(1, threads)]
    part(edges[0], edges[1])
    for other in others:
        other.result()
    return tuple(out)


def _by_operations(logits: Tensor, targets: Tensor) -> tuple[Tensor, ...]:
    x = logits if logits.dtype == torch.float64 else logits.float()
    x = x - x.amax(dim=-1, keepdim=True)
    at = x.gather(1, targets[:, None])
    rank, top = (x > at).sum(dim=-1), x.argmax(dim=-1)
    # A logit of −∞ has weight 0, but 0·∞ is not 0 in floating point.
    x.clamp_min_(_LOWEST[x.dtype])
    weight = x.exp()
    s0 = weight.sum(dim=-1)
    s1 = weight.mul_(x).sum(dim=-1)
    return at[:, 0], rank, top, s0, s1, weight.mul_(x).sum(dim=-1)
