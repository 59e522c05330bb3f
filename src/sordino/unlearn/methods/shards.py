"""Exact deletion from a run that was trained in shards: what saw the records goes at once, and is trained again.

After SISA (Bourtoule et al. 2021, arXiv:1912.03817). First the adapters of the affected shards leave the mean, which is
arithmetic on files; then each is trained again from the last snapshot that has not seen the records, on what stays.
What comes of it is what training anew on what stays, with the same key, would have given: bit for bit, on a CPU with
as many threads.
"""

import dataclasses
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import numpy as np

from sordino.errors import UnlearningError
from sordino.records import Example
from sordino.results import Cost
from sordino.run import Run, write_folder
from sordino.train.shard_merge import SETTINGS, WEIGHTS, linked
from sordino.train.shard_plan import (
    Cell,
    ShardManifest,
    cells_of,
    damaged,
    fingerprint,
    formula,
    read_manifest,
    read_stage,
    shards_folder,
    share_of,
    snapshot,
    write_manifest,
)
from sordino.train.shard_weights import check_last, records_of, refuse_lost, stages, write_weights
from sordino.unlearn.base import Child, Deletion, unlearner

if TYPE_CHECKING:
    from sordino.model import Model
    from sordino.train.progress import Progress
    from sordino.train.sharded import Shards

__all__ = ["drop", "expected", "rebuild", "seen", "shards"]


def affected(manifest: ShardManifest, examples: Sequence[Example]) -> list[Cell]:
    """The shards and slices that were trained on `examples`, sorted."""
    return sorted({manifest.place(example) for example in examples})


def seen(run: Run, examples: Sequence[Example]) -> list[Path]:
    """The snapshots of `run` that any of `examples` is in: that of its slice, and all after it in its shard."""
    manifest = read_manifest(run)
    cells = {(s, later) for s, part in affected(manifest, examples) for later in range(part, manifest.slices)}
    return [folder for cell in sorted(cells) if (folder := snapshot(run, cell)).exists()]


def expected(deletion: Deletion) -> float:
    """The share of training anew that `deletion` takes here, by tokens.

    Of a slice's tokens, those who go are taken to have had as many as others, record by record. Raises
    `UnlearningError` where a snapshot is missing.
    """
    manifest = read_manifest(deletion.run)
    found = stages(deletion.run, manifest, whole=False)
    tokens = np.zeros((manifest.count, manifest.slices), dtype=np.int64)
    gone = [manifest.place(example) for example in deletion.forget]
    for cell, stage in found.items():
        tokens[cell] = round(stage.tokens * (1 - gone.count(cell) / max(1, stage.count)))
    return share_of(tokens, set(gone))


def drop(deletion: Deletion, child: Child) -> float:
    """Write the weights without the affected shards, to be served at once; returns how many seconds that took.

    No model is loaded and nothing is trained. Where every shard is affected, the untuned model answers until they are
    rebuilt. Raises `UnlearningError` where a snapshot that is wanted is missing or damaged.
    """
    start = time.monotonic()
    manifest = read_manifest(deletion.run)
    gone = {shard for shard, _ in affected(manifest, deletion.forget)}
    if child.settings.get("repair"):
        gone |= {shard for shard, _ in damaged(deletion.run, manifest)}
    left = set(range(manifest.count)) - gone
    check_last(deletion.run, manifest, left)
    counts = records_of(stages(deletion.run, manifest, whole=False, among=left))
    write_weights(child.run, manifest, _tokenizer_of(deletion.run), source=deletion.run, counts=counts)
    seconds = time.monotonic() - start
    _noted(child, manifest, dropped=len(gone), dropped_seconds=round(seconds, 4))
    child.run.event("dropped", shards=len(gone), seconds=round(seconds, 4))
    child.say(f"{len(gone)} of {manifest.count} shards left the model after {seconds:.2f} s; {child.run.weights} is it")
    return seconds


