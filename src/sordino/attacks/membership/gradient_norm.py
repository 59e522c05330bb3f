"""The gradient norm: where a model was trained on a record, it stands near a minimum of that record's loss."""

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Wang et al. 2024, arXiv:2402.17012",
    access="gradients",
    needs=(),
    inputs=("gradients",),
    cost="a forward and a backward pass a record",
    suite="full",
)
def gradient_norm(signals: Signals) -> Scores:
    """Score a record by −‖∇ℓ‖₂, the gradient of its mean loss a token over the model's own weights.

    An adapter is a constant there: for LoRA these are the gradients of the weights with the adapter merged in. See
    `tuned_gradient_norm` for those of the adapter.
    """
    return -np.asarray(signals.measured["gradients"], dtype=np.float64)
