"""The preferred answer of a preference: how much likelier did tuning make it?"""

from sordino.attacks.base import membership
from sordino.attacks.preferences import chosen_gain
from sordino.signals import Scores, Signals


@membership(
    paper="Feng et al. 2024, arXiv:2407.06443",
    base=True,
    needs=("logprob",),
    inputs=("rejected",),
    cost="1 more pass a record",
    suite="full",
)
def preference_chosen(signals: Signals) -> Scores:
    """Score a record by ln π_θ(y⁺|x)/π_ref(y⁺|x) of its preferred answer y⁺, summed over the answer's tokens.

    Unlike `reference`, which is a mean over tokens, so that length counts.
    """
    return chosen_gain(signals)
