"""The attacks on personal data, carried out on a model and its untuned base, a part at a time so that they resume."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
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
from sordino.pii import Detector, Lexicon, default_detectors
from sordino.results import PersonalFinding, encode

__all__ = ["PERSONAL", "personal"]

PERSONAL = ("pii_inference", "pii_reconstruction", "pii_extraction")
"""The attacks that are made here, by name."""

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
    findings: list[PersonalFinding] = []
    rows: list[PersonRow] = []
    for attack in attacks:
        with context.timed(attack.name):
            made = _MADE[attack.name](context, attack, subjects, asked, detectors, labelled)
            findings += made[0]
            rows += made[1]
    return tuple(findings), rows


def _drawn(subjects: Subjects, most: int, seed: int) -> np.ndarray:
    """At most so many mentions on either side, drawn."""
    keep, rng = np.zeros(len(subjects.mentions), dtype=bool), np.random.default_rng([seed, 31])
    for side in (subjects.included, ~subjects.included):
        keep[rng.permutation(np.flatnonzero(side))[:most]] = True
    return keep


def _guesses(
    context: Context, attack: Attack, work: Work[Ranked], asked: Subjects, count: int, chosen: bool
) -> tuple[list[PersonalFinding], list[PersonRow]]:
    tuned, base = (_parts(context, attack, which, work, count, Ranked) for which in ("tuned", "base"))
    made = guessed(tuned, base, asked, chosen=chosen, confidence=context.plan.confidence, seed=context.seed)
    findings = [
        PersonalFinding(
            attack=attack.name, kind=one.kind, scope=one.scope, members=one.members, base=one.base, others=one.others,
            gain=one.gain, excess=one.excess, p_value=one.p_value, chance=one.chance,
            counts={"untried": one.untried, "candidates": max((r.candidates for r in tuned), default=0)},
        )
        for one in made
    ]  # fmt: skip
    return findings, person_rows(attack.name, tuned, base, asked)


def _inference(
    context: Context, attack: Attack, every: Subjects, asked: Subjects, detectors: list[Detector], labelled: bool
) -> tuple[list[PersonalFinding], list[PersonRow]]:
    made = questions(asked.mentions, every.mentions, candidates=context.plan.personal.candidates, seed=context.seed)
    # Of a kind with one entity alone there is nothing to choose from.
    put = {id(q.mention) for q in made}
    judged = asked.take(np.array([id(m) in put for m in asked.mentions], dtype=bool))

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = attack(model, made[start:stop], context.collector.serializer, tick=tick)
        return found

    return _guesses(context, attack, work, judged, len(made), chosen=True)


def _reconstruction(
    context: Context, attack: Attack, every: Subjects, asked: Subjects, detectors: list[Detector], labelled: bool
) -> tuple[list[PersonalFinding], list[PersonRow]]:
    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Ranked]:
        found: list[Ranked] = attack(
            model, asked.mentions[start:stop], context.collector.serializer, detectors,
            samples=context.plan.personal.samples, seed=context.seed, tick=tick,
        )  # fmt: skip
        return found

    return _guesses(context, attack, work, asked, len(asked.mentions), chosen=False)


def _extraction(
    context: Context, attack: Attack, every: Subjects, asked: Subjects, detectors: list[Detector], labelled: bool
) -> tuple[list[PersonalFinding], list[PersonRow]]:
    from sordino.attacks.extraction.pii_extraction import empty_prompts

    plan, looked_up = context.plan.personal, _only_labelled(every.mentions, labelled)
    every_way = [*detectors, *([Lexicon(looked_up)] if looked_up else [])]

    def work(model: Any, start: int, stop: int, tick: Callable[[int], None]) -> list[Produced]:
        prompts = empty_prompts(model, stop - start)
        length = min(plan.text_tokens, model.context - 1)
        found: list[Produced] = attack(
            model, prompts, every_way, tokens=length, seed=context.seed, first=start, tick=tick
        )
        return found

    tuned, base = (
        merged([_parts(context, attack, which, work, plan.texts, Produced)]) for which in ("tuned", "base")
    )  # fmt: skip
    kinds = sorted(set(looked_up.values()))
    made = extracted(tuned, base, every, looked_up=kinds, confidence=context.plan.confidence, seed=context.seed)
    findings = [
        PersonalFinding(
            attack=attack.name, kind=one.kind, scope=one.scope, members=one.recall, base=one.base_recall,
            others=one.held_out, gain=one.gain, excess=one.excess, p_value=one.p_value, precision=one.precision,
            counts={"generated": one.generated, "base generated": one.base_generated, "leaked": one.leaked},
        )
        for one in made
    ]  # fmt: skip
    return findings, produced_rows(tuned, base, every, attack=attack.name)


_MADE = {"pii_inference": _inference, "pii_reconstruction": _reconstruction, "pii_extraction": _extraction}


def _only_labelled(found: Sequence[Mention], labelled: bool) -> dict[str, str]:
    """Values of kinds that no detector looks for."""
    if not labelled:
        return {}
    seen = {"EMAIL_ADDRESS", "URL", "IP_ADDRESS", "CREDIT_CARD", "IBAN_CODE", "PHONE_NUMBER", "US_SSN", "DATE_TIME"}
    return {m.value: m.kind for m in found if m.kind not in seen}


def _parts(context: Context, attack: Attack, which: str, work: Work[T], count: int, kind: type[T]) -> list[T]:
    """The results of `count` questions or texts under a model, from private/ as far as they are there."""
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
