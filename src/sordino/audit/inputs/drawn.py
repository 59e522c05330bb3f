"""With which probability samplers draw each token of each record: no text is generated for it."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sordino.audit.borrowed import borrowed_arrays
from sordino.audit.inputs.context import Context, Pair
from sordino.audit.parts import in_shards
from sordino.audit.subjects import Trained
from sordino.audit.weights import has_weights, weights
from sordino.audit.written import Written
from sordino.results import Decoding
from sordino.serialize import Tokens
from sordino.signals import Drawn, Signals

__all__ = ["along", "give", "lacking"]

_PLAIN = Decoding()


def lacking(context: Context) -> str:
    """Weights, or log-probabilities and a decoding that these are of."""
    subject = context.collector.subject
    if isinstance(subject, Written) or (not _here(context) and _PLAIN not in context.plan.sampling.decodings):
        return "the model's weights"
    return ""


def along(context: Context) -> tuple[Decoding, ...]:
    """The decodings that the pass of the signals may measure as well, so that it takes no pass of its own."""
    decodings = context.plan.sampling.decodings
    return decodings if lacking(context) == "" and _here(context) and decodings != (_PLAIN,) else ()


def give(context: Context, pair: Pair) -> Pair:
    """From the pass of the signals, or one more for all; where weights are elsewhere, plain sampling alone."""
    wanted = context.plan.sampling.decodings if _here(context) else (_PLAIN,)
    if not _here(context) and len(context.plan.sampling.decodings) > 1:
        context.say("drawn", "Of a server only sampling at temperature 1 is known: it tells no other probabilities.")
    tuned, base = pair
    if base is not None:
        base = replace(base, drawn=_drawn(context, "base", wanted, base))
        base = replace(base, base=replace(base, base=None))
    tuned = replace(tuned, drawn=_drawn(context, "tuned", wanted, tuned))
    return replace(tuned, base=tuned.base if base is None else base.base), base


def _here(context: Context) -> bool:
    """Whether all models that there are can be run here, so that both are judged alike."""
    subject = context.collector.subject
    which = ("tuned", "base") if subject.has_base else ("tuned",)
    return all(has_weights(subject, name) for name in which)


def _drawn(context: Context, which: str, decodings: tuple[Decoding, ...], signals: Signals) -> Drawn:
    if decodings == (_PLAIN,):
        return Drawn(decodings=decodings, logprob=np.asarray(signals.statistics.logprob)[:, None])
    collector = context.collector
    key = collector.drawn_key(context.examples, which, decodings)
    found = collector.store.arrays(key)
    return Drawn(decodings=decodings, logprob=(found or _made(context, which, decodings, key))["logprob"])


def _made(context: Context, which: str, decodings: tuple[Decoding, ...], key: str) -> dict[str, np.ndarray]:
    """Taken over from a run beside this one, where that has asked the same untuned model, else computed."""
    collector = context.collector
    tokens = [collector.encode(e) for e in context.examples]
    manifest = collector.drawn_manifest(which, decodings)
    if which == "base" and isinstance(collector.subject, Trained):
        lent = borrowed_arrays(collector.run, key, tokens, manifest)
        if lent is not None:
            collector.store.put_arrays(key, lent[1], {**manifest, "from": lent[0]})
            return lent[1]
    from sordino.collect import drawn

    name = f"{'model' if which == 'tuned' else 'untuned model'}, {len(decodings)} decodings"
    tick = collector.ticker(name, len(context.examples))
    model = weights(collector.reader, which)

    def measure(some: Sequence[Tokens]) -> dict[str, np.ndarray]:
        targets = np.concatenate([t.ids[t.target] for t in some] or [np.empty(0, dtype=np.int32)])
        return {"logprob": drawn(model, some, decodings, tick=tick), "token": targets}

    made = in_shards(collector.store, key, tokens, measure, tick)
    collector.forwards += 1
    collector.store.put_arrays(key, made, manifest)
    collector.store.drop(key)
    return made
