"""Records whose membership the adversary knows: other people's, or his own; none of them is judged."""

from dataclasses import replace

import numpy as np

from sordino.audit.inputs.context import Context, Pair
from sordino.signals import Known

__all__ = ["LEAST", "give", "lacking"]

LEAST = 20
"""Fewer known non-members teach an attack nothing."""


def lacking(context: Context) -> str:
    """Known non-members: validation records are the ones a run of our own has."""
    count = len(context.nonmembers)
    if count >= LEAST:
        return ""
    return f"at least {LEAST} records known not to be trained on, not {count} (raise split.validation)"


def give(context: Context, pair: Pair) -> Pair:
    """The signals of the known records under both models."""
    tuned, untuned = context.collector.signals(context.known, {})
    member = np.array([e.included for e in context.known], dtype=bool)
    first, second = pair
    if second is not None and untuned is not None:
        second = replace(second, known=Known(signals=untuned, member=member))
        second = replace(second, base=replace(second, base=None))
    base = first.base if second is None else replace(second, base=None)
    return replace(first, known=Known(signals=tuned, member=member), base=base), second
