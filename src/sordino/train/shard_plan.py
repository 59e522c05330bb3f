"""Which shard and slice a unit is trained in, what was trained there, and what taking a unit out costs; no torch.

Exact unlearning by sharding and slicing (SISA, Bourtoule et al. 2021, arXiv:1912.03817): each shard is an adapter of
its own, trained through its slices one after the other, and a snapshot is kept after each. A unit's place is a keyed
hash of its name: who else is there, and what its records say, moves nobody.
"""

import hashlib
import math
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from sordino.errors import RunError
from sordino.evidence import digest_file
from sordino.records import Example, content_digest
from sordino.results import decode, encode
from sordino.run import Run

__all__ = [
    "Cell",
    "ShardManifest",
    "Stage",
    "cells_of",
    "damaged",
    "expected_share",
    "fingerprint",
    "formula",
    "place",
    "read_manifest",
    "read_stage",
    "shards_folder",
    "share_of",
    "snapshot",
    "stage_seed",
    "write_manifest",
]

Cell = tuple[int, int]
"""A shard and a slice of it, each from 0."""

WEIGHTS = "adapter_model.safetensors"
_FILE, _STAGE = "shards.json", "stage.json"


@dataclass(frozen=True, kw_only=True)
class Stage:
    """What the training of one slice was: `records` is a keyed digest of those trained on, `count` how many they were.

    `tokens` went forwards and backwards, over all epochs; `start` and `weights` are digests of the adapter before
    and after.
    """

    records: str
    count: int
    tokens: int
    steps: int
    seconds: float
    loss: float | None
    start: str
    weights: str


@dataclass(frozen=True, kw_only=True)
class ShardManifest:
    """What all shards of a run share, private: the `key` that places units, and digests of what they are trained on.

    `method` and `train` are the settings of the run; `environment` what the bits of a result depend on besides: the
    number of threads, versions, the device and what its processor can do.
    """

    key: str
    count: int
    slices: int
    combine: Literal["merge", "ensemble"]
    seed: int
    base: str
    tokenizer: str
    serializer: str
    method: Mapping[str, Any]
    train: Mapping[str, Any]
    environment: Mapping[str, str] = field(default_factory=dict)
    fresh: str = ""
    schema: int = 1

    @property
    def cells(self) -> Iterator[Cell]:
        """Every shard and slice, in the order of training."""
        return ((shard, part) for shard in range(self.count) for part in range(self.slices))

    def place(self, example: Example) -> Cell:
        """The shard and the slice that `example` belongs to, by its unit."""
        return place(self.key, example.record.unit, self.count, self.slices)


def new_key() -> str:
    """A key that places units, as hex."""
    return secrets.token_hex(32)


def place(key: str, unit: str, count: int, slices: int) -> Cell:
    """The shard and the slice of `unit`: uniform, independent of all other units and of what its records say."""
    hashed = hashlib.blake2b(unit.encode(), digest_size=16, key=bytes.fromhex(key), person=b"sordino-shards").digest()
    return int.from_bytes(hashed[:8]) % count, int.from_bytes(hashed[8:]) % slices


def cells_of(examples: Sequence[Example], manifest: ShardManifest) -> dict[Cell, list[int]]:
    """The places in `examples` of what each shard and slice is trained on, in their order; empty cells are there."""
    found: dict[Cell, list[int]] = {cell: [] for cell in manifest.cells}
    for at, example in enumerate(examples):
        found[manifest.place(example)].append(at)
    return found


def fingerprint(key: str, examples: Iterable[Example]) -> str:
    """A digest, under `key`, of these records in this order: their units, ids, contents and repetitions."""
    state = hashlib.blake2b(digest_size=16, key=bytes.fromhex(key), person=b"sordino-slice")
    for example in examples:
        record = example.record
        content = content_digest(record.messages, record.label)
        for part in (record.unit, record.id, content, str(example.repetitions)):
            data = part.encode()
            state.update(len(data).to_bytes(8, "big") + data)
    return state.hexdigest()


