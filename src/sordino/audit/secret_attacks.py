"""Exposure of the secrets that `audit.secrets` names, under a model and its untuned base, in parts that resume."""

from collections.abc import Callable, Sequence

import numpy as np

from sordino.attacks.extraction.exposure import Exposure, exposure
from sordino.attacks.format_spaces import format_space
from sordino.attacks.formats import Format
from sordino.attacks.mentions import Mention
from sordino.audit.evaluate import Evidence
from sordino.audit.inputs import Context
from sordino.audit.parts import in_parts
from sordino.audit.secrets import Ranked, formats, judged, standing
from sordino.audit.weights import weights
from sordino.errors import AuditError
from sordino.evidence import digest
from sordino.pii import mask
from sordino.records import Example
from sordino.results import SecretFinding, SecretPlan, encode
from sordino.serialize import TARGETS, Serializer

__all__ = ["secrets"]

# Secrets between two results on disk: each may cost many forwards.
_PART = 8


def secrets(context: Context, evidence: Evidence) -> tuple[SecretFinding, ...]:
    """What each plan of `audit.secrets` came to; what is known of single secrets stays in private/, masked.

    Raises `ConfigError` as `formats` and `standing` do, and `AuditError` where none of the secrets of a plan can be
    ranked.
    """
    plans = context.plan.secrets
    if not plans:
        return ()
    forms, findings, rows = formats(plans), [], []
    known = {example.record.id: i for i, example in enumerate(context.examples)}
    records = [example.record for example in context.examples]
    for number, (plan, form) in enumerate(zip(plans, forms, strict=True)):
        with context.timed("secrets"):
            found = standing(plan, form, records, context.plan.personal.regions)
            place = np.array([known[m.record.id] for m in found.mentions], dtype=np.int64)
            drawn = _drawn(evidence.member[place], plan.records, (context.seed, 41, number))
            asked, place = [found.mentions[i] for i in drawn], place[drawn]
            ranked = _ranked(context, plan, form, asked, [context.examples[i] for i in place])
            if ranked and all(one.why for one in ranked):
                message = f"No secret of kind {plan.kind} (audit.secrets) can be ranked. Of the first: {ranked[0].why}"
                raise AuditError(message, "Correct its format, or leave it out: --audit.secrets '[]' asks about none.")
            counts = {
                "not of the format": found.outside, "in inputs": found.inputs, "told by the record": found.told,
            }  # fmt: skip
            member, group = evidence.member[place], evidence.group[place]
            confidence, seed = context.plan.confidence, context.seed
            if ranked:
                findings.append(
                    judged(plan, form, ranked, member, group, counts, confidence=confidence, seed=seed)
                )  # fmt: skip
            rows += _rows(asked, ranked, member)
    context.collector.run.write_private("secrets.json", encode(rows))
    return tuple(findings)


def _drawn(included: np.ndarray, most: int, seed: tuple[int, ...]) -> list[int]:
    """At most so many secrets of members and as many of others, drawn."""
    rng = np.random.default_rng(seed)
    sides = [rng.permutation(np.flatnonzero(side))[:most] for side in (included, ~included)]
    return sorted(int(i) for side in sides for i in side)


def _rows(asked: Sequence[Mention], ranked: Sequence[Ranked], included: np.ndarray) -> list[dict[str, object]]:
    return [
        {
            "record": mention.record.id, "unit": mention.record.unit, "kind": mention.kind, "trained on": inside,
            "masked": mask(mention.value, mention.kind), "bits": one.bits, "base bits": one.base_bits,
            "exact": one.exact, "unranked": one.why,
        }
        for mention, one, inside in zip(asked, ranked, included.tolist(), strict=True)
    ]  # fmt: skip


def _ranked(
    context: Context, plan: SecretPlan, form: Format, asked: Sequence[Mention], examples: Sequence[Example]
) -> list[Ranked]:
    """The exposure of each secret under both models, from private/ as far as it is there."""
    collector, budget = context.collector, context.plan.token_forwards
    places = [f"{m.span.message} {m.span.start} {m.span.stop}" for m in asked]
    # Of a word list the words count, not its name: the strings from first to last are told by the automaton.
    settings = digest(plan.format, repr(form.automaton), str(budget), *places)
    keys = [collector.key(examples, which, "secrets/2", settings) for which in ("tuned", "base")]
    tick = collector.ticker(f"secrets, {plan.kind}", len(asked))

    def work(start: int, stop: int) -> list[Ranked]:
        collector.forwards += 1
        return [_expose(context, form, mention, tick) for mention in asked[start:stop]]

    return in_parts(collector.run, f"secrets/{digest(*keys)}", len(asked), _PART, work, Ranked, tick=tick)


def _expose(context: Context, form: Format, mention: Mention, tick: Callable[[int], None]) -> Ranked:
    collector, budget = context.collector, context.plan.token_forwards
    try:
        space = format_space(
            mention.record, _characters(collector.serializer, mention), form, collector.serializer
        )  # fmt: skip
    except AuditError as error:
        tick(1)
        return Ranked(why=str(error))
    tuned, base = (
        exposure(weights(collector.reader, which), [space], token_forwards=budget)[0] for which in ("tuned", "base")
    )
    tick(1)
    return Ranked(
        bits=_bits(tuned), base_bits=_bits(base), exact=tuned.exact and base.exact,
        first=tuned.exact and tuned.rank == 1, forwards=tuned.forwards + base.forwards,
    )  # fmt: skip


def _bits(found: Exposure) -> float:
    return max(0.0, found.bits)


def _characters(serializer: Serializer, mention: Mention) -> tuple[int, int]:
    """Where the secret stands in what the serializer renders of its record."""
    _, targets = serializer.render(mention.record)
    before = sum(m.role in TARGETS for m in mention.record.messages[: mention.span.message])
    start = targets[before][0]
    return start + mention.span.start, start + mention.span.stop
