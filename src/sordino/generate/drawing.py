"""Tokens from logits: exactly the filters of `sordino.decoding`, then the inverse of the cumulated probability."""

import torch
from jaxtyping import Float, Float64, Int64
from torch import Tensor

from sordino.decoding import kept

__all__ = ["draw"]


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
