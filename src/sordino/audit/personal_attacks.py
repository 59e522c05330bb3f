"""The attacks on personal data, carried out on a model and its untuned base, a part at a time so that they resume."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import msgspec
import numpy as np

from sordino.attacks.base import Attack
from sordino.attacks.in_place import Ranked
from sordino.attacks.mentions import Mention, mentions, questions
from sordino.attacks.produced import Produced, merged
from sordino.audit.evaluate import Evidence
from sordino.audit.inputs import Context
from sordino.audit.personal import Subjects, extracted, guessed
from sordino.audit.persons import PersonRow, person_rows, produced_rows
from sordino.audit.weights import weights
from sordino.evidence import digest
from sordino.pii import NATIONAL_IDS, Detector, Lexicon, default_detectors
from sordino.results import PersonalFinding, encode

__all__ = ["PERSONAL", "personal"]

PERSONAL = ("pii_inference", "pii_reconstruction", "pii_extraction")
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
    plan, records = context.plan.personal, [e.record for e in context.examples]
    labelled = any(record.spans for record in records)
    detectors: list[Detector] = list(default_detectors(regions=plan.regions))
    found = mentions(records, None if labelled else detectors)
    if not found:
        return (), []
    known = {record.id: i for i, record in enumerate(records)}
    place = np.array([known[m.record.id] for m in found])
    subjects = Subjects(mentions=found, included=evidence.member[place], group=evidence.group[place])
    asked = subjects.take(_drawn(subjects, plan.mentions, context.seed))
    looked_up = _only_labelled(found) if labelled else {}
    findings: list[PersonalFinding] = []
    rows: list[PersonRow] = []
    for attack in attacks:
        with context.timed(attack.name):
            made = _MADE[attack.name](_Job(context, attack, subjects, asked, detectors, looked_up))
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
    detectors: list[Detector]
    looked_up: dict[str, str]


_Told = tuple[list[PersonalFinding], list[PersonRow]]


def _drawn(subjects: Subjects, most: int, seed: int) -> np.ndarray:
    """At most so many mentions on either side, drawn."""
    keep, rng = np.zeros(len(subjects.mentions), dtype=bool), np.random.default_rng([seed, 31])
    for side in (subjects.included, ~subjects.included):
        keep[rng.permutation(np.flatnonzero(side))[:most]] = True
    return keep


def _guesses(job: _Job, work: Work[Ranked], asked: Subjects, *, chosen: bool) -> _Told:
    context, name = job.context, job.attack.name
    tuned, base = (_parts(job, which, work, len(asked.mentions), Ranked) for which in ("tuned", "base"))
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


def _inference(job: _Job) -> _Told:
    context, asked = job.context, job.asked
    count = context.plan.personal.candidates
    made = questions(asked.mentions, job.subjects.mentions, candidates=count, seed=context.seed)
    # Of a kind with one entity alone there is nothing to choose from.
    put = {id(question.mention) for question in made}
    judged = asked.take(np.array([id(mention) in put for mention in asked.mentions], dtype=bool))

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = job.attack(model, made[start:stop], context.collector.serializer, tick=tick)
        return found

    return _guesses(job, work, judged, chosen=True)


def _reconstruction(job: _Job) -> _Told:
    context = job.context

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = job.attack(
            model, job.asked.mentions[start:stop], context.collector.serializer, job.detectors,
            samples=context.plan.personal.samples, seed=context.seed, tick=tick,
        )  # fmt: skip
        return found

    return _guesses(job, work, job.asked, chosen=False)


def _extraction(job: _Job) -> _Told:
    from sordino.attacks.extraction.pii_extraction import empty_prompts

    context, plan = job.context, job.context.plan.personal
    every_way = [*job.detectors, *([Lexicon(job.looked_up)] if job.looked_up else [])]

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


_MADE = {"pii_inference": _inference, "pii_reconstruction": _reconstruction, "pii_extraction": _extraction}


def _only_labelled(found: Sequence[Mention]) -> dict[str, str]:
    """Values of kinds that no detector looks for."""
    return {m.value: m.kind for m in found if m.kind not in _DETECTED}


def _parts(job: _Job, which: str, work: Work[T], count: int, kind: type[T]) -> list[T]:
    """The results of `count` questions or texts under a model, from private/ as far as they are there."""
    context, attack = job.context, job.attack
    collector = context.collector
    settings = msgspec.json.encode([asdict(context.plan.personal), context.seed, attack.name])
    spans = (str([tuple(asdict(s).items()) for s in e.record.spans]) for e in context.examples)
    key = collector.key(context.examples, which, "personal/1", digest(settings, *spans))
    name = f"{'model' if which == 'tuned' else 'untuned model'}, {attack.name}"
    tick, found = collector.ticker(name, count), []
    for start in range(0, count, _PART):
        stop = min(start + _PART, count)
        path = f"personal/{key}/{start}-{stop}.json"
        file = collector.run.private / path
        if file.exists():
            tick(stop - start)
        else:
            made = work(weights(collector.reader, which), start, stop, tick)
            collector.forwards += 1
            collector.run.write_private(path, encode(made))
        found += msgspec.json.decode(file.read_bytes(), type=list[kind])  # type: ignore[valid-type]
    return found
