"""Training in shards: one adapter after the other, each through its slices, a snapshot after each.

All adapters begin as the same one, on one base, and are never trained jointly. A slice's training is an ordinary one
by `train.loop`, with an optimizer and a seed of its own, so that a shard which is trained again from a snapshot has
the weights that it would have had from the beginning, bit for bit, on a CPU with as many threads.
"""

import platform
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

import msgspec
import torch

from sordino.config import RunConfig, ShardConfig
from sordino.errors import TrainingError
from sordino.model import Model
from sordino.records import Example
from sordino.run import Run, write_folder
from sordino.serialize import Tokens
from sordino.train.loop import train, validation_loss
from sordino.train.progress import Monitor, Progress
from sordino.train.shard_adapters import begun, check_base, put, save_adapter
from sordino.train.shard_plan import (
    Cell,
    ShardManifest,
    Stage,
    cells_of,
    fingerprint,
    new_key,
    read_manifest,
    read_stage,
    shards_folder,
    snapshot,
    stage_seed,
    steps_of,
    write_manifest,
    write_stage,
)
from sordino.train.shard_weights import write_weights

__all__ = ["Sequences", "Shards", "environment", "pinned", "train_shards"]

Say = Callable[[str], None]


def environment(device: torch.device) -> dict[str, str]:
    """What the bits of a training depend on besides its settings and its records."""
    return {
        "threads": str(torch.get_num_threads()),
        "torch": str(torch.__version__),
        "device": device.type,
        "processor": f"{platform.machine()} {torch.backends.cpu.get_cpu_capability()}",
    }


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """Compute with as many `threads`: sums are cut into as many parts, so that their number decides about bits."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True, kw_only=True)
class Sequences:
    """What is trained on: `examples`, and their sequences `tokens`, of which `owners` tells whose each is of.

    `validation` are sequences that only measure.
    """

    examples: Sequence[Example]
    tokens: Sequence[Tokens]
    owners: Sequence[int]
    validation: Sequence[Tokens] = ()


@dataclass(frozen=True, kw_only=True)
class Shards:
    """What is trained in shards in `run`, on `data`; `model` has the adapter, as all shards begin, on its base."""

    run: Run
    model: Model
    config: RunConfig
    manifest: ShardManifest
    data: Sequences

    @cached_property
    def places(self) -> dict[Cell, list[int]]:
        """The places in `examples` of each shard and slice."""
        return cells_of(self.data.examples, self.manifest)

    @cached_property
    def sequences(self) -> dict[Cell, list[Tokens]]:
        """The sequences of each shard and slice, in their order."""
        cell_of = {at: cell for cell, places in self.places.items() for at in places}
        found: dict[Cell, list[Tokens]] = {cell: [] for cell in self.places}
        for owner, tokens in zip(self.data.owners, self.data.tokens, strict=True):
            found[cell_of[owner]].append(tokens)
        return found

    def wanted(self, cell: Cell) -> str:
        """The digest of the records that a stage of `cell` is to have been trained on."""
        return fingerprint(self.manifest.key, (self.data.examples[i] for i in self.places[cell]))

    def kept(self, cell: Cell, start: str) -> Stage | None:
        """The stage of `cell` where there is a whole snapshot of it, of these records, that began as `start`."""
        found = read_stage(snapshot(self.run, cell))
        return found if found is not None and (found.records, found.start) == (self.wanted(cell), start) else None

    def train(self, monitor: Monitor = lambda progress, steps: None) -> dict[Cell, Stage]:
        """Train each stage that has no snapshot of these records yet; returns what every stage was.

        Interrupted, it goes on from the last checkpoint of a stage. `monitor` is told of what is trained now.
        """
        stages: dict[Cell, Stage] = {}
        told, total = Progress(threads=torch.get_num_threads()), self._steps()
        for cell in self.manifest.cells:
            start = self.manifest.fresh if cell[1] == 0 else stages[(cell[0], cell[1] - 1)].weights
            stage = self.kept(cell, start)
            if stage is None:
                stage = self._stage(cell, start, _shifted(monitor, told, total))
                told = _after(told, stage)
                self.run.event("shard", shard=cell[0], slice=cell[1], tokens=stage.tokens, seconds=stage.seconds)
            stages[cell] = stage
            # Checkpoints are of no use once the snapshot is there, and hold what a purge would have to find. So does
            # what a killed process left half written.
            for leftover in (self._nested(cell).path, *snapshot(self.run, cell).parent.glob(".slice-*")):
                shutil.rmtree(leftover, ignore_errors=True)
        return stages

    def _nested(self, cell: Cell) -> Run:
        """The run of one stage, for as long as it lasts."""
        return Run(snapshot(self.run, cell).with_name(f"stage-{cell[1]:02d}"))

    def _steps(self) -> int:
        """How many optimizer steps the stages take that are not there."""
        config, total = self.config.train, 0
        for shard in range(self.manifest.count):
            start = self.manifest.fresh
            for part in range(self.manifest.slices):
                stage = self.kept((shard, part), start)
                start = "" if stage is None else stage.weights
                if stage is None:
                    total += steps_of(len(self.sequences[(shard, part)]), config.batch_size, config.epochs)
        return total

    def _stage(self, cell: Cell, start: str, monitor: Monitor) -> Stage:
        """Train one slice from the snapshot before it, and keep the adapter as it is then."""
        folder = snapshot(self.run, cell)
        shard, part = cell
        put(self.model, shards_folder(self.run) / "fresh" if part == 0 else snapshot(self.run, (shard, part - 1)))
        progress, nested = Progress(), self._nested(cell)
        if self.sequences[cell]:
            nested.private.mkdir(mode=0o700, parents=True, exist_ok=True)
            seed = stage_seed(self.manifest.seed, cell)
            progress = train(
                nested, self.model, (self.sequences[cell], []), self.config.train, seed=seed, monitor=monitor
            )
        with write_folder(folder) as made:
            weights = save_adapter(self.model, made)
            stage = Stage(
                records=self.wanted(cell),
                count=len(self.places[cell]),
                tokens=progress.tokens,
                steps=progress.step,
                seconds=round(progress.seconds, 6),
                loss=progress.loss,
                start=start,
                weights=weights,
            )
            write_stage(made, stage)
        return stage


def _after(done: Progress, stage: Stage) -> Progress:
    return replace(
        done,
        step=done.step + stage.steps,
        tokens=done.tokens + stage.tokens,
        seconds=done.seconds + stage.seconds,
    )


def _shifted(monitor: Monitor, done: Progress, total: int) -> Monitor:
    """`monitor`, told of a stage as a part of a training of `total` steps of which so much was `done`."""

    def told(progress: Progress, steps: int) -> None:
        step, tokens, seconds = done.step + progress.step, done.tokens + progress.tokens, done.seconds
        monitor(replace(progress, step=step, tokens=tokens, seconds=seconds + progress.seconds), total)

    return told


def summed(stages: Mapping[Cell, Stage]) -> Progress:
    """All stages as one training; its loss is the mean, over records, of that at the end of each shard's last slice."""
    whole = Progress(threads=torch.get_num_threads())
    last: dict[int, Stage] = {}
    for (shard, _), stage in stages.items():
        whole = _after(whole, stage)
        if stage.loss is not None:
            last[shard] = stage
    count = sum(stage.count for stage in last.values())
    loss = sum(float(stage.loss or 0.0) * stage.count for stage in last.values()) / count if count else None
    return replace(whole, loss=loss)


