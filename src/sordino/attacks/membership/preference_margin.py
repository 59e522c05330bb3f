"""The preference margin: did tuning tell the preferred answer from the rejected one?"""

from sordino.attacks.base import membership
from sordino.attacks.preferences import chosen_gain, rejected_gain
from sordino.signals import Scores, Signals


@membership(
    paper="Feng et al. 2024, arXiv:2407.06443",
    base=True,
    needs=("logprob",),
    inputs=("rejected",),
    cost="1 more pass a record",
    suite="full",
)
def preference_margin(signals: Signals) -> Scores:
    """Score a record by ln π_θ(y⁺|x)/π_ref(y⁺|x) − ln π_θ(y⁻|x)/π_ref(y⁻|x), its answers y⁺ preferred, y⁻ rejected.

    Up to a factor, that is what DPO makes large (Rafailov et al. 2023, arXiv:2305.18290). Fine-tuning on y⁺ alone
    raises the first term most, and the second as far as the two answers are alike.
    """
    margin: Scores = chosen_gain(signals) - rejected_gain(signals)
    return margin
