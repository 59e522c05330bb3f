"""Which records come out after a soft prompt that was trained on known members, beside those that come without it."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from sordino import stats
from sordino.attacks.base import Attack
from sordino.attacks.passages import SHORTEST, windows
from sordino.audit.evaluate import estimate
from sordino.audit.extracted import Passage
from sordino.audit.held import held, lacking_embeddings
from sordino.audit.inputs import Context, Pair
from sordino.audit.judging import Judge, attempted
from sordino.audit.parts import in_parts
from sordino.audit.subjects import Trained
from sordino.audit.weights import weights
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import Attempt, Estimate, encode
from sordino.serialize import Tokens

__all__ = ["FEWEST", "carry_out", "lacking"]

FEWEST = 16
"""Known passages that a soft prompt is trained on at least: one batch."""

# Records between two results on disk, pairs a step, and the tokens of highest loss that smoothing weighs (N).
_PART, _BATCH, _HIGHEST = 32, 16, 5


def lacking(context: Context) -> str:
    """Weights that have gradients, a model that reads embeddings, and known members that are long enough."""
    words, members = lacking_embeddings(context), context.members
    if words:
        return words
    # Few members need not be read to know that they are too few.
    count = len(_passages(context, members)) if len(members) >= FEWEST else len(members)
    if count >= FEWEST:
        return ""
    more = "lower split.candidates" if isinstance(held(context), Trained) else "give --known a share"
    return (
        f"at least {FEWEST} records known to be trained on that have a passage and room for the soft prompt, not "
        f"{count} ({more})"
    )


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The first passage of a record: its tokens `start:stop`, which shrank where `shortened`."""

    example: Example
    ids: np.ndarray
    start: int
    stop: int
    shortened: bool

    @property
    def prefix(self) -> np.ndarray:
        return self.ids[: self.start]

    @property
    def suffix(self) -> np.ndarray:
        return self.ids[self.start : self.stop]


class _Written(msgspec.Struct, frozen=True, kw_only=True):
    """What a model wrote in place of one record's passage, as it is kept in private/."""

    soft: list[int]
    plain: list[int]


@dataclass(frozen=True, kw_only=True)
class _Found:
    """Which of the records asked about came out word for word, with the soft prompt and without; its `losses`."""

    soft: np.ndarray
    plain: np.ndarray
    losses: np.ndarray


def carry_out(context: Context, attack: Attack, pair: Pair, judge: Judge) -> Attempt:
    """The share of records whose first passage comes word for word after a soft prompt trained on known members.

    The untuned model has a soft prompt of its own, trained on the same. `plain` is the share of trained-on records
    whose passage comes without one, `gain` the paired difference.
    """
    plan = context.plan.soft_prompt
    known, asked = (_passages(context, some) for some in (context.members, context.examples))
    possible = np.zeros(len(context.examples), dtype=bool)
    possible[list(asked)] = True
    chosen = judge.drawn(possible, plan.records, context.seed)
    judged = [asked[i] for i in chosen.tolist()]
    pairs = list(known.values())
    tuned = _found(context, attack, pairs, judged, "tuned")
    base = None if pair[1] is None else _found(context, attack, pairs, judged, "base")
    _keep(context, attack, judged, tuned, base)
    tried = np.zeros_like(possible)
    tried[chosen] = True
    return attempted(
        attack,
        parameters={
            "prefix_tokens": context.plan.prefix_tokens, "suffix_tokens": context.plan.suffix_tokens,
            "tokens": plan.tokens, "steps": plan.steps, "learning_rate": plan.learning_rate,
            "batch_size": _BATCH, "smoothing": plan.smoothing, "smoothing_tokens": _HIGHEST,
        },
        estimates=_estimates(judge, chosen, tuned),
        control={} if base is None else _estimates(judge, chosen, base),
        records=len(chosen),
        coins=judge.coins(tried),
        notes=_notes(context, len(pairs), asked, judged, tuned),
    )  # fmt: skip


def _estimates(judge: Judge, chosen: np.ndarray, found: _Found) -> dict[str, Estimate]:
    """The shares after the soft prompt, and at trained-on records those without it and the paired difference."""
    member, group = judge.evidence.member[chosen], judge.evidence.group[chosen]
    soft, tried = np.zeros((2, len(judge.evidence.member)), dtype=bool)
    soft[chosen], tried[chosen] = found.soft, True
    plain = np.zeros_like(soft)
    plain[chosen] = found.plain
    made = judge.shares(soft, tried)
    made["plain"] = judge.share(plain, tried & judge.evidence.member)
    if member.any():
        gain = stats.paired_difference(found.soft[member], found.plain[member], group[member], judge.confidence)
        made["gain"] = estimate(gain)
    return made


