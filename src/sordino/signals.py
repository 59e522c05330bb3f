"""Per-token statistics of a model on records: what an adversary sees, never who is a member.

Flat arrays with offsets, memory-mapped from safetensors, keyed by digests of everything they depend
on; every arithmetic attack reads them and runs no model.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, Int32, Int64, Num

from sordino.errors import RunError
from sordino.evidence import digest_file
from sordino.results import Decoding
from sordino.run import write_folder

__all__ = ["STATISTICS", "Drawn", "Generated", "Known", "Ragged", "Shadows", "Signals", "Statistics", "Store"]

STATISTICS = ("logprob", "mean", "variance", "rank", "top")
"""What is known of a scored token; a server may tell less (see `Statistics`)."""

_TYPES = {"I32": np.int32, "I64": np.int64, "F32": np.float32, "F64": np.float64, "BOOL": np.bool_}

Scores = Float[np.ndarray, " records"]
"""One number a record; higher = more likely a member; NaN = the record has nothing to score."""


def _floats(values: np.ndarray) -> np.ndarray:
    """`values` in a row, as they are where they are float32 or float64, else in float64."""
    kept = values.dtype in (np.float32, np.float64)
    return np.ascontiguousarray(values, dtype=values.dtype if kept else np.float64)


@dataclass(frozen=True)
class Ragged:
    """`values` (N) of all records in a row; record i has `values[offsets[i]:offsets[i + 1]]`.

    `offsets` has one edge more than there are records.
    """

    values: Num[np.ndarray, " N"]
    offsets: Int64[np.ndarray, " edges"]

    @property
    def counts(self) -> Int64[np.ndarray, " records"]:
        """The number of values of each record."""
        return np.diff(self.offsets)

    @property
    def rows(self) -> Int64[np.ndarray, " N"]:
        """The record that each value belongs to."""
        return np.repeat(np.arange(len(self.offsets) - 1), self.counts)

    def sum(self) -> Scores:
        """The sum of each record's values, in float64."""
        sums = np.zeros(len(self.offsets) - 1)
        full = self.counts > 0
        # Empty records are left out: reduceat would give them their neighbour's first value.
        if full.any():
            sums[full] = np.add.reduceat(self.values, self.offsets[:-1][full], dtype=np.float64)
        return sums

    def mean(self) -> Scores:
        """The mean of each record's values; NaN where there are none."""
        counts = self.counts
        return np.where(counts > 0, self.sum() / np.maximum(counts, 1), np.nan)

    def lowest_mean(self, share: float) -> Scores:
        """The mean of each record's lowest `max(1, ⌊share·n⌋)` values; NaN where there are none."""
        sums, _, keep = self._lowest(share)
        return np.where(self.counts > 0, sums / keep, np.nan)

    def lowest(self, share: float) -> Bool[np.ndarray, " N"]:
        """Which values are among their record's lowest `max(1, ⌊share·n⌋)`, with all that equal the highest of them."""
        _, limits, _ = self._lowest(share)
        marked: np.ndarray = np.asarray(self.values) <= np.repeat(limits, self.counts)
        return marked

    def _lowest(self, share: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Sums of each record's lowest values, the highest of them, and how many they are."""
        from sordino.ragged import lowest_sums  # Numba is loaded where it is needed

        counts = self.counts
        # 1e-9: 0.1 · 30 is 3.0000000000000004 below or 2.9999999999999996 above; both mean 3.
        keep = np.clip(np.floor(share * counts + 1e-9).astype(np.int64), 1, np.maximum(counts, 1))
        sums, limits = np.empty(len(counts)), np.empty(len(counts))
        lowest_sums(_floats(self.values), np.ascontiguousarray(self.offsets), keep, sums, limits)
        return sums, limits, keep

    def window_wins(self, sizes: Sequence[int], least: float = 0.0) -> Scores:
        """The share of windows of values that sum to more than `least`, averaged over the window `sizes`.

        A window longer than the record is cut to it. NaN where there are no values.
        """
        from sordino.ragged import window_wins

        shares = np.empty(len(self.offsets) - 1)
        values = np.ascontiguousarray(self.values, dtype=np.float64)
        window_wins(values, np.ascontiguousarray(self.offsets), np.array(sizes, dtype=np.int64), least, shares)
        return shares


@dataclass(frozen=True, kw_only=True)
class Statistics:
    """Statistics of N scored tokens of all records in a row (source: one forward pass a record).

    `offsets` (edges = records + 1); `position` of each scored token in its record; `token` its id;
    `logprob` ln p(token | before), `mean` μ = Σ p ln p and `variance` σ² = Σ p ln² p − μ² over the
    vocabulary (Zhang et al. 2025), all in nats; `rank` how many tokens are strictly more likely;
    `top` the most likely token. Where a source does not tell: NaN in `mean` and `variance`, −1 in
    `rank` and `top`. A classifier has one row a record, whose vocabulary are the classes, and
    `others`: Σ p ln(1 − p) over the classes that are not the record's own.
    """

    offsets: Int64[np.ndarray, " edges"]
    position: Int32[np.ndarray, " N"]
    token: Int32[np.ndarray, " N"]
    logprob: Float[np.ndarray, " N"]
    mean: Float[np.ndarray, " N"]
    variance: Float[np.ndarray, " N"]
    rank: Int32[np.ndarray, " N"]
    top: Int32[np.ndarray, " N"]
    others: Float[np.ndarray, " N"] | None = None

    def present(self) -> dict[str, np.ndarray]:
        """The columns that there are, by name; `offsets` is none."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "offsets"}
        return {name: column for name, column in named.items() if column is not None}

    def select(self, chosen: Sequence[int]) -> "Statistics":
        """The statistics of some records, in the order given."""
        counts = np.diff(self.offsets)[list(chosen)]
        index = np.concatenate(
            [np.arange(self.offsets[i], self.offsets[i + 1]) for i in chosen] or [np.arange(0)]
        ).astype(np.int64)
        flat = {name: column[index] for name, column in self.present().items()}
        return Statistics(offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64), **flat)


@dataclass(frozen=True, kw_only=True)
class Generated:
    """What a model wrote after the beginning of each record, where text is all that it gives.

    `prompts` are the beginnings and `remainders` how the records truly go on ("": nothing to try);
    `samples` are continuations drawn at temperature 1, `greedy` the one at temperature 0.
    """

    prompts: Sequence[str]
    remainders: Sequence[str]
    samples: Sequence[tuple[str, ...]]
    greedy: Sequence[str]


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """What samplers make of a model: the ln of the probability with which each of D `decodings` draws each token.

    `logprob` (N, D) is of the scored tokens, after the true ones before them; −∞ where one never draws it.
    """

    decodings: tuple[Decoding, ...]
    logprob: Float[np.ndarray, "N D"]


@dataclass(frozen=True, kw_only=True)
class Shadows:
    """K models trained as the target was, each on its own random half of what the target may have been trained on.

    `nll` (K, records) is ℓ, the mean negative log-likelihood a token, of each record under each of them, and
    `included` (K, records) whether it was trained on the record. `how` says in words what they are.
    """

    nll: Float[np.ndarray, "shadows records"]
    included: Bool[np.ndarray, "shadows records"]
    how: str = ""

    def select(self, chosen: Sequence[int]) -> "Shadows":
        """The same shadows on some records, in the order given."""
        return Shadows(nll=self.nll[:, list(chosen)], included=self.included[:, list(chosen)], how=self.how)


@dataclass(frozen=True, kw_only=True)
class Known:
    """Records whose membership the adversary knows (`member`, n); none of them is ever scored or judged."""

    signals: "Signals"
    member: Bool[np.ndarray, " records"]


@dataclass(frozen=True, kw_only=True)
class Signals:
    """What an attack may look at: records and a model's statistics on them, without labels.

    `texts` are the target texts of the records; `base` the same records under the untuned (or
    another reference) model; `views` the same records transformed, such as `lowercase`;
    `generated` what was written after their beginnings, where a subject gives samples; `units` whose
    each record is; `drawn` how likely samplers write their tokens; `shadows` what shadow models say of them;
    `known` other records, whose membership the adversary knows; `measured` further numbers, one row a record, by
    the name of the input that gives them.
    """

    record_ids: Sequence[str]
    texts: Sequence[str]
    statistics: Statistics
    base: "Signals | None" = None
    views: Mapping[str, "Signals"] = field(default_factory=dict)
    generated: Generated | None = None
    units: Sequence[str] = ()
    shadows: Shadows | None = None
    known: Known | None = None
    drawn: Drawn | None = None
    measured: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of records."""
        return len(self.record_ids)

    def ragged(self, name: str) -> Ragged:
        """One statistic by name, such as `logprob`, as ragged rows."""
        return Ragged(getattr(self.statistics, name), self.statistics.offsets)

    @property
    def logprob(self) -> Ragged:
        """Ln p of each scored token."""
        return self.ragged("logprob")

    @property
    def reference(self) -> "Signals":
        """`base`, for attacks that declare that they need it."""
        assert self.base is not None  # the runner gives a base to every attack that declares it
        return self.base

    @property
    def shadowed(self) -> Shadows:
        """`shadows`, for attacks that declare that they need them."""
        assert self.shadows is not None  # the runner gives them to every attack that declares them
        return self.shadows

    @property
    def sampled(self) -> Drawn:
        """`drawn`, for attacks that declare that they need it."""
        assert self.drawn is not None  # the runner gives it to every attack that declares it
        return self.drawn

    @property
    def told(self) -> Known:
        """`known`, for attacks that declare that they need it."""
        assert self.known is not None  # the runner gives it to every attack that declares it
        return self.known

    @property
    def written(self) -> Generated:
        """`generated`, for attacks that declare that they need `samples`."""
        assert self.generated is not None  # the runner gives it to every attack that declares it
        return self.generated

    @property
    def nll(self) -> Scores:
        """ℓ: the mean negative log-likelihood a token, in nats."""
        return -self.logprob.mean()


def _mapped(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a safetensors file as views of the mapped file: a page is read when it is used."""
    from safetensors import safe_open

    # Opening checks the header against the size of the file; the library's own loaders copy everything.
    with safe_open(path, framework="numpy"):
        memory = np.memmap(path, dtype=np.uint8, mode="r").view(np.ndarray)
    start = 8 + int.from_bytes(memory[:8].tobytes(), "little")
    arrays = {}
    for name, entry in json.loads(memory[8:start].tobytes()).items():
        first, last = (start + offset for offset in entry["data_offsets"])
        arrays[name] = memory[first:last].view(_TYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays


@dataclass(frozen=True)
class Store:
    """Statistics on disk, one folder a key; a key is a digest of all that the numbers depend on."""

    folder: Path

    def get(self, key: str) -> Statistics | None:
        """The statistics stored under `key`, memory-mapped, or None."""
        path = self.folder / key / "statistics.safetensors"
        if not path.exists():
            return None
        try:
            return Statistics(**_mapped(path))
        except Exception as error:
            message = f"The signals in {path.parent} are damaged: {error}."
            raise RunError(message, "Delete that folder; the audit computes it again.") from error

    def manifest(self, key: str, name: str = "statistics") -> dict[str, object]:
        """What is written beside the statistics (or "arrays") under `key`, where they are as they were put; else {}."""
        folder = self.folder / key
        try:
            found = json.loads((folder / "manifest.json").read_bytes())
            intact = digest_file(folder / f"{name}.safetensors") == found["digest"]
        except (OSError, ValueError, KeyError, TypeError):
            return {}
        return found if intact else {}

    def arrays(self, key: str) -> dict[str, np.ndarray] | None:
        """The arrays stored under `key` by `put_arrays`, memory-mapped, or None."""
        path = self.folder / key / "arrays.safetensors"
        if not path.exists():
            return None
        try:
            return _mapped(path)
        except Exception as error:
            message = f"The numbers in {path.parent} are damaged: {error}."
            raise RunError(message, "Delete that folder; the audit computes it again.") from error

    def put_arrays(self, key: str, arrays: Mapping[str, np.ndarray], manifest: Mapping[str, object]) -> None:
        """Store `arrays` under `key` with a readable manifest, whole or not at all."""
        from safetensors.numpy import save_file

        with write_folder(self.folder / key) as folder:
            path = folder / "arrays.safetensors"
            save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
            written = {**manifest, "digest": digest_file(path)}
            (folder / "manifest.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")

    def drop(self, key: str) -> None:
        """Remove the shards that stand beside `key`, if there are any."""
        for shard in self.folder.glob(f"{key}.*"):
            shutil.rmtree(shard, ignore_errors=True)

    def put(self, key: str, statistics: Statistics, manifest: Mapping[str, object]) -> None:
        """Store `statistics` under `key` with a readable manifest and the file's digest, whole or not at all."""
        from safetensors.numpy import save_file

        with write_folder(self.folder / key) as folder:
            columns = {"offsets": statistics.offsets, **statistics.present()}
            arrays = {name: np.ascontiguousarray(column) for name, column in columns.items()}
            save_file(arrays, folder / "statistics.safetensors")
            written = {**manifest, "digest": digest_file(folder / "statistics.safetensors")}
            (folder / "manifest.json").write_text(json.dumps(written, indent=2, sort_keys=True) + "\n")
