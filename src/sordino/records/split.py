"""Who trains and who is held out: roles and coins drawn from keyed hashes before the first step.

A share of the units are audit candidates; each is included with probability exactly ½, one coin per unit
or near-duplicate cluster. All others always train and never enter an ε bound. Members are the candidates
in, the hold-out the candidates out. Records are placed in the order of the file, their age, by what came
before them alone: appending records never moves an old record's role or coin.
"""

import hashlib
import math
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from sordino.errors import ConfigError, DataError
from sordino.records.columns import Held, Rows, contents, record_rows
from sordino.records.placed import Example, Role, examples_of, extended, schema, taken_ids, where
from sordino.records.record import Dataset, Message, Record
from sordino.results import Notice

__all__ = ["Example", "Role", "Split", "SplitConfig", "coin", "comparable_text", "split"]

MIN_GROUPS, MIN_SIDE = 20, 10  # candidate groups, and those on either side of the coin
NON_MEMBERS_PER_FPR = 10  # a false-positive rate needs 10 / FPR non-members
GOOD_FPR = 0.01
LARGE_CLUSTER = 0.1  # of the units
# What a coin and a role come to, by number.
PLACEMENTS: tuple[tuple[Role, bool], ...] = (
    ("train", True), ("validation", False), ("candidate", False), ("candidate", True), ("excluded", False),
)  # fmt: skip
TRAIN, VALIDATION, OUT, IN, EXCLUDED = range(5)


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
class Split:
    """Every record with its placement, in file order, canaries last; examples may be made when asked for."""

    examples: Sequence[Example]
    notices: tuple[Notice, ...] = ()

    @property
    def training(self) -> Sequence[Example]:
        """All that is trained on: the rest, the candidates and the canaries whose coin fell in."""
        return where(self.examples, None, True)

    @property
    def candidates(self) -> Sequence[Example]:
        """Members and non-members."""
        return where(self.examples, "candidate")

    @property
    def members(self) -> Sequence[Example]:
        """Candidates in."""
        return where(self.examples, "candidate", True)

    @property
    def nonmembers(self) -> Sequence[Example]:
        """Candidates out: the hold-out set."""
        return where(self.examples, "candidate", False)

    @property
    def validation(self) -> Sequence[Example]:
        """Records that only measure utility."""
        return where(self.examples, "validation")

    @property
    def canaries(self) -> Sequence[Example]:
        """Canaries in and out."""
        return where(self.examples, "canary")

    def with_canaries(self, canaries: Iterable[Example]) -> "Split":
        """Append `canaries`; raises `DataError` for another role, or an id already in use."""
        added = tuple(canaries)
        taken = taken_ids(self.examples, [example.record.id for example in added])
        for example in added:
            if example.role != "canary":
                raise DataError(f"Record '{example.record.id}' has the role '{example.role}', not 'canary'.")
            if example.record.id in taken:
                hint = "Canary ids must be unique, and no record may bear one."
                raise DataError(f"Canary '{example.record.id}' has the id of another record.", hint)
            taken.add(example.record.id)
        return replace(self, examples=extended(self.examples, added))


@dataclass(frozen=True)
class _Placed:
    """Of each record the one that founded its group, itself where excluded, its placement, and its unit's number."""

    founder: npt.NDArray[np.int64]
    placement: npt.NDArray[np.int8]
    unit: npt.NDArray[np.int64]


def split(dataset: Dataset, config: SplitConfig, seed: int) -> Split:
    """The placement of every record of `dataset`, drawn from `seed`.

    A unit's role and coin are keyed hashes of the oldest unit of its group: the units connected through
    near-duplicate records. A record that would connect groups placed differently is "excluded" and
    counted, for it would be a member and a non-member at once. Raises `ConfigError` for shares that cannot
    be, `DataError` when there are too few candidates for an audit or nothing to train on.
    """
    _check_config(config)
    records = record_rows(dataset.records)
    placed = _place(records, config, seed)
    if not np.isin(placed.placement, (TRAIN, IN)).any():
        message = f"None of the {int(placed.unit.max(initial=-1)) + 1:,} units is left to train on."
        raise DataError(message, "Add records, or lower split.candidates and split.validation.")
    notices = _cluster_notices(placed) + _audit_notices(placed, config)
    return Split(examples=Rows(Held(_columns(records, placed), schema()), examples_of), notices=notices)


