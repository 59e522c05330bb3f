"""What a sampler makes of logits: the probability that temperature, top-k and top-p leave to a token.

One teacher-forced pass tells it for any number of settings at once, and nothing has to be sampled. The order of
filters is that of Hugging Face transformers and of vLLM: temperature, then top-k, then top-p.
"""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sordino.results import Decoding

__all__ = ["Decoding", "decoding_logprob", "every_logprob"]

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


def every_logprob(logits: Float[Tensor, "N V"], decoding: Decoding) -> Float64[Tensor, "N V"]:
    """The ln of the probability with which a decoding draws each token: `decoding_logprob` of all V, sorted once."""
    exact = logits if logits.dtype == torch.float64 else logits.float()
    values, order = exact.sort(dim=1, descending=True, stable=True)
    left = torch.ones_like(values, dtype=torch.bool)
    if decoding.temperature == 0:
        left[:, 1:] = False
        scaled = values.double()
    else:
        scaled = values.double() / decoding.temperature
        if decoding.top_k is not None and decoding.top_k < exact.shape[1]:
            left = values >= values[:, decoding.top_k - 1 : decoding.top_k]
        if decoding.top_p < 1:
            share = torch.softmax(scaled.masked_fill(~left, -torch.inf), dim=1)
            left = left & (share.cumsum(1) - share < decoding.top_p)
    ordered = torch.log_softmax(scaled.masked_fill(~left, -torch.inf), dim=1)
    return torch.empty_like(ordered).scatter_(1, order, ordered)
