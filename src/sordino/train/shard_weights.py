"""What the shards of a run are together: the mean of their adapters, or all of them side by side; without torch."""

import shutil
from collections.abc import Callable, Collection, Mapping
from pathlib import Path

from sordino.errors import UnlearningError
from sordino.evidence import digest_file
from sordino.run import Run
from sordino.train.shard_merge import SETTINGS, WEIGHTS, merged
from sordino.train.shard_plan import Cell, ShardManifest, Stage, read_stage, shards_folder, snapshot
from sordino.train.swapping import swap_folder

__all__ = ["check_last", "records_of", "refuse_lost", "shares", "stages", "write_weights"]


def stages(
    run: Run, manifest: ShardManifest, *, whole: bool = True, among: Collection[int] | None = None
) -> dict[Cell, Stage]:
    """What the snapshots of `run` say of their training, of the shards `among` all.

    Raises `UnlearningError` where one is missing or damaged; without `whole`, weights are not looked at.
    """
    cells = [cell for cell in manifest.cells if among is None or cell[0] in among]
    found = {cell: read_stage(snapshot(run, cell), whole=whole) for cell in cells}
    refuse_lost(run, [cell for cell, stage in found.items() if stage is None])
    return {cell: stage for cell, stage in found.items() if stage is not None}


def check_last(run: Run, manifest: ShardManifest, shards: Collection[int]) -> None:
    """Raise `UnlearningError` where the last snapshot of one of `shards` is missing or damaged."""
    last = [(shard, manifest.slices - 1) for shard in shards]
    refuse_lost(run, [cell for cell in last if read_stage(snapshot(run, cell)) is None])


def refuse_lost(run: Run, lost: Collection[Cell]) -> None:
    """Raise `UnlearningError` where the snapshots of any cells are `lost`."""
    if lost:
        of = sorted({shard for shard, _ in lost})
        message = f"{len(lost)} snapshots of the shards {of} of {run.path} are missing or damaged."
        raise UnlearningError(message, "Train those shards again: give the method shards the setting repair: true.")


def records_of(found: Mapping[Cell, Stage]) -> dict[int, int]:
    """How many records each shard was trained on."""
    counts: dict[int, int] = {}
    for (shard, _), stage in found.items():
        counts[shard] = counts.get(shard, 0) + stage.count
    return counts


def shares(counts: Mapping[int, int]) -> dict[int, float]:
    """The weight of each shard in the mean: its share of the records; shards without any are left out."""
    total = sum(counts.values())
    return {shard: count / total for shard, count in counts.items() if count}


def write_weights(
    run: Run,
    manifest: ShardManifest,
    tokenizer: Callable[[Path], object],
    *,
    source: Run | None = None,
    counts: Mapping[int, int] | None = None,
) -> dict[int, float]:
    """Write the weights of `run`, replacing at once what was there; returns the weight of each shard.

    `counts` are the records of each shard that is to answer (default: all of `source`, by default `run`). Where none
    is, the adapter as it began answers, which changes nothing: the untuned model.
    """
    source = source or run
    weights = shares(counts if counts is not None else records_of(stages(source, manifest)))
    parts = {shard: snapshot(source, (shard, manifest.slices - 1)) for shard in weights}
    with swap_folder(run.weights) as folder:
        tokenizer(folder)
        if not weights:
            _untuned(source, manifest, folder)
        elif manifest.combine == "merge":
            merged([(parts[shard], weight) for shard, weight in weights.items()], folder)
        else:
            _side_by_side(parts, weights, folder)
    return weights


def _untuned(source: Run, manifest: ShardManifest, folder: Path) -> None:
    fresh = shards_folder(source) / "fresh"
    if not (fresh / WEIGHTS).exists() or digest_file(fresh / WEIGHTS) != manifest.fresh:
        message = f"The adapter as the shards of {source.path} began is missing or damaged."
        raise UnlearningError(message, "Train them again: give the method shards the setting repair: true.")
    for name in (WEIGHTS, SETTINGS):
        shutil.copy2(fresh / name, folder / name)


def _side_by_side(parts: Mapping[int, Path], weights: Mapping[int, float], folder: Path) -> None:
    from sordino.model import save_combined

    named = {f"shard-{shard:02d}": part for shard, part in parts.items()}
    save_combined(folder, "ensemble", named, {"weights": {f"shard-{shard:02d}": w for shard, w in weights.items()}})