def rebuild(deletion: Deletion, child: Child) -> Cost:
    """Train the affected shards again, each from its last snapshot that has seen nothing of what goes.

    Afterwards the child has snapshots of its own of every shard, none of which has seen it. Interrupted, it goes on
    from the last checkpoint. Raises `UnlearningError` where base, tokenizer or settings are not those that the shards
    were trained with, or a snapshot is missing or damaged and `repair` was not asked for.
    """
    manifest = read_manifest(deletion.run)
    if not child.settings.get("repair"):
        refuse_lost(deletion.run, damaged(deletion.run, manifest))
    _check_settings(deletion, manifest)
    places = cells_of(deletion.left.training, manifest)
    wanted = {cell: fingerprint(manifest.key, (deletion.left.training[i] for i in at)) for cell, at in places.items()}
    again = _kept(deletion, child, manifest, wanted)
    write_manifest(child.run, manifest)
    start, before = time.monotonic(), 0.0
    if again:
        shards = _shards(deletion, child, manifest)
        before = sum(stage.seconds for cell in again if (stage := read_stage(snapshot(child.run, cell))) is not None)
        _trained(shards, child)
    found = stages(child.run, manifest)
    if {cell: stage.records for cell, stage in found.items()} != wanted:
        raise UnlearningError("A shard was not trained on what stays.", "Delete the child's folder and run it again.")
    write_weights(child.run, manifest, _tokenizer_of(deletion.run), counts=records_of(found))
    tokens = sum(found[cell].tokens for cell in again)
    units = len({example.record.unit for example in deletion.forget})
    _noted(
        child,
        manifest,
        retrained=len(again),
        threads=int(manifest.environment["threads"]),
        **_exactness(deletion, manifest),
    )
    return Cost(
        seconds=time.monotonic() - start + before,
        tokens=tokens,
        share=tokens / max(1, sum(stage.tokens for stage in found.values())),
        formula=formula(manifest.count, manifest.slices, units),
    )


@unlearner(tier="exact", needs=("shards",), defaults={"repair": False}, paper="Bourtoule et al. 2021, arXiv:1912.03817")
def shards(deletion: Deletion, child: Child) -> Cost:
    """Drop the shards that saw the records, and train them again from the last slice that did not.

    With `repair`, shards of which a snapshot is missing or damaged are trained again as well.
    """
    seconds = 0.0 if child.run.weights.exists() else drop(deletion, child)
    cost = rebuild(deletion, child)
    return dataclasses.replace(cost, seconds=seconds + cost.seconds)


def _tokenizer_of(run: Run) -> Callable[[Path], None]:
    """Copies what stands beside the adapter in the weights of `run`: its tokenizer."""
    ours = {WEIGHTS, SETTINGS, "combined.json"}

    def copied(folder: Path) -> None:
        for path in run.weights.iterdir():
            if path.is_file() and path.name not in ours:
                shutil.copy2(path, folder / path.name)

    return copied


def _check_settings(deletion: Deletion, manifest: ShardManifest) -> None:
    config = deletion.config
    of_run = {"method": config.method, "train": config.train, "shards": config.shards}
    shaped = {"count": manifest.count, "slices": manifest.slices, "combine": manifest.combine}
    kept = {"method": manifest.method, "train": manifest.train, "shards": shaped}
    other = [name for name, value in of_run.items() if msgspec.to_builtins(value) != kept[name]]
    if other or config.seed != manifest.seed:
        message = f"The settings {', '.join(other) or 'seed'} of {deletion.run.path} are not those of its shards."
        raise UnlearningError(message, "Restore run.json, or train anew.")


def _kept(deletion: Deletion, child: Child, manifest: ShardManifest, wanted: Mapping[Cell, str]) -> list[Cell]:
    """Give the child the snapshots that have seen nothing of what goes; returns the cells to be trained again.

    Whether they have is read off digests of the records that each was trained on, and must agree with the key.
    """
    target = shards_folder(child.run)
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    if (shards_folder(deletion.run) / "fresh").is_dir():
        _copied(shards_folder(deletion.run) / "fresh", target / "fresh")
    again: list[Cell] = []
    for shard in range(manifest.count):
        clean, start = True, manifest.fresh
        for part in range(manifest.slices):
            stage = read_stage(snapshot(deletion.run, (shard, part)))
            clean = clean and stage is not None and (stage.records, stage.start) == (wanted[shard, part], start)
            if not clean or stage is None:
                again.append((shard, part))
                continue
            start = stage.weights
            _copied(snapshot(deletion.run, (shard, part)), snapshot(child.run, (shard, part)))
    if not set(affected(manifest, deletion.forget)) <= set(again):
        message = f"The shards of {deletion.run.path} were not trained on all the records that are to go."
        raise UnlearningError(message, "Its records were changed after training: train anew.")
    return again