def _notes(
    context: Context, known: int, asked: dict[int, _Asked], judged: Sequence[_Asked], found: _Found
) -> tuple[str, ...]:
    plan, losses = context.plan.soft_prompt, found.losses
    few = max(1, len(losses) // 10)
    notes = [
        f"The soft prompt was trained on the first passages of {known} known members, none of them judged: its loss "
        f"went from {losses[:few].mean():.3g} to {losses[-few:].mean():.3g}.",
        f"{len(judged)} records were drawn, at most {plan.records} on either side, and the first passage of each was "
        f"asked for. {int(found.soft.sum())} came word for word, {int(found.plain.sum())} without the soft prompt and "
        f"{int((found.soft & found.plain).sum())} either way.",
    ]
    shortened = sum(one.shortened for one in judged)
    if shortened:
        notes.append(f"In {shortened} records, too short for the lengths asked for, both shrank in proportion.")
    left = len(context.examples) - len(asked)
    if left:
        notes.append(f"{left} records are too short to be tried, or leave no room for the soft prompt.")
    return tuple(notes)


def _passages(context: Context, examples: Sequence[Example]) -> dict[int, _Asked]:
    """The first passage of each record that has one, and room before it for the soft prompt, by its number."""
    room = _room(context) - context.plan.soft_prompt.tokens
    found = {}
    for number, example in enumerate(examples):
        one = _first(context, example, context.collector.encode(example))
        if one is not None and one.stop <= room:
            found[number] = one
    return found


def _room(context: Context) -> int:
    """How many tokens the model reads at once, and its base where that is another; loads no weights."""
    subject = held(context)
    if isinstance(subject, Trained):
        return int(subject.card.model["context"])
    from sordino.deployed import context_of

    base = None if subject.base is None else context_of(subject.base)
    return min(subject.context, base or subject.context)


def _first(context: Context, example: Example, tokens: Tokens) -> _Asked | None:
    position = np.flatnonzero(tokens.target)
    if len(position) < SHORTEST:
        return None
    first, length, shortened = windows(position, context.plan.prefix_tokens, context.plan.suffix_tokens)
    if not len(first) or not position[first[0]]:
        return None
    start = int(position[first[0]])
    return _Asked(example=example, ids=tokens.ids, start=start, stop=start + length, shortened=shortened)


def _key(context: Context, asked: Sequence[_Asked], which: str, *more: str) -> str:
    """A digest of all that a result of these passages depends on."""
    spans = str([(one.start, one.stop) for one in asked])
    return context.collector.key([one.example for one in asked], which, *more, spans)


def _found(
    context: Context, attack: Attack, known: Sequence[_Asked], judged: Sequence[_Asked], which: str
) -> _Found:  # fmt: skip
    """What came out of a model; from private/ as far as it is there."""
    trained, soft = _trained(context, known, which)
    collector = context.collector
    key = _key(context, judged, which, "soft prompt, decoded/1", trained)
    name = f"{'model' if which == 'tuned' else 'untuned model'}, {attack.name}"
    tick = collector.ticker(name, len(judged))

    def work(start: int, stop: int) -> list[_Written]:
        part, vectors = judged[start:stop], _soft(soft)
        prefixes, lengths = [one.prefix for one in part], [len(one.suffix) for one in part]
        made = attack(weights(collector.reader, which), vectors, prefixes, lengths)
        collector.forwards += 2
        tick(len(part))
        return [_Written(soft=a.tolist(), plain=b.tolist()) for a, b in zip(made.soft, made.plain, strict=True)]

    written = in_parts(collector.run, f"soft_prompt/{key}", len(judged), _PART, work, _Written, tick=tick)
    true = [one.suffix.tolist() for one in judged]
    return _Found(
        soft=np.array([row.soft == own for row, own in zip(written, true, strict=True)], dtype=bool),
        plain=np.array([row.plain == own for row, own in zip(written, true, strict=True)], dtype=bool),
        losses=np.asarray(soft["losses"], dtype=np.float64),
    )


def _trained(context: Context, known: Sequence[_Asked], which: str) -> tuple[str, dict[str, np.ndarray]]:
    """The key of the soft prompt for a model, and its vectors and losses: trained, or as it was before."""
    collector, plan = context.collector, context.plan.soft_prompt
    settings = [plan.tokens, plan.steps, plan.learning_rate, plan.smoothing, _BATCH, _HIGHEST, context.seed]
    key = _key(context, known, which, "soft prompt/1", digest(encode(settings)))
    found = collector.store.arrays(key)
    if found is None:
        from sordino.attacks.soft_prompts import train_soft_prompt

        name = f"soft prompt of the {'' if which == 'tuned' else 'untuned '}model"
        made = train_soft_prompt(
            weights(collector.reader, which),
            [(one.prefix, one.suffix) for one in known],
            tokens=plan.tokens,
            steps=plan.steps,
            learning_rate=plan.learning_rate,
            batch_size=_BATCH,
            smoothing=plan.smoothing,
            smoothing_tokens=_HIGHEST,
            seed=context.seed,
            tick=collector.ticker(name, plan.steps),
        )
        collector.forwards += plan.steps
        found = {"vectors": made.vectors, "losses": np.array(made.losses)}
        manifest = {"definition": "soft prompt/1", "model": which, "known": len(known), **collector.reader.manifest()}
        collector.store.put_arrays(key, found, manifest)
    return key, found


def _soft(found: dict[str, np.ndarray]) -> object:
    from sordino.attacks.soft_prompts import SoftPrompt

    return SoftPrompt(vectors=np.array(found["vectors"], dtype=np.float32), losses=tuple(found["losses"].tolist()))


def _keep(context: Context, attack: Attack, judged: Sequence[_Asked], tuned: _Found, base: _Found | None) -> None:
    """The passages that came out of the tuned model, in private/."""
    decode = context.collector.serializer.tokenizer.decode
    rows = [
        Passage(
            record_id=one.example.record.id, member=one.example.included,
            prefix=decode(one.prefix, skip_special_tokens=True), suffix=decode(one.suffix, skip_special_tokens=True),
            tokens=len(one.suffix), base_hit=base is not None and bool(base.soft[i]), confirmed=True,
        )
        for i, one in enumerate(judged) if tuned.soft[i]
    ]  # fmt: skip
    context.collector.run.write_private(f"{attack.name}.json", encode(rows))
