"""The gradient norm over what was tuned alone: cheap where that is an adapter."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Wang et al. 2024, arXiv:2402.17012",
    access="gradients",
    needs=(),
    inputs=("tuned_gradients",),
    cost="a forward and a backward pass a record",
    suite="full",
)
def tuned_gradient_norm(signals: Signals) -> Scores:
    """Score a record by −‖∇ℓ‖₂, the gradient of its mean loss a token over what was tuned: of LoRA, its factors.

    The untuned model has its adapter at the values that training began with: B = 0, and gradients of B only. Norms of
    the two are not compared with each other, as an adapter's scale is another after training.
    """
    return -np.asarray(signals.measured["tuned_gradients"], dtype=np.float64)
