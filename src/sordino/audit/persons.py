"""What attacks on personal data found of whom: a row for each entity of each unit, its value masked."""

from collections.abc import Sequence
from dataclasses import dataclass

from sordino.attacks.in_place import Ranked
from sordino.attacks.mentions import Mention
from sordino.attacks.produced import Produced
from sordino.audit.personal import Scope, Subjects
from sordino.pii import mask

__all__ = ["PersonRow", "person_rows", "produced_rows"]


@dataclass(frozen=True, kw_only=True)
class PersonRow:
    """What an attack found of one entity of one unit; `masked` may be shown to those who may not see the value.

    `rank` is that of the true value, or for extraction the number of generations until it was written; None: never.
    """

    unit: str
    record_id: str
    kind: str
    masked: str
    attack: str
    scope: Scope
    included: bool
    rank: float | None
    base_rank: float | None
    queries: int


def person_rows(attack: str, tuned: Sequence[Ranked], base: Sequence[Ranked], subjects: Subjects) -> list[PersonRow]:
    """A row for each mention that could be asked about, by unit; of both members and others."""
    rows = [
        _row(attack, mention, included, a.rank, b.rank, a.queries)
        for mention, included, a, b in zip(subjects.mentions, subjects.included.tolist(), tuned, base, strict=True)
        if a.tried and b.tried
    ]
    return sorted(rows, key=lambda row: (row.unit, row.record_id, row.kind, row.masked))


def produced_rows(
    tuned: Sequence[Produced], base: Sequence[Produced], subjects: Subjects, *, attack: str = "pii_extraction"
) -> list[PersonRow]:
    """A row for each mention whose entity the tuned model wrote; whoever shares it has a row too."""
    ours, theirs = ({(p.kind, p.key): p for p in found} for found in (tuned, base))
    rows = []
    for mention, included in zip(subjects.mentions, subjects.included.tolist(), strict=True):
        one, before = (found.get((mention.kind, mention.key)) for found in (ours, theirs))
        if one is not None:
            after = one.first + 1
            rows.append(_row(attack, mention, included, after, None if before is None else before.first + 1, after))
    return sorted(rows, key=lambda row: (row.unit, row.record_id, row.kind, row.masked))


def _row(
    attack: str, mention: Mention, included: bool, rank: float | None, base_rank: float | None, queries: int
) -> PersonRow:
    return PersonRow(
        unit=mention.record.unit,
        record_id=mention.record.id,
        kind=mention.kind,
        masked=mask(mention.value, mention.kind),
        attack=attack,
        scope="trained" if mention.scored else "inputs",
        included=included,
        rank=None if rank is None else float(rank),
        base_rank=None if base_rank is None else float(base_rank),
        queries=queries,
    )
