"""ℓ of each record before and after a step of gradient descent on it alone (records, 2)."""

from sordino.audit.held import by_weights, lacking_start
from sordino.audit.inputs.context import Context, Pair

__all__ = ["RATE", "give", "lacking"]

RATE = 1e-3
"""The learning rate of the step, whose length is RATE · ‖∇ℓ‖."""


def lacking(context: Context) -> str:
    """Weights that have gradients, and what was tuned at its first values."""
    return lacking_start(context)


def give(context: Context, pair: Pair) -> Pair:
    """Two forward passes and a backward pass a record, with weights of its own."""
    from sordino.audit.whitebox import one_step

    tokens = [context.collector.encode(e) for e in context.examples]
    return by_weights(
        context, pair, "one_step", lambda model, tick: one_step(model, tokens, RATE, tick), start=True,
        version=f"1 {RATE:g}",
    )  # fmt: skip
