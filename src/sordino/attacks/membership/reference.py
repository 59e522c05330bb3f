"""The reference attack: how much better does the model know a record than its untuned base does?"""

from typing import Literal

import numpy as np

from sordino.attacks.base import membership
from sordino.signals import Scores, Signals


@membership(
    paper="Mireshghallah et al. 2022, arXiv:2203.03929",
    base=True,
    needs=("logprob",),
    tasks=("causal-lm", "classification"),
)
def reference(signals: Signals, *, kind: Literal["difference", "ratio"] = "difference") -> Scores:
    """Score a record by what fine-tuning gained on it: ℓ_base − ℓ, or with `kind="ratio"` ℓ_base / ℓ."""
    before, after = signals.reference.nll, signals.nll
    # A loss of exactly 0 is perfect memory: a tiny divisor keeps its ratio large and finite.
    scores: Scores = before - after if kind == "difference" else before / np.maximum(after, 1e-150)
    return scores
