"""‖∇ℓ‖ of each record over what was tuned (records): the factors of LoRA, or what another method added."""

from sordino.audit.held import by_weights, lacking_start
from sordino.audit.inputs.context import Context, Pair
from sordino.audit.subjects import Trained

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """Something that was tuned beside the model's own weights, and its first values."""
    subject = context.collector.subject
    if isinstance(subject, Trained) and subject.config.method.kind == "full":
        return "an adapter: all weights were tuned, and gradient_norm is of all of them"
    missing = lacking_start(context)
    return missing if missing or isinstance(subject, Trained) else "an adapter"


def give(context: Context, pair: Pair) -> Pair:
    """One backward pass a batch; the untuned model has its adapter at the values that training began with."""
    from sordino.audit.whitebox import gradient_norms

    tokens = [context.collector.encode(e) for e in context.examples]
    return by_weights(
        context, pair, "tuned_gradients", lambda model, tick: gradient_norms(model, tokens, "tuned", tick), start=True
    )
