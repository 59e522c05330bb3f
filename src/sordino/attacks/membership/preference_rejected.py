"""The rejected answer of a preference: how much less likely did tuning make it?"""

from sordino.attacks.base import membership
from sordino.attacks.preferences import rejected_gain
from sordino.signals import Scores, Signals


@membership(
    paper="Feng et al. 2024, arXiv:2407.06443",
    base=True,
    needs=("logprob",),
    inputs=("rejected",),
    cost="1 more pass a record",
    suite="full",
)
def preference_rejected(signals: Signals) -> Scores:
    """Score a record by −ln π_θ(y⁻|x)/π_ref(y⁻|x) of its rejected answer y⁻, summed over the answer's tokens.

    Tuning on preferences pushes y⁻ down, and members furthest. Fine-tuning on y⁺ alone pushes nothing down: there, what
    a record's y⁻ gained with y⁺ makes this score low for members, and its AUC may be below ½.
    """
    return -rejected_gain(signals)
