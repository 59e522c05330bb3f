"""Mentions of personal data in records, and the questions that attacks ask about them."""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from sordino.errors import ConfigError
from sordino.pii import Detector, Span, canonical, detect
from sordino.records import Message, Record
from sordino.serialize import TARGETS

__all__ = ["Mention", "Question", "mentions", "question_seed", "questions"]

# Digits and letters of a number that are not found in another one by chance.
_SURE = 6


@dataclass(frozen=True, kw_only=True)
class Mention:
    """An entity where it stands in a record."""

    record: Record
    span: Span

    @property
    def kind(self) -> str:
        """What it is."""
        return self.span.kind

    @property
    def value(self) -> str:
        """How it is written there."""
        return self.span.of(self.record.messages[self.span.message].content)

    @property
    def key(self) -> str:
        """What all mentions of the same entity have in common."""
        return canonical(self.value, self.kind)

    @property
    def scored(self) -> bool:
        """Whether it stands in a part that the model is trained to write; else it stands in inputs alone."""
        return self.record.messages[self.span.message].role in TARGETS

    def with_value(self, value: str) -> Record:
        """The record with `value` in its place."""
        messages = list(self.record.messages)
        role, text = messages[self.span.message].role, messages[self.span.message].content
        messages[self.span.message] = Message(role, text[: self.span.start] + value + text[self.span.stop :])
        return replace(self.record, messages=tuple(messages), spans=())

    def repeated(self) -> bool:
        """Whether the rest of the record, which the adversary knows, tells it."""
        rest = "\0".join(message.content for message in self.with_value("\0").messages)
        if canonical(self.value, "") in canonical(rest, ""):
            return True
        bare = "".join(c for c in rest if c.isalnum() or c == "\0").casefold()
        return self.key.isalnum() and any(c.isdigit() for c in self.key) and len(self.key) >= _SURE and self.key in bare


@dataclass(frozen=True, kw_only=True)
class Question:
    """Which of `values` stands at the place of a mention? Number `answer` is right."""

    mention: Mention
    values: tuple[str, ...]
    answer: int


def mentions(
    records: Iterable[Record], detectors: Sequence[Detector] | None = None, *, repeated: bool = False
) -> list[Mention]:
    """The first mention of each entity in each record: as labelled, or as `detectors` find them, if there are any.

    Without `repeated`, entities are left out that stand twice in a record: what it tells about them is no leak of the
    model.
    """
    found = []
    for record in records:
        seen = set()
        for span in record.spans if detectors is None else _detected(record, detectors):
            mention = Mention(record=record, span=span)
            name = (mention.kind, mention.key)
            if name not in seen and (repeated or not mention.repeated()):
                found.append(mention)
            seen.add(name)
    return found


def _detected(record: Record, detectors: Sequence[Detector]) -> list[Span]:
    return [
        replace(span, message=number)
        for number, message in enumerate(record.messages)
        for span in detect(message.content, detectors)
    ]


def questions(
    asked: Sequence[Mention], pool: Sequence[Mention] | None = None, *, candidates: int = 100, seed: int = 0
) -> list[Question]:
    """A question about each mention: its value among `candidates` in all, the others drawn from entities of `pool`.

    Decoys are of the same kind, from other records, none of them in the record asked about; `pool` (default: `asked`)
    should have members and non-members alike, or a decoy's own membership would tell. Where a kind has fewer entities,
    there are fewer candidates; a question without any decoy is left out. What is drawn depends on `seed`, the record
    and the pool, not on what else is asked.
    """
    if candidates < 2:
        raise ConfigError(f"candidates is {candidates}.", "A question has the true value and a decoy at least.")
    values: dict[str, dict[str, str]] = {}
    for mention in asked if pool is None else pool:
        values.setdefault(mention.kind, {}).setdefault(mention.key, mention.value)
    sorted_keys = {kind: sorted(known) for kind, known in values.items()}
    made = []
    for mention in asked:
        known = values.get(mention.kind, {})
        here = canonical("\0".join(m.content for m in mention.record.messages), "")
        others = [
            k for k in sorted_keys.get(mention.kind, []) if k != mention.key and canonical(known[k], "") not in here
        ]
        if not others:
            continue
        rng = np.random.default_rng(question_seed(mention, seed))
        chosen = rng.choice(len(others), size=min(candidates - 1, len(others)), replace=False)
        place = int(rng.integers(len(chosen) + 1))
        drawn = [known[others[i]] for i in chosen.tolist()]
        made.append(Question(mention=mention, values=(*drawn[:place], mention.value, *drawn[place:]), answer=place))
    return made


def question_seed(mention: Mention, seed: int) -> int:
    """A seed for all that is drawn about one mention: of `seed`, its record and its place."""
    name = f"{seed}\0{mention.record.id}\0{mention.span.message}\0{mention.span.start}\0{mention.kind}"
    return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest())
