"""The one-step loss ratio: a record that a model was trained on has little left to be learned."""

from typing import Literal

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Wang et al. 2024, arXiv:2402.17012",
    access="weights",
    needs=(),
    inputs=("one_step",),
    cost="two forward passes and a backward pass a record, with weights of its own",
    suite="full",
)
def one_step(signals: Signals, *, kind: Literal["ratio", "difference"] = "ratio") -> Scores:
    """Score a record by ℓ(x; θ − η∇ℓ(x; θ)) / ℓ(x; θ): its loss after a step of learning on it alone over that before.

    What was tuned takes the step (of LoRA, its factors), with a small fixed η. A step of length η‖∇ℓ‖ takes about
    η‖∇ℓ‖² off the loss, so the ratio is below 1, and nearer to 1 for a member. With `kind="difference"` the loss after
    less the loss before, which to first order is −η‖∇ℓ‖²: the gradient norm again.
    """
    before, after = np.asarray(signals.measured["one_step"], dtype=np.float64).T
    # A loss of exactly 0 stays 0: nothing is left to be learned.
    ratio: Scores = np.where(before == 0, 1.0, after / np.maximum(before, 1e-150))
    difference: Scores = after - before
    return ratio if kind == "ratio" else difference