def _columns(records: Rows[Record], placed: _Placed) -> Iterator[Any]:
    """The records with their placements as RecordBatches; the records' own columns are not copied."""
    import pyarrow as pa

    units = records.column("unit").combine_chunks()
    roles = pa.array([role for role, _ in PLACEMENTS])
    included = pa.array([included for _, included in PLACEMENTS])
    at = 0
    chunks = range(len(records.chunks.starts) - 1) if records.numbers is None else None
    for batch in records.batches() if chunks is None else map(records.chunks.read, chunks):
        here = slice(at, at + batch.num_rows)
        at += batch.num_rows
        chosen = pa.array(placed.placement[here])
        columns = {name: batch.column(name) for name in batch.schema.names}
        columns |= {"role": roles.take(chosen), "included": included.take(chosen)}
        columns["group"] = units.take(pa.array(placed.founder[here]))
        columns["repetitions"] = pa.array(np.ones(batch.num_rows, dtype=np.int64))
        yield pa.RecordBatch.from_arrays([columns[name] for name in schema().names], schema=schema())


def coin(seed: int, unit: str) -> bool:
    """Whether `unit` is included: a fair coin, keyed by `seed`, independent of the unit's role."""
    return _uniform(seed, unit, "coin") < 0.5


def comparable_text(record: Record) -> str:
    """What near-duplicates are judged by: all contents but system prompts, which whole data sets share."""
    return _comparable(record.messages)


def _comparable(messages: Sequence[Message]) -> str:
    text = "\n".join(message.content for message in messages if message.role != "system")
    return unicodedata.normalize("NFC", text)


def _texts(batch: Any) -> Iterator[str]:
    return map(_comparable, contents(batch))


def _uniform(seed: int, unit: str, domain: str) -> float:
    """A number in [0, 1) that `seed`, `domain` and `unit` determine: 53 bits of a keyed blake2b."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    person = f"sordino-{domain}".encode()
    digest = hashlib.blake2b(unit.encode(), digest_size=8, key=key, person=person).digest()
    return (int.from_bytes(digest) >> 11) * 2.0**-53


def _draw(seed: int, unit: str, config: SplitConfig) -> int:
    at = _uniform(seed, unit, "role")
    if at < config.validation:
        return VALIDATION
    if at < config.validation + config.candidates:
        return IN if coin(seed, unit) else OUT
    return TRAIN


def _place(records: Rows[Record], config: SplitConfig, seed: int) -> _Placed:
    """Place record after record by those before it; a group bears the number of the record that founded it."""
    from sordino.minhash import find_root
    from sordino.records.clusters import index_texts

    texts = Rows(records.chunks, _texts, records.numbers)
    units, text_of = _numbered(records), _numbered_texts(texts)
    parent = np.full(len(records), -1, dtype=np.int64)
    placement = np.full(len(records), EXCLUDED, dtype=np.int8)
    near = index_texts(texts, config.near_duplicates, parent) if config.near_duplicates else None
    with_unit, with_text = (np.full(len(records), -1, dtype=np.int64) for _ in range(2))  # the first placed ones
    names = (name for batch in records.batches() for name in batch.column("unit").to_pylist())
    for number, (name, unit, text) in enumerate(zip(names, units.tolist(), text_of.tolist(), strict=True)):
        new = with_text[text] < 0  # the neighbours of an equal text are in its group already
        touching = {find_root(parent, first) for first in (with_unit[unit], with_text[text]) if first >= 0}
        if near and new:
            touching |= near.adjacent(number)
        if not touching:
            placement[number] = _draw(seed, name, config)
        elif len({placement[group] for group in touching}) > 1:
            continue
        group = min(touching, default=number)
        parent[[*touching, number]] = group
        placement[number] = placement[group]
        if with_unit[unit] < 0:
            with_unit[unit] = number
        if new:
            with_text[text] = number
            if near:
                near.add(number)
    roots = [number if group < 0 else find_root(parent, number) for number, group in enumerate(parent.tolist())]
    return _Placed(np.array(roots, dtype=np.int64), placement, units)


def _numbered(records: Rows[Record]) -> npt.NDArray[np.int64]:
    """The number of each record's unit, the oldest being 0."""
    coded = records.column("unit").combine_chunks().dictionary_encode()
    return np.asarray(coded.indices.to_numpy(), dtype=np.int64)


