"""Members and non-members given as two files: what is in both is left out, what is alike is one group.

Sordino drew no coin here, so the files are taken at their word about who was trained on; but a record
that stands in both, or nearly so, is evidence of nothing.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from sordino.errors import DataError
from sordino.evidence import digest
from sordino.records import Dataset, Example, Record, Role, Split, content_digest
from sordino.records.split import comparable_text
from sordino.results import Notice

__all__ = ["place"]

# Below this many groups on a side no control and no interval means anything.
_FEWEST = 10


def place(members: Dataset, nonmembers: Dataset, near_duplicates: float, *, known: float = 0.0, seed: int = 0) -> Split:
    """Every record of both as an audit candidate or as excluded, members first, with notices that count.

    Excluded, on both sides, are exact copies and near-duplicates (Jaccard similarity of shingles of at
    least `near_duplicates`; 0: not looked for) of a record on the other side, and the records of units
    that are on both. A group is a unit with all that is nearly alike on its side. A share `known` of the groups on
    each side, drawn by `seed`, is the adversary's: members are then "train" and non-members "validation", and no
    candidates. Raises `DataError` where fewer than 10 groups of candidates remain on a side.
    """
    records = (*members.records, *nonmembers.records)
    inside = np.arange(len(records)) < len(members.records)
    copies = _copies(records, inside)
    parent, near = _clusters(records, inside, near_duplicates)
    shared = _shared_units(records, inside) if members.unit_kind != "record" else set()
    named = [i for i in range(len(records)) if records[i].unit in shared]
    reasons = {i: "units" for i in named} | {i: "near" for i in near} | {i: "copies" for i in copies}
    taken = {record.id for record in members.records}
    groups = [f"{'member' if inside[i] else 'non-member'} {records[p].unit}" for i, p in enumerate(parent)]
    apart = _known({groups[i] for i in range(len(records)) if i not in reasons}, known, seed)
    examples = []
    for i, record in enumerate(records):
        clash = not inside[i] and record.id in taken
        kept = dataclasses.replace(record, id=f"non-member {record.id}") if clash else record
        role: Role = "excluded" if i in reasons else "candidate"
        if role == "candidate" and groups[i] in apart:
            role = "train" if inside[i] else "validation"
        examples.append(Example(record=kept, role=role, included=bool(inside[i]) and i not in reasons, group=groups[i]))
    _check(examples, (members.source, nonmembers.source), Counter(reasons.values()))
    notices = (
        *_named(members, "members"), *_named(nonmembers, "non-members"), *_notices(reasons, inside), *_told(examples)
    )  # fmt: skip
    return Split(examples=tuple(examples), notices=notices)


def _known(groups: set[str], share: float, seed: int) -> set[str]:
    """The groups that are the adversary's: on each side the `share` whose keyed hashes are lowest."""
    found: set[str] = set()
    for side in ("member ", "non-member "):
        mine = sorted((g for g in groups if g.startswith(side)), key=lambda g: digest("known", str(seed), g))
        found |= set(mine[: round(share * len(mine))])
    return found


def _told(examples: Sequence[Example]) -> list[Notice]:
    counts = Counter(e.role for e in examples)
    inside, outside = counts["train"], counts["validation"]
    if not inside + outside:
        return []
    message = f"{inside:,} members and {outside:,} non-members are the adversary's to learn from, and are not judged."
    return [Notice(kind="known", count=inside + outside, message=message)]


def _copies(records: Sequence[Record], inside: np.ndarray) -> set[int]:
    sides: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        sides.setdefault(content_digest(record.messages), []).append(i)
    return {i for found in sides.values() if len({bool(inside[i]) for i in found}) == 2 for i in found}


def _shared_units(records: Sequence[Record], inside: np.ndarray) -> set[str]:
    sides = [{r.unit for r, mine in zip(records, inside, strict=True) if mine == side} for side in (True, False)]
    return sides[0] & sides[1]


def _clusters(records: Sequence[Record], inside: np.ndarray, threshold: float) -> tuple[list[int], set[int]]:
    """The first record of each record's group on its own side, and the records that have a near-copy on the other."""
    parent = list(range(len(records)))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = parent[parent[i]]
            i = parent[i]
        return i

    def join(i: int, j: int) -> None:
        first, second = sorted((root(i), root(j)))
        parent[second] = first

    first_of: dict[tuple[bool, str], int] = {}
    for i, record in enumerate(records):
        join(i, first_of.setdefault((bool(inside[i]), record.unit), i))
    across: set[int] = set()
    if threshold:
        from sordino.records.clusters import index_texts  # here: Numba is loaded where records are compared

        near = index_texts([comparable_text(record) for record in records], threshold)
        for i in range(len(records)):
            for j in near.adjacent(i):
                if inside[i] == inside[j]:
                    join(i, j)
                else:
                    across |= {i, j}
            near.add(i)
    return [root(i) for i in range(len(records))], across


def _check(examples: Sequence[Example], sources: tuple[str, str], excluded: Counter[str]) -> None:
    for side, source in zip((True, False), sources, strict=True):
        left = len({e.group for e in examples if e.role == "candidate" and e.included == side})
        if left < _FEWEST:
            name = "members" if side else "non-members"
            total = sum(excluded.values())
            message = f"{source} leaves {left} independent {name}; at least {_FEWEST} are needed."
            hint = f"{total} records of both files stand, or nearly stand, in both and were left out." if total else ""
            if excluded["units"]:
                hint += f" {excluded['units']} belong to units in both files: without data.unit, records are judged."
            raise DataError(message, hint.strip() or "Give more records; several hundred on each side tell something.")


def _named(dataset: Dataset, side: str) -> list[Notice]:
    return [dataclasses.replace(n, message=f"{side}: {n.message}") for n in dataset.notices]


_WHY = {
    "copies": ("copies-across", "stand word for word in both files"),
    "near": ("near-duplicates-across", "have a near-duplicate in the other file"),
    "units": ("units-across", "belong to units that are in both files"),
}


def _notices(reasons: dict[int, str], inside: np.ndarray) -> list[Notice]:
    notices = []
    for reason, (kind, words) in _WHY.items():
        mine = [i for i, why in reasons.items() if why == reason]
        if mine:
            count = int(inside[mine].sum())
            message = f"{count:,} members and {len(mine) - count:,} non-members {words} and were left out."
            notices.append(Notice(kind=kind, count=len(mine), message=message))
    return notices
