"""Who trains and who is held out: roles and coins drawn from keyed hashes before the first step.

A share of the units are audit candidates; each is included with probability exactly ½, one coin per unit
or near-duplicate cluster. All others always train and never enter an ε bound. Members are the candidates
in, the hold-out the candidates out. Records are placed in the order of the file, their age, by what came
before them alone: appending records never moves an old record's role or coin.
"""

import hashlib
import math
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

from sordino.errors import ConfigError, DataError
from sordino.records.record import Dataset, Record
from sordino.results import Notice

__all__ = ["Example", "Role", "Split", "SplitConfig", "coin", "comparable_text", "split"]

MIN_GROUPS, MIN_SIDE = 20, 10  # candidate groups, and those on either side of the coin
NON_MEMBERS_PER_FPR = 10  # a false-positive rate needs 10 / FPR non-members
GOOD_FPR = 0.01
LARGE_CLUSTER = 0.1  # of the units

Role = Literal["train", "candidate", "validation", "canary", "excluded"]


@dataclass(frozen=True, kw_only=True)
class SplitConfig:
    """Shares of the units: audit `candidates` and `validation`; all others always train.

    `near_duplicates` is the Jaccard similarity of shingles from which two records share a coin;
    0 switches the search off.
    """

    candidates: float = 0.4
    validation: float = 0.1
    near_duplicates: float = 0.8


@dataclass(frozen=True, kw_only=True)
class Example:
    """A record, its role, and whether it is trained on.

    `included` is True for "train", the coin for "candidate" and "canary", False for "validation" and
    "excluded". `group` is what shares a coin: the oldest unit of the near-duplicate cluster.
    `repetitions` is how often a canary stands in the training data.
    """

    record: Record
    role: Role
    included: bool
    group: str
    repetitions: int = 1


@dataclass(frozen=True, kw_only=True)
class Split:
    """Every record with its placement, in file order, canaries last."""

    examples: tuple[Example, ...]
    notices: tuple[Notice, ...] = ()

    @property
    def training(self) -> tuple[Example, ...]:
        """All that is trained on: the rest, the candidates and the canaries whose coin fell in."""
        return tuple(example for example in self.examples if example.included)

    @property
    def members(self) -> tuple[Example, ...]:
        """Candidates in."""
        return tuple(e for e in self.examples if e.role == "candidate" and e.included)

    @property
    def nonmembers(self) -> tuple[Example, ...]:
        """Candidates out: the hold-out set."""
        return tuple(e for e in self.examples if e.role == "candidate" and not e.included)

    @property
    def validation(self) -> tuple[Example, ...]:
        """Records that only measure utility."""
        return tuple(e for e in self.examples if e.role == "validation")

    @property
    def canaries(self) -> tuple[Example, ...]:
        """Canaries in and out."""
        return tuple(e for e in self.examples if e.role == "canary")

    def with_canaries(self, canaries: Iterable[Example]) -> "Split":
        """Append `canaries`; raises `DataError` for another role, or an id already in use."""
        added = tuple(canaries)
        taken = {example.record.id for example in self.examples}
        for example in added:
            if example.role != "canary":
                raise DataError(f"Record '{example.record.id}' has the role '{example.role}', not 'canary'.")
            if example.record.id in taken:
                hint = "Canary ids must be unique, and no record may bear one."
                raise DataError(f"Canary '{example.record.id}' has the id of another record.", hint)
            taken.add(example.record.id)
        return replace(self, examples=self.examples + added)


Placement: TypeAlias = tuple[Role, bool]


def split(dataset: Dataset, config: SplitConfig, seed: int) -> Split:
    """The placement of every record of `dataset`, drawn from `seed`.

    A unit's role and coin are keyed hashes of the oldest unit of its group: the units connected through
    near-duplicate records. A record that would connect groups placed differently is "excluded" and
    counted, for it would be a member and a non-member at once. Raises `ConfigError` for shares that cannot
    be, `DataError` when there are too few candidates for an audit or nothing to train on.
    """
    _check_config(config)
    groups, placements = _place(dataset.records, config, seed)
    examples = []
    for record, group in zip(dataset.records, groups, strict=True):
        role, included = placements.get(group, ("excluded", False))
        name = record.unit if group < 0 else dataset.records[group].unit
        examples.append(Example(record=record, role=role, included=included, group=name))
    if not any(example.included for example in examples):
        message = f"None of the {len(dataset.units):,} units is left to train on."
        raise DataError(message, "Add records, or lower split.candidates and split.validation.")
    notices = _cluster_notices(examples, len(dataset.units)) + _audit_notices(examples, config)
    return Split(examples=tuple(examples), notices=notices)


def coin(seed: int, unit: str) -> bool:
    """Whether `unit` is included: a fair coin, keyed by `seed`, independent of the unit's role."""
    return _uniform(seed, unit, "coin") < 0.5


def comparable_text(record: Record) -> str:
    """What near-duplicates are judged by: all contents but system prompts, which whole data sets share."""
    text = "\n".join(message.content for message in record.messages if message.role != "system")
    return unicodedata.normalize("NFC", text)


