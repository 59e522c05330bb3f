"""What a sampler makes of logits: the probability that temperature, top-k and top-p leave to a token.

One teacher-forced pass tells it for any number of settings at once, and nothing has to be sampled. The order of
filters is that of Hugging Face transformers and of vLLM: temperature, then top-k, then top-p.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Float, Float64, Int64
from torch import Tensor

from sordino.results import Decoding

__all__ = ["Decoding", "decoding_logprob", "every_logprob", "kept"]

# So many of the largest logits are sorted for all rows; rows that need more of them are sorted whole.
_LARGEST = 64


def decoding_logprob(
    logits: Float[Tensor, "N V"], targets: Int64[Tensor, " N"], decodings: Sequence[Decoding]
) -> Float64[Tensor, "N D"]:
    """The ln of the probability with which each of D decodings draws the target; −∞ where it never does.

    Of top-k, tokens as likely as the k-th stay. Of top-p, a token stays where those before it have less than
    `top_p` of what top-k left; of equally likely ones, the lower id comes first. Greedy decoding takes the first of
    the likeliest. Source: Hayes et al. 2025, arXiv:2410.19482; Holtzman et al. 2020 for top-p.
    """
    found = torch.full((len(logits), len(decodings)), -torch.inf, dtype=torch.float64, device=logits.device)
    if not len(logits) or not decodings:
        return found
    exact = logits if logits.dtype == torch.float64 else logits.float()
    own = exact.gather(1, targets[:, None])
    ids = torch.arange(exact.shape[1], device=exact.device)
    place = ((exact > own) | ((exact == own) & (ids < targets[:, None]))).sum(1)
    sums = {t: (exact / t).logsumexp(1).double() for t in {d.temperature for d in decodings} if t > 0}
    most = max([_LARGEST, *(d.top_k + 1 for d in decodings if d.top_k is not None)])
    largest = exact.topk(min(most, exact.shape[1]), dim=1).values.double()
    for column, decoding in enumerate(decodings):
        if decoding.temperature == 0:
            found[place == 0, column] = 0.0
            continue
        whole = sums[decoding.temperature]
        values, known = _drawn(largest, own[:, 0].double(), place, whole, decoding, exact.shape[1])
        if not known.all():
            rest = ~known
            ordered = exact[rest].sort(dim=1, descending=True).values.double()
            values[rest], _ = _drawn(ordered, own[rest, 0].double(), place[rest], whole[rest], decoding, exact.shape[1])
        found[:, column] = values
    return found


def _drawn(
    largest: Tensor, own: Tensor, place: Tensor, whole: Tensor, decoding: Decoding, vocabulary: int
) -> tuple[Tensor, Tensor]:
    """The ln p of the target (n), and for which rows the `largest` logits (n, K), in order, were enough to tell.

    `own` is the target's logit, `place` how many stand before it, `whole` the log-sum-exp of all at this temperature.
    """
    complete = largest.shape[1] == vocabulary
    known = torch.ones(len(largest), dtype=torch.bool, device=largest.device)
    scaled, left = largest / decoding.temperature, torch.ones_like(largest, dtype=torch.bool)
    inside = torch.ones_like(known)
    limited = decoding.top_k is not None and decoding.top_k < vocabulary
    if limited:
        least = largest[:, decoding.top_k - 1]  # type: ignore[operator]
        left, inside = largest >= least[:, None], own >= least
        known = ~left[:, -1] | complete
        whole = scaled.masked_fill(~left, -torch.inf).logsumexp(1)
    if decoding.top_p < 1:
        share = (scaled - whole[:, None]).exp().masked_fill(~left, 0.0)
        total = share.cumsum(1)
        kept = left & (total - share < decoding.top_p)
        # Where the nucleus may go on beyond what is sorted, it is not known.
        known = known & (~kept[:, -1] | complete)
        whole = scaled.masked_fill(~kept, -torch.inf).logsumexp(1)
        inside = inside & (place < kept.sum(1))
    return torch.where(inside, own / decoding.temperature - whole, -torch.inf), known


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


def every_logprob(logits: Float[Tensor, "N V"], decoding: Decoding) -> Float64[Tensor, "N V"]:
    """The ln of the probability with which a decoding draws each token: `decoding_logprob` of all V at once."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    # At any temperature the one token that greedy decoding leaves is the likeliest, the first of several.
    greedy = decoding.temperature == 0
    heat = exact.new_full((len(exact),), 1.0 if greedy else decoding.temperature, dtype=torch.float64)
    left = exact == exact.amax(1, keepdim=True) if greedy else kept(exact, heat, decoding.top_k, decoding.top_p)
    if greedy:
        left &= left.cumsum(1) == 1
    return torch.log_softmax((exact.double() / heat[:, None]).masked_fill(~left, -torch.inf), dim=1)
