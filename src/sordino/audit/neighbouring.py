"""Neighbours of records: the same texts with some tokens replaced by others that would fit as well."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np

from sordino.audit.inputs.context import Context
from sordino.audit.weights import has_weights, weights
from sordino.evidence import digest
from sordino.records import Example, content_digest
from sordino.results import InputPlan
from sordino.serialize import Tokens
from sordino.signals import Ragged, Scores, Statistics

__all__ = ["LIKELY", "generator", "mean_nll", "missing", "neighbours_of", "replaced_places", "substituted"]

LIKELY = 10
"""A token is replaced by a draw from the so many likeliest others."""

# Asked for beyond those, in case that some are the token itself or special ones.
_SPARE = 4
# Texts that are scored, or records whose substitutes are held in memory, at a time.
_TEXTS, _RECORDS = 8192, 512


def missing(context: Context) -> str:
    """What is missing to write neighbours, in words."""
    subject = context.collector.subject
    if context.settings.masked_lm is not None or has_weights(subject, "base") or has_weights(subject, "tuned"):
        return ""
    return "a masked language model (audit.inputs.masked_lm), as there are no weights to draw substitutes from"


def generator(context: Context, example: Example) -> np.random.Generator:
    """Random numbers that depend on the audit's seed and on what the record says, not on where it stands."""
    name = digest("neighbours", str(context.seed), content_digest(example.record.messages, example.record.label))
    return np.random.default_rng(int(name, 16))


def replaced_places(count: int, share: float, span: int, rng: np.random.Generator) -> np.ndarray:
    """Which of `count` tokens to replace: max(1, `share` of them), in spans of `span` that begin anywhere."""
    wanted, chosen = max(1, round(share * count)), np.zeros(count, dtype=bool)
    for start in rng.permutation(count):
        left = wanted - int(chosen.sum())
        if left <= 0:
            break
        chosen[start : start + min(span, left)] = True
    return np.flatnonzero(chosen)


def substituted(
    item: Tokens, likely: np.ndarray, logs: np.ndarray, special: np.ndarray, plan: InputPlan, rng: np.random.Generator
) -> list[Tokens]:
    """The neighbours of a record: as long as it is, each with some of its targets drawn anew.

    `likely` and `logs` (targets, k) are the tokens that a model finds likeliest in place of each target, and
    their ln p; never drawn are the token itself and `special` ones. A record without a token that could be
    replaced has itself for neighbours.
    """
    targets = np.flatnonzero(item.target)
    own = item.ids[targets]
    chances = _first(np.where((likely == own[:, None]) | np.isin(likely, special), -np.inf, logs), LIKELY)
    free = np.flatnonzero(~np.isin(own, special) & np.isfinite(chances).any(axis=1))
    made = []
    for _ in range(plan.neighbours):
        ids = item.ids.copy()
        if len(free):
            places = free[replaced_places(len(free), plan.replaced, plan.span, rng)]
            drawn = (chances[places] + rng.gumbel(size=(len(places), chances.shape[1]))).argmax(axis=1)
            ids[targets[places]] = likely[places, drawn]
        made.append(replace(item, ids=ids, text=""))
    return made


def _first(chances: np.ndarray, count: int) -> np.ndarray:
    """`chances` (rows, k), best first, with −∞ behind the first `count` finite ones."""
    return np.where(np.cumsum(np.isfinite(chances), axis=1) <= count, chances, -np.inf)


def neighbours_of(context: Context) -> tuple[str, list[Tokens]]:
    """The neighbours of all examples, `settings.neighbours` of each in a row, and the key they are kept under."""
    collector, plan = context.collector, context.settings
    settings = ("neighbours/1", str(plan.neighbours), repr(plan.replaced), str(plan.span), str(context.seed))
    if plan.masked_lm is not None:
        from sordino.audit.masked import masked_identity, rewritten

        key = collector.key(context.examples, "tuned", *settings, masked_identity(plan.masked_lm))
        context.say("neighbours", f"Neighbours were written by the masked language model {plan.masked_lm}.")
        return key, _kept(context, key, lambda: rewritten(context))
    which = "base" if has_weights(collector.subject, "base") else "tuned"
    who = "the untuned model" if which == "base" else "the model itself, as there is no untuned one,"
    drawn = f"each from the {LIKELY} likeliest other tokens, given the text before them"
    context.say("neighbours", f"Neighbours were drawn by {who} token by token: {drawn}.")
    key = collector.key(context.examples, which, *settings, str(LIKELY))
    return key, _kept(context, key, lambda: _drawn(context, which))


def _kept(context: Context, key: str, make: Callable[[], list[Tokens]]) -> list[Tokens]:
    store = context.collector.store
    found = store.arrays(key)
    if found is None:
        made = make()
        flat = {"ids": [t.ids for t in made], "target": [t.target for t in made]}
        found = {name: np.concatenate([np.empty(0, column[0].dtype), *column]) for name, column in flat.items()}
        found["edges"] = np.cumsum([0, *map(len, made)]).astype(np.int64)
        store.put_arrays(key, found, {"kind": "neighbours", "texts": len(made)})
    edges = found["edges"]
    return [
        Tokens(ids=np.asarray(found["ids"][a:b]), target=np.asarray(found["target"][a:b]), text="")
        for a, b in pairwise(edges.tolist())
    ]


def _drawn(context: Context, which: str) -> list[Tokens]:
    from sordino.collect import likeliest

    collector, examples = context.collector, context.examples
    special = np.array(sorted(collector.serializer.tokenizer.all_special_ids), dtype=np.int32)
    model = weights(collector.reader, which)
    tick = collector.ticker("neighbours drawn", len(examples))
    collector.forwards += 1
    made: list[Tokens] = []
    for start in range(0, len(examples), _RECORDS):
        some = examples[start : start + _RECORDS]
        items = [collector.encode(e) for e in some]
        ids, logs = likeliest(model, items, LIKELY + _SPARE, tick=tick)
        edges = np.cumsum([0, *(int(t.target.sum()) for t in items)])
        for i, (item, example) in enumerate(zip(items, some, strict=True)):
            rows = slice(edges[i], edges[i + 1])
            rng = generator(context, example)
            made += substituted(item, ids[rows], logs[rows], special, context.settings, rng)
    return made


def mean_nll(texts: Sequence[Tokens], measure: Callable[[Sequence[Tokens]], Statistics]) -> Scores:
    """ℓ of each of `texts` by `measure`, in nats a token, of which statistics of few texts exist at a time."""
    made = [np.empty(0)]
    for start in range(0, len(texts), _TEXTS):
        found = measure(texts[start : start + _TEXTS])
        made.append(-Ragged(found.logprob, found.offsets).mean())
    return np.concatenate(made)
