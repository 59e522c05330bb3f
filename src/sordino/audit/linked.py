"""Entities that stand together in a record: of the records that are judged, and of those that the adversary knows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sordino.attacks.mentions import Mention, Question, mentions
from sordino.attacks.twins import Twin, linked_to, twins
from sordino.audit.held import lacking_embeddings, lacking_gradients
from sordino.audit.inputs import Context
from sordino.pii import Detector, default_detectors
from sordino.records import Record

__all__ = ["LEAST", "ON_KNOWN", "ON_LINKED", "Entities", "entities_of", "lacking_links"]

ON_KNOWN = ("pii_soft_prompts", "pii_recovery")
"""The attacks that learn from known records."""
ON_LINKED = ("pii_twin_prompts", *ON_KNOWN)
"""The attacks that ask for one entity of a record by the others."""
LEAST = 5
"""From fewer known entities nothing is learned."""


@dataclass(frozen=True, kw_only=True)
class Entities:
    """What personal data the records have: `labelled`, or as `detectors` find them.

    `judged` are mentions in judged records; `linked` all of a judged or known record, by its id, those that it repeats
    among them; `known` mentions in known records that were trained on, of which no judged record has the value.
    """

    labelled: bool
    detectors: list[Detector]
    judged: Sequence[Mention]
    known: Sequence[Mention]
    linked: Mapping[str, Sequence[Mention]]

    def has_links(self, mention: Mention) -> bool:
        """Whether other entities of its record can be used to ask for it."""
        return bool(linked_to(mention, self.linked.get(mention.record.id, ())))

    def known_twins(self, people: int | None, seed: int) -> list[Twin]:
        """The questions that known mentions answer, each with its true value alone; of so many units, drawn, or all."""
        chosen = self.known
        if people is not None:
            units = sorted({m.record.unit for m in self.known if self.has_links(m)})
            drawn = np.random.default_rng([seed, 43]).permutation(len(units))[:people]
            keep = {units[i] for i in drawn.tolist()}
            chosen = [m for m in self.known if m.record.unit in keep]
        return twins([Question(mention=m, values=(m.value,), answer=0) for m in chosen], self.linked)


def entities_of(context: Context) -> Entities:
    """The entities of an audit's records, looked for once."""
    if "entities" not in context.kept:
        context.kept["entities"] = _found(context)
    found = context.kept["entities"]
    assert isinstance(found, Entities)  # nothing else is kept under this name
    return found


def _found(context: Context) -> Entities:
    judged = [e.record for e in context.examples]
    labelled = any(record.spans for record in judged)
    detectors: list[Detector] = list(default_detectors(regions=context.plan.personal.regions))
    using = None if labelled else detectors
    known = [e.record for e in context.members]
    linked: dict[str, list[Mention]] = {}
    for mention in mentions([*judged, *known], using, repeated=True):
        linked.setdefault(mention.record.id, []).append(mention)
    asked = _unrepeated(judged, linked)
    # What a known record teaches is not to be among what is asked for, or the candidates.
    values = {(m.kind, m.key) for record in judged for m in linked.get(record.id, ())}
    others = [m for m in _unrepeated(known, linked) if (m.kind, m.key) not in values]
    return Entities(labelled=labelled, detectors=detectors, judged=asked, known=others, linked=linked)


def _unrepeated(records: Sequence[Record], linked: Mapping[str, Sequence[Mention]]) -> list[Mention]:
    return [m for record in records for m in linked.get(record.id, ()) if not m.repeated()]


def lacking_links(name: str, context: Context) -> str:
    """What is missing to make the attack called `name` on entities that stand together, in words, or ""."""
    entities = entities_of(context)
    words = [] if any(map(entities.has_links, entities.judged)) else ["records with two or more entities"]
    if name in ON_KNOWN:
        lacking = lacking_embeddings if name == "pii_soft_prompts" else lacking_gradients
        words += [more] if (more := lacking(context)) else []
        count = len(entities.known_twins(None, 0))
        if count < LEAST:
            where = "lower split.candidates, or give --known"
            least = f"at least {LEAST} entities of known records that stand beside others, not {count} ({where})"
            words.append(least)
    return " and ".join(words)
