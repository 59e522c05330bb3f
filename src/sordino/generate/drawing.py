"""Tokens from logits: exactly the filters of `sordino.decoding`, then the inverse of the cumulated probability."""

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

__all__ = ["draw", "kept"]

# So many of the largest logits are sorted for all rows, as in `sordino.decoding`; rows that need more are sorted whole.
_LARGEST = 64


def kept(
    logits: Float[Tensor, "N V"], temperature: Float64[Tensor, " N"], top_k: int | None, top_p: float
) -> Bool[Tensor, "N V"]:
    """Which tokens top-k and top-p leave: those that `decoding_logprob` gives a probability, with the same ties."""
    vocabulary = logits.shape[1]
    most = max(_LARGEST, 0 if top_k is None else top_k + 1)
    largest = logits.topk(min(most, vocabulary), dim=1).values
    # Of how many, in the order of their logits and then of their ids, the likeliest are left.
    count, known = _count(logits, largest, temperature, top_k, top_p)
    if not known.all():
        rest = ~known
        ordered = logits[rest].sort(dim=1, descending=True).values
        count[rest], _ = _count(logits[rest], ordered, temperature[rest], top_k, top_p)
        last = largest.new_empty(len(logits))
        last[known] = largest[known].gather(1, count[known, None] - 1)[:, 0]
        last[rest] = ordered.gather(1, count[rest, None] - 1)[:, 0]
    else:
        last = largest.gather(1, count[:, None] - 1)[:, 0]
    above, equal = logits > last[:, None], logits == last[:, None]
    room = count - above.sum(1)
    return above | (equal & (equal.cumsum(1) <= room[:, None]))


def _count(
    logits: Tensor, largest: Tensor, temperature: Tensor, top_k: int | None, top_p: float
) -> tuple[Tensor, Tensor]:
    """How many tokens are left (n), and for which rows the `largest` logits (n, K), in order, were enough to tell."""
    vocabulary, complete = logits.shape[1], largest.shape[1] == logits.shape[1]
    left = torch.ones_like(largest, dtype=torch.bool)
    known = torch.ones_like(left[:, -1])
    scaled = largest.double() / temperature[:, None]
    if top_k is not None and top_k < vocabulary:
        left = largest >= largest[:, top_k - 1 : top_k]
        # Where all that are sorted are as likely as the k-th, there may be more of them.
        known = ~left[:, -1] | complete
        whole = scaled.masked_fill(~left, -torch.inf).logsumexp(1)
    else:
        whole = (logits / temperature[:, None].to(logits.dtype)).logsumexp(1).double()
    if top_p < 1:
        share = (scaled - whole[:, None]).exp().masked_fill(~left, 0.0)
        left = left & (share.cumsum(1) - share < top_p)
    # Where the last that is sorted is left, what is not sorted may be left as well.
    return left.sum(1).clamp(min=1), known & (~left[:, -1] | complete)


def draw(
    logits: Float[Tensor, "N V"],
    uniform: Float64[Tensor, " N"],
    temperature: Float64[Tensor, " N"],
    top_k: int | None,
    top_p: float,
) -> Int64[Tensor, " N"]:
    """The token at which the cumulated probability, in the order of ids, first exceeds a `uniform` number in [0, 1).

    `temperature` is above 0. A token that the filters take away is never drawn.
    """
    exact = logits if logits.dtype == torch.float64 else logits.float()
    scaled = exact.double() / temperature[:, None]
    vocabulary = logits.shape[1]
    if (top_k is not None and top_k < vocabulary) or top_p < 1:
        scaled = scaled.masked_fill(~kept(exact, temperature, top_k, top_p), -torch.inf)
    edges = torch.softmax(scaled, dim=-1).cumsum(dim=-1)
    # Rounded up to the last edge, it would stand behind all tokens.
    below = torch.nextafter(edges[:, -1:], edges.new_zeros(()))
    wanted = torch.minimum(uniform[:, None] * edges[:, -1:], below)
    return torch.searchsorted(edges, wanted, right=True)[:, 0]
