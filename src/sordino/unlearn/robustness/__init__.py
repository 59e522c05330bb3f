"""Robustness of forgetting: attempts to bring back what was forgotten, or to see who was."""

from sordino.unlearn.robustness.attacked import Attacked
from sordino.unlearn.robustness.measuring import ATTACKS, Measured, measure
from sordino.unlearn.robustness.prompts import BEFORE, REWORDINGS, prompts
from sordino.unlearn.robustness.quantised import QUANTISER, quantised
from sordino.unlearn.robustness.relearning import relearning
from sordino.unlearn.robustness.two_checkpoints import two_checkpoints

__all__ = [
    "ATTACKS",
    "BEFORE",
    "QUANTISER",
    "REWORDINGS",
    "Attacked",
    "Measured",
    "measure",
    "prompts",
    "quantised",
    "relearning",
    "two_checkpoints",
]
