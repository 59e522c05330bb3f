"""The attacks on personal data, carried out on a model and its untuned base, a part at a time so that they resume."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from sordino.attacks.base import Attack
from sordino.attacks.in_place import Ranked
from sordino.attacks.mentions import Mention, Question, questions
from sordino.attacks.produced import Produced, merged
from sordino.attacks.twins import Twin, twins
from sordino.audit.evaluate import Evidence
from sordino.audit.inputs import Context
from sordino.audit.learned import Learned, recovered, softened
from sordino.audit.linked import Entities, entities_of
from sordino.audit.parts import in_parts
from sordino.audit.personal import Subjects, extracted, guessed
from sordino.audit.persons import PersonRow, person_rows, produced_rows
from sordino.audit.weights import weights
from sordino.evidence import digest
from sordino.pii import NATIONAL_IDS, Lexicon
from sordino.results import PersonalFinding

__all__ = ["PERSONAL", "personal"]

PERSONAL = (
    "pii_inference", "pii_reconstruction", "pii_extraction", "pii_twin_prompts", "pii_soft_prompts", "pii_recovery",
)  # fmt: skip
"""The attacks that are made here, by name."""

# Kinds that the detectors look for; labelled values of others are looked up.
_DETECTED = {"EMAIL_ADDRESS", "URL", "IP_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "US_SSN", "DATE_TIME",
             *(number.kind for number in NATIONAL_IDS)}  # fmt: skip
# Questions, places and texts between two results on disk.
_PART = 32

T = TypeVar("T", Ranked, Produced)
Work = Callable[[Any, int, int, Callable[[int], None]], list[T]]
"""`(model, start, stop, tick)` to results of the questions or texts `start:stop`."""


def personal(
    context: Context, attacks: Sequence[Attack], evidence: Evidence
) -> tuple[tuple[PersonalFinding, ...], list[PersonRow]]:
    """What the `attacks` found by kind of entity, and of whom: rows with masked values, for private/.

    Entities are those that the records have labels for, else those that detectors find. Values that only labels
    tell, names and places among them, are looked up in what a model writes.
    """
    if not attacks:
        return (), []
    entities = entities_of(context)
    found = entities.judged
    if not found:
        return (), []
    known = {e.record.id: i for i, e in enumerate(context.examples)}
    place = np.array([known[m.record.id] for m in found])
    subjects = Subjects(mentions=found, included=evidence.member[place], group=evidence.group[place])
    asked = subjects.take(_drawn(subjects, context.plan.personal.mentions, context.seed))
    looked_up = _only_labelled(found) if entities.labelled else {}
    findings: list[PersonalFinding] = []
    rows: list[PersonRow] = []
    for attack in attacks:
        with context.timed(attack.name):
            made = _MADE[attack.name](_Job(context, attack, subjects, asked, entities, looked_up))
            findings += made[0]
            rows += made[1]
    return tuple(findings), rows


@dataclass(frozen=True)
class _Job:
    """An attack, all `subjects` and those that are `asked` about; `looked_up` are values that no detector finds."""

    context: Context
    attack: Attack
    subjects: Subjects
    asked: Subjects
    entities: Entities
    looked_up: dict[str, str]


_Told = tuple[list[PersonalFinding], list[PersonRow]]


def _drawn(subjects: Subjects, most: int, seed: int) -> np.ndarray:
    """At most so many mentions on either side, drawn."""
    keep, rng = np.zeros(len(subjects.mentions), dtype=bool), np.random.default_rng([seed, 31])
    for side in (subjects.included, ~subjects.included):
        keep[rng.permutation(np.flatnonzero(side))[:most]] = True
    return keep


def _guesses(
    job: _Job,
    work_of: Callable[[str], Work[Ranked]],
    asked: Subjects,
    *,
    chosen: bool,
    learned: Mapping[str, Learned] | None = None,
) -> _Told:
    context, name = job.context, job.attack.name
    tuned, base = (
        _parts(job, which, work_of(which), len(asked.mentions), Ranked, learned[which] if learned else None)
        for which in ("tuned", "base")
    )
    made = guessed(tuned, base, asked, chosen=chosen, confidence=context.plan.confidence, seed=context.seed)
    findings = [
        PersonalFinding(
            attack=name, kind=one.kind, scope=one.scope, members=one.members, base=one.base, others=one.others,
            gain=one.gain, excess=one.excess, p_value=one.p_value, chance=one.chance,
            counts={"untried": one.untried, "candidates": max((r.candidates for r in tuned), default=0)},
        )
        for one in made
    ]  # fmt: skip
    return findings, person_rows(name, tuned, base, asked)


def _questions(job: _Job, asked: Subjects) -> tuple[list[Question], Subjects]:
    """A question about each mention that has a decoy, and those mentions."""
    context = job.context
    count = context.plan.personal.candidates
    made = questions(asked.mentions, job.subjects.mentions, candidates=count, seed=context.seed)
    # Of a kind with one entity alone there is nothing to choose from.
    put = {id(question.mention) for question in made}
    return made, asked.take(np.array([id(mention) in put for mention in asked.mentions], dtype=bool))


def _inference(job: _Job) -> _Told:
    context = job.context
    made, judged = _questions(job, job.asked)

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = job.attack(model, made[start:stop], context.collector.serializer, tick=tick)
        return found

    return _guesses(job, lambda _: work, judged, chosen=True)


def _linked(job: _Job) -> tuple[list[Twin], Subjects]:
    """Twins of at most so many mentions on either side that stand beside others, and those mentions."""
    keep = np.array([job.entities.has_links(m) for m in job.subjects.mentions], dtype=bool)
    some = job.subjects.take(keep)
    asked = some.take(_drawn(some, job.context.plan.personal.mentions, job.context.seed))
    made, judged = _questions(job, asked)
    return twins(made, job.entities.linked), judged


def _twin_prompts(job: _Job) -> _Told:
    made, judged = _linked(job)

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = job.attack(model, made[start:stop], job.context.collector.serializer, tick=tick)
        return found

    return _guesses(job, lambda _: work, judged, chosen=True)


def _soft_prompts(job: _Job) -> _Told:
    learned = {which: softened(job.context, job.entities, which) for which in ("tuned", "base")}
    return _after(job, learned, "soft")


def _recovery(job: _Job) -> _Told:
    learned = {which: recovered(job.context, job.entities, which) for which in ("tuned", "base")}
    return _after(job, learned, "overlay")


def _after(job: _Job, learned: Mapping[str, Learned], name: str) -> _Told:
    """Twin prompts after something was learned from known records, which the attack takes under `name`."""
    made, judged = _linked(job)

    def work_of(which: str) -> Work[Ranked]:
        one = learned[which]

        def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
            given = {name: one.get(model)}
            found: list[Ranked] = job.attack(
                model, made[start:stop], one.known, job.context.collector.serializer, tick=tick, **given
            )
            return found

        return work

    return _guesses(job, work_of, judged, chosen=True, learned=learned)


def _reconstruction(job: _Job) -> _Told:
    context = job.context

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = job.attack(
            model, job.asked.mentions[start:stop], context.collector.serializer, job.entities.detectors,
            samples=context.plan.personal.samples, seed=context.seed, tick=tick,
        )  # fmt: skip
        return found

    return _guesses(job, lambda _: work, job.asked, chosen=False)


def _extraction(job: _Job) -> _Told:
    from sordino.attacks.extraction.pii_extraction import empty_prompts

    context, plan = job.context, job.context.plan.personal
    every_way = [*job.entities.detectors, *([Lexicon(job.looked_up)] if job.looked_up else [])]

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Produced]:
        prompts, length = empty_prompts(model, stop - start), min(plan.text_tokens, model.context - 1)
        found: list[Produced] = job.attack(
            model, prompts, every_way, tokens=length, seed=context.seed, first=start, tick=tick
        )
        return found

    tuned, base = (merged([_parts(job, which, work, plan.texts, Produced)]) for which in ("tuned", "base"))
    made = extracted(
        tuned, base, job.subjects, looked_up=sorted(set(job.looked_up.values())),
        confidence=context.plan.confidence, seed=context.seed,
    )  # fmt: skip
    findings = [
        PersonalFinding(
            attack=job.attack.name, kind=one.kind, scope=one.scope, members=one.recall, base=one.base_recall,
            others=one.held_out, gain=one.gain, excess=one.excess, p_value=one.p_value, precision=one.precision,
            counts={"generated": one.generated, "base generated": one.base_generated, "leaked": one.leaked},
        )
        for one in made
    ]  # fmt: skip
    return findings, produced_rows(tuned, base, job.subjects, attack=job.attack.name)


_MADE = {
    "pii_inference": _inference, "pii_reconstruction": _reconstruction, "pii_extraction": _extraction,
    "pii_twin_prompts": _twin_prompts, "pii_soft_prompts": _soft_prompts, "pii_recovery": _recovery,
}  # fmt: skip


def _only_labelled(found: Sequence[Mention]) -> dict[str, str]:
    """Values of kinds that no detector looks for."""
    return {m.value: m.kind for m in found if m.kind not in _DETECTED}


def _parts(job: _Job, which: str, work: Work[T], count: int, kind: type[T], learned: Learned | None = None) -> list[T]:
    """The results of `count` questions or texts under a model, from private/ as far as they are there."""
    context, attack = job.context, job.attack
    collector = context.collector
    settings = msgspec.json.encode([asdict(context.plan.personal), context.seed, attack.name])
    spans = (str([tuple(asdict(s).items()) for s in e.record.spans]) for e in context.examples)
    more = () if learned is None else (learned.key,)
    key = collector.key(context.examples, which, "personal/1", digest(settings, *spans), *more)
    name = f"{'model' if which == 'tuned' else 'untuned model'}, {attack.name}"
    tick = collector.ticker(name, count)

    def made(start: int, stop: int) -> list[T]:
        collector.forwards += 1
        return work(weights(collector.reader, which), start, stop, tick)

    return in_parts(collector.run, f"personal/{key}", count, _PART, made, kind, tick=tick)
