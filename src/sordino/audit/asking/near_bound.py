"""Which records a sampler writes nearly, at least: searches near the likeliest passage of some of them."""

from collections.abc import Sequence

import msgspec
import numpy as np

from sordino.attacks.base import Attack, Odds, find, offered
from sordino.audit.inputs import Context, Pair
from sordino.audit.judging import Judge, attempted
from sordino.audit.parts import in_parts
from sordino.audit.queried import out
from sordino.audit.weights import has_weights, weights
from sordino.audit.written import Written
from sordino.evidence import digest
from sordino.results import Attempt, encode
from sordino.signals import Signals

__all__ = ["carry_out", "lacking"]

# Records between two results on disk.
_PART = 8


def lacking(context: Context) -> str:
    """Weights: a server tells no probability of what is not the true text."""
    subject = context.collector.subject
    return "the model's weights" if isinstance(subject, Written) or not has_weights(subject, "tuned") else ""


class Bound(msgspec.Struct, frozen=True, kw_only=True):
    """Of one record's passage: ln p of the passage itself and of all that was found near it; None stands for −∞."""

    record_id: str
    verbatim: float | None
    lower: float | None
    complete: bool
    forwards: int


def carry_out(context: Context, attack: Attack, pair: Pair, judge: Judge) -> Attempt:
    """The share of records whose likeliest passage, or one near it, comes within the queries of `audit.sampling`.

    Each model is asked about its own likeliest passages. At most `audit.near_bound.records` are drawn on either side.
    """
    plan = context.plan
    grid, odds = plan.sampling, _odds(context, pair[0])
    chosen = judge.drawn(odds.tried > 0, plan.near_bound.records, context.seed)
    tuned = _bounds(context, attack, odds, chosen, "tuned")
    base = None
    if pair[1] is not None and has_weights(context.collector.reader, "base"):
        base = _bounds(context, attack, _odds(context, pair[1]), chosen, "base")

    def hits(bounds: Sequence[Bound]) -> np.ndarray:
        hit = np.zeros(len(context.examples), dtype=bool)
        hit[chosen] = out(np.array([-np.inf if b.lower is None else b.lower for b in bounds]), grid.limit, grid.chance)
        return hit

    possible = np.zeros(len(context.examples), dtype=bool)
    possible[chosen] = True
    return attempted(
        attack,
        parameters={
            "beam": plan.near_bound.beam, "distance": plan.near_bound.distance, "decoding": str(grid.decodings[0]),
            "queries": grid.limit, "chance": grid.chance,
        },
        estimates=judge.shares(hits(tuned), possible),
        control={} if base is None else judge.shares(hits(base), possible),
        records=len(chosen),
        coins=judge.coins(possible),
        notes=_notes(context, tuned, len(chosen)),
    )  # fmt: skip


def _notes(context: Context, tuned: Sequence[Bound], count: int) -> tuple[str, ...]:
    plan = context.plan.near_bound
    notes = [
        f"{count} records were drawn, at most {plan.records} on either side, and the likeliest passage of each was "
        f"searched around: texts within {plan.distance:.0%} of its tokens. What the search leaves out can only add."
    ]
    more = [b.lower - b.verbatim for b in tuned if b.lower is not None and b.verbatim is not None]
    if more:
        notes.append(f"Texts near a passage make it {np.exp(np.median(more)):.3g} times as likely in the median.")
    if any(b.complete for b in tuned):
        notes.append(f"{sum(b.complete for b in tuned)} of the bounds are the probabilities themselves.")
    return tuple(notes)


def _odds(context: Context, signals: Signals) -> Odds:
    """The likeliest passages of each record, as the attack `sampling` finds them."""
    attack, plan = find("extraction", "sampling"), context.plan
    made: Odds = attack(
        offered(attack, signals), prefix_tokens=plan.prefix_tokens, suffix_tokens=plan.suffix_tokens
    )  # fmt: skip
    return made


def _bounds(context: Context, attack: Attack, odds: Odds, chosen: np.ndarray, which: str) -> list[Bound]:
    """Of the chosen records, a part at a time."""
    collector, plan = context.collector, context.plan
    examples = [context.examples[i] for i in chosen.tolist()]
    spans = np.stack([odds.start[chosen, 0], odds.stop[chosen, 0]], axis=-1)
    decoding, settings = plan.sampling.decodings[0], plan.near_bound
    key = collector.key(examples, which, "near_bound/1", str(spans.tolist()), digest(encode([decoding, settings])))
    name = f"{'model' if which == 'tuned' else 'untuned model'}, {attack.name}"
    tick = collector.ticker(name, len(examples))

    def work(begin: int, end: int) -> list[Bound]:
        model, made = weights(collector.reader, which), []
        for example, (start, stop) in zip(examples[begin:end], spans[begin:end].tolist(), strict=True):
            ids, distance = collector.encode(example).ids, max(1, round(settings.distance * (stop - start)))
            one = attack(model, ids[:start], ids[start:stop], decoding, distance=distance, beam=settings.beam)
            made.append(
                Bound(
                    record_id=example.record.id, verbatim=_log(one.verbatim), lower=_log(one.lower),
                    complete=one.complete, forwards=one.forwards,
                )
            )  # fmt: skip
            tick(1)
        collector.forwards += 1
        return made

    return in_parts(collector.run, f"near_bound/{key}", len(examples), _PART, work, Bound, tick=tick)


def _log(p: float) -> float | None:
    return float(np.log(min(p, 1.0))) if p > 0 else None