def _numbered_texts(texts: Iterable[str]) -> npt.NDArray[np.int64]:
    """A number for each text, the same for equal ones."""
    digests = b"".join(hashlib.blake2b(text.encode(), digest_size=16).digest() for text in texts)
    pairs = np.frombuffer(digests, dtype=[("high", "<u8"), ("low", "<u8")])
    return np.unique(pairs, return_inverse=True)[1].astype(np.int64).reshape(-1)


def _check_config(config: SplitConfig) -> None:
    for name in ("candidates", "validation", "near_duplicates"):
        value = getattr(config, name)
        if not 0 <= value <= 1:
            raise ConfigError(f"split.{name} is {value:g}.", "Set a share from 0 to 1.")
    total = config.candidates + config.validation
    if total > 1 + 1e-9:
        message = f"split.candidates ({config.candidates:g}) and split.validation ({config.validation:g})"
        raise ConfigError(f"{message} add up to {total:g}.", "Together they are at most 1.")


def _counted(count: int, noun: str) -> str:
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def _cluster_notices(placed: _Placed) -> tuple[Notice, ...]:
    units, kept = int(placed.unit.max(initial=-1)) + 1, placed.placement != EXCLUDED
    pairs = np.unique(placed.founder[kept] * max(units, 1) + placed.unit[kept])  # each unit once a group
    sizes = np.bincount(pairs // max(units, 1))
    clusters, largest = sizes[sizes > 1], int(sizes.max(initial=0))
    inside = int(clusters.sum())
    notices = []
    if inside:
        found = _counted(len(clusters), "cluster")
        message = f"{inside:,} units form {found} of duplicates, {'each ' if len(clusters) > 1 else ''}with one coin."
        notices.append(Notice(kind="near-duplicates", count=inside, message=message))
    if inside and largest > LARGE_CLUSTER * units:
        message = (
            f"One cluster of near-duplicates holds {largest:,} of {units:,} units. If the texts follow "
            "a template, raise split.near_duplicates, or set it to 0 to compare whole texts only."
        )
        notices.append(Notice(kind="large-cluster", count=largest, message=message))
    excluded = int((~kept).sum())
    if excluded:
        are = "are near-duplicates" if excluded > 1 else "is a near-duplicate"
        their = "their" if excluded > 1 else "its"
        message = (
            f"{_counted(excluded, 'record')} {are} of records placed differently from each other or from "
            f"{their} own unit: neither trained on nor held out."
        )
        notices.append(Notice(kind="excluded-records", count=excluded, message=message))
    return tuple(notices)


def _audit_notices(placed: _Placed, config: SplitConfig) -> tuple[Notice, ...]:
    """What an audit on these coins can resolve; raises `DataError` when that is nothing."""
    if config.candidates == 0:
        message = "split.candidates is 0: nothing is held out, so that no membership audit is possible."
        return (Notice(kind="no-audit", count=0, message=message),)
    inside, outside = (len(np.unique(placed.founder[placed.placement == side])) for side in (IN, OUT))
    if inside + outside < MIN_GROUPS or min(inside, outside) < MIN_SIDE:
        found = f"{inside + outside} candidate groups ({inside} in, {outside} out)"
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