def train_shards(
    run: Run,
    model: Model,
    config: RunConfig,
    data: Sequences,
    *,
    say: Say = lambda text: None,
    monitor: Monitor = lambda progress, steps: None,
) -> Progress:
    """Train the shards of `run`, or go on with them, and write what they are together as its weights.

    `model` is the base with the adapter as it begins. Raises `TrainingError` where there is nothing to train on.
    """
    assert config.shards is not None
    if not data.tokens:
        raise TrainingError("No record has a token to train on.", "Raise train.max_length, or add records.")
    check_base(model)
    manifest = _manifest(run, model, config, config.shards)
    shards = Shards(run=run, model=model, config=config, manifest=manifest, data=data)
    say(_sizes(shards))
    with pinned(int(manifest.environment["threads"])):
        progress = summed(shards.train(monitor))
        write_weights(run, manifest, lambda folder: model.tokenizer.save_pretrained(str(folder)))
        loss = _validated(run, config, data.validation)
    return replace(progress, validation=loss, best=loss, best_step=None if loss is None else progress.step)


def _manifest(run: Run, model: Model, config: RunConfig, shards: ShardConfig) -> ShardManifest:
    """What is kept of the shards of `run`, written before anything is trained, so that their key stays."""
    from sordino.model import tokenizer_digest

    if (shards_folder(run) / "shards.json").exists():
        manifest = read_manifest(run)
        begun(run, model, manifest.fresh)
        return manifest
    shards_folder(run).mkdir(mode=0o700, parents=True, exist_ok=True)
    manifest = ShardManifest(
        key=inherited_key(run) or new_key(),
        count=shards.count,
        slices=shards.slices,
        combine=shards.combine,
        seed=config.seed,
        base=model.base().digest(),
        tokenizer=tokenizer_digest(model),
        serializer=str(run.card.model.get("serializer", "")),
        method=msgspec.to_builtins(config.method),
        train=msgspec.to_builtins(config.train),
        environment=environment(model.device),
        fresh=begun(run, model),
    )
    write_manifest(run, manifest)
    return manifest


def inherited_key(run: Run) -> str | None:
    """The key of the run that `run` comes of, where that was trained in shards: who stays, stays where they are."""
    parent = run.card.parent
    if parent is None or not (run.path.parent / parent / "private" / "shards" / "shards.json").exists():
        return None
    return read_manifest(Run(run.path.parent / parent)).key


def _sizes(shards: Shards) -> str:
    sizes = [len(places) for places in shards.places.values()]
    empty = sizes.count(0)
    text = (
        f"{shards.manifest.count} shards of {shards.manifest.slices} slices, {min(sizes):,} to {max(sizes):,} records "
        "each, one after the other"
    )
    return f"{text}; {empty} slices are empty" if empty else text


def _validated(run: Run, config: RunConfig, validation: Sequence[Tokens]) -> float | None:
    from sordino.model import restore

    if not validation:
        return None
    return validation_loss(restore(config.model, config.method, run.weights), validation, config.train.batch_size)