def stage_seed(seed: int, cell: Cell) -> int:
    """The seed of the training of a slice: a keyed hash, so that no stage's follows from another's, below 2^63."""
    key = hashlib.blake2b(str(seed).encode(), digest_size=32).digest()
    hashed = hashlib.blake2b(f"{cell[0]}/{cell[1]}".encode(), digest_size=8, key=key, person=b"sordino-stage").digest()
    return int.from_bytes(hashed) >> 1


def formula(shards: int, slices: int, units: int = 1) -> float:
    """The expected share of retraining for `units` that are placed at random: (1/S)·(R+1)/(2R) for one.

    A slice is retrained if any unit falls into it or a slice before it in its shard: slice j of R with the probability
    1 − (1 − j/(S·R))^k. The mean of that over the slices, which are taken to be of one size.
    """
    within = np.arange(1, slices + 1) / (shards * slices)
    return float(np.mean(1.0 - (1.0 - within) ** units))


def share_of(tokens: npt.NDArray[np.int64], affected: Iterable[Cell]) -> float:
    """The share of `tokens` (shards, slices) in the `affected` cells and all slices after them in their shards.

    `tokens` are those of the records that stay, since those that go are not trained on again.
    """
    retrained = np.zeros(tokens.shape, dtype=bool)
    for shard, part in affected:
        retrained[shard, part:] = True
    return float(tokens[retrained].sum() / max(1, int(tokens.sum())))


def expected_share(tokens: npt.NDArray[np.int64], counts: npt.NDArray[np.int64]) -> float:
    """`share_of` for one record drawn uniformly, in expectation: `tokens` and `counts` of records (shards, slices)."""
    onwards = tokens[:, ::-1].cumsum(axis=1)[:, ::-1]
    return float((onwards * counts).sum() / max(1, int(tokens.sum())) / max(1, int(counts.sum())))


def shards_folder(run: Run) -> Path:
    """Where a run keeps its shards."""
    return run.private / "shards"


def snapshot(run: Run, cell: Cell) -> Path:
    """The folder of a shard's adapter as it was after a slice."""
    return shards_folder(run) / f"{cell[0]:02d}" / f"slice-{cell[1]:02d}"


def write_manifest(run: Run, manifest: ShardManifest) -> None:
    """Write what all shards of `run` share, for its owner alone."""
    run.write_private(f"shards/{_FILE}", encode(manifest))


def read_manifest(run: Run) -> ShardManifest:
    """What all shards of `run` share; raises `RunError` where it is missing or damaged."""
    path = shards_folder(run) / _FILE
    if not path.exists():
        raise RunError(f"{run.path} has no shards.", "Train it with --shards and --slices.")
    return decode(path.read_bytes(), ShardManifest, str(path))


def read_stage(folder: Path, *, whole: bool = True) -> Stage | None:
    """What a snapshot says of its training; None where it is missing, or its weights are not what was written.

    Without `whole` the weights are not looked at.
    """
    try:
        stage = decode((folder / _STAGE).read_bytes(), Stage, str(folder / _STAGE))
        return stage if not whole or digest_file(folder / WEIGHTS) == stage.weights else None
    except (OSError, ValueError):
        return None


def write_stage(folder: Path, stage: Stage) -> None:
    """Write what a snapshot's training was into its `folder`, which is not there yet for others."""
    (folder / _STAGE).write_bytes(encode(stage))


def damaged(run: Run, manifest: ShardManifest) -> list[Cell]:
    """The cells of `run` whose snapshot is missing or damaged, or does not go on from the one before it."""
    found = []
    for cell in manifest.cells:
        stage = read_stage(snapshot(run, cell))
        if cell[1] == 0:
            before = manifest.fresh
        if stage is None or stage.start != before:
            found.append(cell)
        before = stage.weights if stage is not None else "?"
    return found


def steps_of(records: int, batch_size: int, epochs: int) -> int:
    """The optimizer steps of a stage on so many sequences."""
    return math.ceil(records / batch_size) * epochs