def _copied(source: Path, target: Path) -> None:
    if target.exists():
        return
    target.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with write_folder(target) as made:
        for path in source.iterdir():
            linked(path, made / path.name)


def _shards(deletion: Deletion, child: Child, manifest: ShardManifest) -> "Shards":
    """What is to be trained again: the base, checked, with the adapter as all shards begin, and what stays."""
    from sordino.model.methods.extra_rows import first_new
    from sordino.train.planted import otherwise, read_audit_canaries
    from sordino.train.reading import serializer_for, training_tokens
    from sordino.train.sharded import Sequences, Shards

    config, examples = deletion.config, deletion.left.training
    child.say(f"loading {config.model.path}")
    model = _model(deletion, manifest)
    serializer = serializer_for(config, model.tokenizer, model.context)
    if serializer.rule != manifest.serializer:
        raise _another(deletion, "serializer")
    special = otherwise(read_audit_canaries(child.run), serializer, first_new(model.module))
    tokens, owners, _ = training_tokens(examples, serializer, config.train.goldfish, special)
    data = Sequences(examples=examples, tokens=tokens, owners=owners)
    return Shards(run=child.run, model=model, config=config, manifest=manifest, data=data)


def _model(deletion: Deletion, manifest: ShardManifest) -> "Model":
    from sordino.model import attach, load, tokenizer_digest
    from sordino.train.dropout import with_dropout
    from sordino.train.shard_adapters import check_base

    config = deletion.config
    base = load(config.model)
    check_base(base)
    if base.digest() != manifest.base:
        raise _another(deletion, "base model")
    if tokenizer_digest(base) != manifest.tokenizer:
        raise _another(deletion, "tokenizer")
    if config.train.dropout is not None:
        with_dropout(base.module, config.train.dropout)
    return attach(base, config.method, config.seed)


def _another(deletion: Deletion, what: str) -> UnlearningError:
    message = f"The {what} is not the one that the shards of {deletion.run.path} were trained with."
    return UnlearningError(message, "Restore it; a merged or quantised one will not do. Or train anew.")


def _trained(shards: "Shards", child: Child) -> None:
    from sordino.train.shard_adapters import begun
    from sordino.train.sharded import pinned

    begun(child.run, shards.model, shards.manifest.fresh)
    ticks: list[Callable[[int], None]] = []
    done = [0]

    def monitor(progress: "Progress", steps: int) -> None:
        if not ticks:
            ticks.append(child.ticker("rebuilding shards, steps", steps))
        ticks[0](progress.step - done[0])
        done[0] = progress.step

    with pinned(int(shards.manifest.environment["threads"])):
        shards.train(monitor)


def _exactness(deletion: Deletion, manifest: ShardManifest) -> dict[str, object]:
    """Whether the bits are those of training anew, and what differs from then where that cannot be said."""
    from sordino.model import pick_device
    from sordino.train.sharded import environment

    kept = manifest.environment
    now = environment(pick_device(deletion.config.model.device)) | {"threads": kept["threads"]}
    differs = sorted(name for name in now if now[name] != kept.get(name))
    return {"bit_identical": kept["device"] == "cpu" and not differs, "device": kept["device"], "differs": differs}


def _noted(child: Child, manifest: ShardManifest, **values: object) -> None:
    """Say in the child's card what became of its shards."""
    card = child.run.card
    said = {"count": manifest.count, "slices": manifest.slices, **card.unlearning.get("shards", {}), **values}
    child.run.write_card(dataclasses.replace(card, unlearning={**card.unlearning, "shards": said}))
