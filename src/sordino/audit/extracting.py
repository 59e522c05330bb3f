"""Every extraction attack of an audit, one after the other, and what of them is kept in private/."""

from dataclasses import dataclass

from sordino.audit.asking import carry_out
from sordino.audit.choosing import Chosen
from sordino.audit.evaluate import Evidence
from sordino.audit.extracted import attempt
from sordino.audit.inputs import Context, Pair
from sordino.audit.judging import Judge
from sordino.audit.personal_attacks import personal
from sordino.audit.queried import queried
from sordino.audit.secret_attacks import secrets
from sordino.results import Attempt, Effort, PersonalFinding, SecretFinding, encode

__all__ = ["Extracted", "extract"]


@dataclass(frozen=True, kw_only=True)
class Extracted:
    """What came out: `attempts`, one an attack, the `effort` that it takes, `personal` data and `secrets`."""

    attempts: tuple[Attempt, ...]
    effort: tuple[Effort, ...]
    personal: tuple[PersonalFinding, ...]
    secrets: tuple[SecretFinding, ...]


def extract(context: Context, chosen: Chosen, pair: Pair, evidence: Evidence) -> Extracted:
    """Carry out the `chosen` attacks and keep passages, queries a record and rows a person in private/."""
    run, plan, attacks = context.collector.run, context.plan, chosen.extraction
    judge = Judge.of(evidence, plan.confidence, len(attacks) + len(chosen.asking))
    with context.timed("extraction"):
        drawn = [queried(a, pair, judge, plan) for a in attacks.values() if "drawn" in a.inputs]
        rest = [a for a in attacks.values() if "drawn" not in a.inputs]
        pulled = [attempt(a, context.collector, context.examples, pair, judge, plan) for a in rest]
    for one in drawn:
        run.write_private(f"{one.attempt.name}.json", encode(one.rows(pair[0].record_ids)))
    run.write_private("passages.json", encode([p for _, passages in pulled for p in passages]))
    found = {a.name: a for a in (*(a for a, _ in pulled), *(one.attempt for one in drawn))}
    asked = []
    for attack in chosen.asking.values():
        with context.timed(attack.name):
            asked.append(carry_out(context, attack, pair, judge))
    named, people = personal(context, list(chosen.personal.values()), evidence)
    run.write_private("personal.json", encode(people))
    return Extracted(
        attempts=(*(found[name] for name in attacks), *asked),
        effort=tuple(row for one in drawn for row in one.effort),
        personal=named,
        secrets=secrets(context, evidence) if chosen.secrets else (),
    )
