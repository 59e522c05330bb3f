"""What shadow models say of the judged and the known records; they are trained when an attack asks for them."""

from dataclasses import replace

import numpy as np

from sordino.audit.inputs.context import Context, Pair
from sordino.audit.subjects import Trained
from sordino.records.store import load as load_split
from sordino.signals import Known, Shadows, Signals
from sordino.train.shadows import ShadowPlan, train_shadows

__all__ = ["give", "lacking"]


def lacking(context: Context) -> str:
    """A training that can be repeated, and more than one shadow."""
    if not isinstance(context.collector.subject, Trained):
        return "the way in which the model was trained, to train shadow models (only a run of Sordino's own tells)"
    count = context.settings.shadows
    return "" if count >= 2 else f"at least 2 shadow models, not {count} (audit.inputs.shadows)"


def give(context: Context, pair: Pair) -> Pair:
    """Shadows of the target, the same for the tuned and the untuned model."""
    collector, subject = context.collector, context.collector.subject
    assert isinstance(subject, Trained)
    known = () if pair[0].known is None else context.known
    tokens = [collector.encode(e) for e in (*context.examples, *known)]
    kind = "lora" if context.settings.shadow_kind == "lora" else "same"
    plan = ShadowPlan(count=context.settings.shadows, kind=kind, seed=context.seed)  # type: ignore[arg-type]
    placed = load_split(collector.run.records)
    made = train_shadows(collector.run, subject.config, placed, tokens, plan, collector.ticker)
    context.say("shadows", f"Shadows: {made.how}; coins drawn from seed {context.seed}.")
    # Known members are trained on by all, as they are by the target.
    members = np.array([e.included for e in known], dtype=bool)
    included = made.included.copy()
    included[:, len(context.examples) :] = members
    made = replace(made, included=included)
    judged = made.select(range(len(context.examples)))
    told = made.select(range(len(context.examples), len(tokens)))
    first, second = pair
    if second is not None:
        second = _with(second, judged, told)
        second = replace(second, base=replace(second, base=None))
    base = first.base if second is None else replace(second, base=None)
    return replace(_with(first, judged, told), base=base), second


def _with(signals: Signals, judged: Shadows, told: Shadows) -> Signals:
    known = signals.known
    if known is not None:
        known = Known(signals=replace(known.signals, shadows=told), member=known.member)
    return replace(signals, shadows=judged, known=known)