def _uniform(seed: int, unit: str, domain: str) -> float:
    """A number in [0, 1) that `seed`, `domain` and `unit` determine: 53 bits of a keyed blake2b."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    person = f"sordino-{domain}".encode()
    digest = hashlib.blake2b(unit.encode(), digest_size=8, key=key, person=person).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


def _draw(seed: int, unit: str, config: SplitConfig) -> Placement:
    at = _uniform(seed, unit, "role")
    if at < config.validation:
        return "validation", False
    if at < config.validation + config.candidates:
        return "candidate", coin(seed, unit)
    return "train", True


def _place(records: Sequence[Record], config: SplitConfig, seed: int) -> tuple[list[int], dict[int, Placement]]:
    """The group of every record, -1 where excluded, and the placement of every group.

    A group is numbered by the record that founded it; its oldest unit is that record's.
    """
    import numpy as np

    from sordino.records.clusters import index_texts

    texts = [comparable_text(record) for record in records]
    near = index_texts(texts, config.near_duplicates) if config.near_duplicates else None
    groups = np.full(len(records), -1, dtype=np.int64)
    placements: dict[int, Placement] = {}
    of_unit: dict[str, int] = {}  # the first placed record of each unit, and with each text
    of_text: dict[str, int] = {}
    for number, (record, text) in enumerate(zip(records, texts, strict=True)):
        same = [first[key] for first, key in ((of_unit, record.unit), (of_text, text)) if key in first]
        touching = set(groups[same].tolist())
        if near and text not in of_text:  # the neighbours of an equal text are in its group already
            touching.update(near.adjacent(number, groups).tolist())
        if not touching:
            placements[number] = _draw(seed, record.unit, config)
        elif len({placements[group] for group in touching}) > 1:
            continue
        group = min(touching, default=number)
        if len(touching) > 1:
            groups[np.isin(groups, list(touching))] = group
        groups[number] = group
        of_unit.setdefault(record.unit, number)
        of_text.setdefault(text, number)
    return groups.tolist(), placements


def _check_config(config: SplitConfig) -> None:
    for name in ("candidates", "validation", "near_duplicates"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"split.{name} is {value:g}.", "Set a share from 0 to 1.")
    total = config.candidates + config.validation
    if total > 1 + 1e-9:
        message = f"split.candidates ({config.candidates:g}) and split.validation ({config.validation:g})"
        raise ConfigError(f"{message} add up to {total:g}.", "Together they are at most 1.")


def _cluster_notices(examples: Sequence[Example], units: int) -> tuple[Notice, ...]:
    members: dict[str, set[str]] = {}
    for example in examples:
        if example.role != "excluded":
            members.setdefault(example.group, set()).add(example.record.unit)
    clusters = [len(group) for group in members.values() if len(group) > 1]
    notices = []
    if clusters:
        message = f"{sum(clusters):,} units form {len(clusters):,} clusters of duplicates, each with one coin."
        notices.append(Notice(kind="near-duplicates", count=sum(clusters), message=message))
    if clusters and max(clusters) > LARGE_CLUSTER * units:
        message = (
            f"One cluster of near-duplicates holds {max(clusters):,} of {units:,} units. If the texts follow "
            "a template, raise split.near_duplicates, or set it to 0 to compare whole texts only."
        )
        notices.append(Notice(kind="large-cluster", count=max(clusters), message=message))
    excluded = sum(example.role == "excluded" for example in examples)
    if excluded:
        message = (
            f"{excluded:,} records are near-duplicates of records placed differently from each other or from "
            "their own unit: neither trained on nor held out."
        )
        notices.append(Notice(kind="excluded-records", count=excluded, message=message))
    return tuple(notices)


def _audit_notices(examples: Sequence[Example], config: SplitConfig) -> tuple[Notice, ...]:
    """What an audit on these coins can resolve; raises `DataError` when that is nothing."""
    if config.candidates == 0:
        message = "split.candidates is 0: nothing is held out, so that no membership audit is possible."
        return (Notice(kind="no-audit", count=0, message=message),)
    coins = {example.group: example.included for example in examples if example.role == "candidate"}
    sides = Counter(coins.values())
    inside, outside = sides[True], sides[False]
    if len(coins) < MIN_GROUPS or min(inside, outside) < MIN_SIDE:
        found = f"{len(coins)} candidate groups ({inside} in, {outside} out)"
        message = f"The split has {found}, but an audit needs {MIN_GROUPS}, {MIN_SIDE} on each side."
        more = "Add records" if config.candidates == 1 else "Set split.candidates: 1.0, add records"
        raise DataError(message, f"{more}, or set split.candidates: 0 to train without an audit.")
    if outside >= NON_MEMBERS_PER_FPR / GOOD_FPR:
        return ()
    # The null variance of the Mann-Whitney statistic: the AUC of scores that tell nothing.
    half_width = 1.96 * math.sqrt((inside + outside + 1) / (12 * inside * outside))
    message = (
        f"{outside:,} groups are held out: false-positive rates under {NON_MEMBERS_PER_FPR / outside:.2g} "
        f"cannot be resolved ({GOOD_FPR:g} needs {NON_MEMBERS_PER_FPR / GOOD_FPR:,.0f} non-members), and "
        f"the 95 % interval of an AUC near 0.5 is about ±{half_width:.2g}."
    )
    return (Notice(kind="audit-power", count=outside, message=message),)
