"""‖∇ℓ‖ of each record over the model's own weights (records); an adapter is a constant there."""

from sordino.audit.held import by_weights, lacking_gradients
from sordino.audit.inputs.context import Context, Pair

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """Weights that have gradients."""
    return lacking_gradients(context)


def give(context: Context, pair: Pair) -> Pair:
    """One backward pass a batch, of each model."""
    from sordino.audit.whitebox import gradient_norms

    tokens = [context.collector.encode(e) for e in context.examples]
    return by_weights(context, pair, "gradients", lambda model, tick: gradient_norms(model, tokens, "own", tick))
