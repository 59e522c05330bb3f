"""Likelihoods of records after a prefix of other records, whose membership is known and which are never judged."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sordino.audit.external import External
from sordino.audit.inputs import measured
from sordino.audit.inputs.context import Context, Pair
from sordino.audit.subjects import Tick, Trained
from sordino.audit.weights import has_weights, weights
from sordino.errors import AuditError
from sordino.evidence import digest
from sordino.records import Example
from sordino.serialize import Tokens
from sordino.signals import Ragged, Signals

__all__ = ["Shots", "after_shots", "provide", "shots_of"]

BETWEEN = "\n\n"
"""What stands between the records of a prefix, and between it and the record that is scored."""


@dataclass(frozen=True, kw_only=True)
class Shots:
    """A prefix: `ids` (P), of how many records it is where so many were `asked` for, and whether one was `cut`.

    `room` is how many tokens of a record fit behind it.
    """

    ids: np.ndarray
    count: int
    asked: int
    room: int
    cut: bool


def shots_of(context: Context, pool: Sequence[Example], purpose: str) -> Shots:
    """As many records of `pool` as are asked for and fit, drawn by the audit's seed, one beginning token before them.

    They get the context that the longest of the judged records leaves, but at least half of it. Where not even one
    fits, one is cut.
    """
    collector, asked = context.collector, context.settings.shots
    tokenizer, limit = collector.serializer.tokenizer, _context(context)
    longest = max((len(collector.encode(e)) for e in context.examples), default=1)
    budget = min(max(limit - longest, limit // 2), limit - 2)
    between = np.array(collector.serializer.tokenize(BETWEEN, template=False)[0], dtype=np.int32)
    first = tokenizer.bos_token_id
    ids = np.array([] if first is None else [first], dtype=np.int32)
    rng = np.random.default_rng(int(digest("shots", purpose, str(context.seed)), 16))
    bodies = [_body(collector.encode(pool[i]), tokenizer) for i in rng.permutation(len(pool))]
    bodies = [body for body in bodies if len(body)]
    if not bodies:
        raise AuditError("None of the known records has a token.", "Leave out the attacks that put them before others.")
    kept: list[np.ndarray] = []
    for body in bodies:
        taken = len(ids) + sum(len(k) + len(between) for k in kept)
        if len(kept) < asked and taken + len(body) + len(between) <= budget:
            kept.append(body)
    cut = not kept
    if cut:
        kept = [min(bodies, key=len)[: max(1, budget - len(ids) - len(between))]]
    whole = np.concatenate([ids, *(part for body in kept for part in (body, between))])
    return Shots(ids=whole, count=len(kept), asked=asked, room=limit - len(whole), cut=cut)


def _context(context: Context) -> int:
    """How many tokens the model reads at once; of one that is not here, how many it was asked to. Loads nothing."""
    reader = context.collector.reader
    if isinstance(reader, Trained):
        return int(reader.card.model["context"])
    return reader.context if isinstance(reader, External) else context.collector.serializer.max_length


def _body(item: Tokens, tokenizer: Any) -> np.ndarray:
    """The tokens of a record without those that frame it."""
    ids = item.ids
    if len(ids) and ids[0] == tokenizer.bos_token_id:
        ids = ids[1:]
    if len(ids) and ids[-1] == tokenizer.eos_token_id:
        ids = ids[:-1]
    return ids


def after_shots(context: Context, shots: Shots, signals: Signals, which: str) -> np.ndarray:
    """The mean ln p a token of each record after the prefix, and without it, (records, 2), over the same tokens.

    `signals` are the records' own under the same model. Of records that do not fit behind the prefix, the beginning
    is scored.
    """
    collector = context.collector
    items = [_behind(collector.encode(e), shots, collector.serializer.tokenizer) for e in context.examples]
    key = collector.key(context.examples, which, "shots/1", digest(shots.ids.tobytes()), str(shots.room))
    found = collector.store.arrays(key)
    if found is None:
        tick = collector.ticker(f"{'model' if which == 'tuned' else 'untuned model'}, after a prefix", len(items))
        collector.forwards += 1
        found = {"logprob": _read(context, shots, items, which, tick)}
        collector.store.put_arrays(key, found, {"model": which, "kind": "after a prefix", "shots": shots.count})
    kept = [int(item.target.sum()) for item in items]
    own = signals.logprob
    rows = [own.values[start : start + count] for start, count in zip(own.offsets[:-1], kept, strict=True)]
    edges = np.cumsum([0, *kept]).astype(np.int64)
    alone = Ragged(np.concatenate([np.empty(0), *rows]), edges)
    return np.stack([Ragged(found["logprob"], edges).mean(), alone.mean()], axis=1)


def say(context: Context, name: str, shots: Shots, whose: str) -> None:
    """Have it stand beside the results what the prefix is, and what did not fit."""
    context.say(name, f"The prefix is {shots.count} of {shots.asked} {whose}, {len(shots.ids)} tokens; none is judged.")
    if shots.cut:
        context.say(name, "Not one of them fitted into the model's context: it was cut.")
    framed = context.collector.serializer.tokenizer.bos_token_id is not None
    long = sum(len(context.collector.encode(e)) - framed > shots.room for e in context.examples)
    if long:
        context.say(name, f"{long} records are longer than the {shots.room} tokens left: their beginning was scored.")


def provide(context: Context, pair: Pair, name: str, pool: Sequence[Example], whose: str) -> Pair:
    """`pair` with what `after_shots` says under both models, as the input `name`."""
    shots = shots_of(context, pool, name)
    say(context, name, shots, whose)
    tuned = after_shots(context, shots, pair[0], "tuned")
    return measured(pair, name, tuned, None if pair[1] is None else after_shots(context, shots, pair[1], "base"))


def _behind(item: Tokens, shots: Shots, tokenizer: Any) -> Tokens:
    """The record as it stands behind the prefix, whose last token comes first: it predicts the record's."""
    start = int(len(item.ids) > 0 and item.ids[0] == tokenizer.bos_token_id)
    stop = start + shots.room
    ids = np.concatenate([shots.ids[-1:], item.ids[start:stop]]).astype(np.int32)
    target = np.concatenate([[False], item.target[start:stop]])
    return replace(item, ids=ids, target=target, text="")


def _read(context: Context, shots: Shots, items: Sequence[Tokens], which: str, tick: Tick) -> np.ndarray:
    reader, before = context.collector.reader, shots.ids[:-1]
    if has_weights(reader, which):
        from sordino.collect import collect

        made = collect(weights(reader, which), items, after=before, tick=tick)
    else:
        none = np.zeros(len(before), dtype=bool)
        whole = [
            replace(t, ids=np.concatenate([before, t.ids]), target=np.concatenate([none, t.target])) for t in items
        ]
        made = reader.measure(whole, which, tick)
    return np.asarray(made.logprob, dtype=np.float32)
