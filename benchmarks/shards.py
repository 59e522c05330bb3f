"""What training in shards costs in utility, and what a deletion costs then: the tables in docs/unlearning.md.

    python benchmarks/shards.py                       run what has no result yet, then print the tables
    python benchmarks/shards.py --only 8-             a part of the grid
    python benchmarks/shards.py --print               only print: what was not run says so
    python benchmarks/shards.py --write docs/unlearning.md    and put the tables into the page

The data and the model are read from $SORDINO_DATA (default: ../shared). A cell is one run: a number of shards and a
seed, which draws coins and batches anew. Its result is kept as JSON under --out, and an interrupted training goes on.
The same adapters are asked as their mean and as an ensemble; then authors are deleted, each from the whole run.
"""

import argparse
import dataclasses
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from page import NOT_RUN, keep, pack, unpack, write

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL, SOURCE = "models/stories260k", "data/tofu/full.json"
MARKS = ("<!-- figures: made by benchmarks/shards.py -->", "<!-- end of figures by benchmarks/shards.py -->")
COUNTS = (0, 4, 8, 16, 32)  # 0: not in shards
SLICES = 4
DELETIONS = 4  # authors, each alone
KEYS = (
    "--data.text", "answer", "--data.unit_rows", "20",
    "--split.candidates", "0", "--split.validation", "0.1", "--split.near_duplicates", "0",
    "--canaries.per_level", "0", "--method.kind", "lora", "--method.rank", "8", "--train.learning_rate", "4e-3",
    "--train.epochs", "3", "--train.batch_size", "16", "--train.max_length", "64", "--train.checkpoint_every", "1000",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    shards: int
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        split = ("--shards.count", str(self.shards), "--shards.slices", str(SLICES)) if self.shards else ()
        return (*KEYS, *split, "--seed", str(self.seed))

    @property
    def name(self) -> str:
        """A name that changes with the settings, so that no result of others is taken for its own."""
        digest = hashlib.blake2b(json.dumps([self.keys, DELETIONS]).encode(), digest_size=3).hexdigest()
        return f"{self.shards}-{self.seed}-{digest}"


def grid(seeds: Sequence[int], only: str = "") -> list[Cell]:
    """The cells to run: a seed of all before the next seed."""
    cells = [Cell(shards=count, seed=seed) for seed in seeds for count in COUNTS]
    return [cell for cell in cells if cell.name.startswith(only)]


def ensemble_loss(run: Any, config: Any, folder: Path) -> float | None:
    """The validation loss of the shards of `run` as an ensemble."""
    from sordino.model import load_tokenizer
    from sordino.run import Run
    from sordino.train.shard_plan import read_manifest
    from sordino.train.shard_weights import write_weights

    folder.mkdir(parents=True, exist_ok=True)
    manifest = dataclasses.replace(read_manifest(run), combine="ensemble")
    tokenizer = load_tokenizer(config.model)
    write_weights(Run(folder), manifest, lambda made: tokenizer.save_pretrained(str(made)), source=run)
    return validation(run, config, folder / "weights")


def validation(run: Any, config: Any, weights: Path | None) -> float | None:
    """The validation loss of the weights in a folder, or of the untuned model."""
    from sordino.model import load, restore
    from sordino.records.store import load as load_split
    from sordino.train.loop import validation_loss
    from sordino.train.reading import serializer_for, training_tokens

    model = load(config.model) if weights is None else restore(config.model, config.method, weights)
    serializer = serializer_for(config, model.tokenizer, model.context)
    tokens, _, _ = training_tokens(load_split(run.records).validation, serializer)
    return validation_loss(model, tokens, config.train.batch_size)


def deleted(run: Any, name: str) -> Any:
    """The deletion of one unit from `run`."""
    from sordino.records import Split
    from sordino.records.store import load as load_split
    from sordino.results import DeletionRequest
    from sordino.unlearn.base import Deletion

    split = load_split(run.records)
    left = Split(examples=tuple(e for e in split.examples if e.record.unit != name), notices=split.notices)
    gone = [e for e in split.examples if e.record.unit == name]
    asked = DeletionRequest(id=f"benchmark-{name}", created="", run=run.path.name, kind="subject", names=(name,))
    return Deletion(
        run=run, request=asked, forget=[e for e in gone if e.included], others=[e for e in gone if not e.included],
        retain=left.training, never=left.nonmembers, validation=left.validation, left=left,
    )  # fmt: skip


def deletions(run: Any, seed: int) -> list[dict[str, float]]:
    """What it takes to delete a few authors, each alone."""
    import numpy as np

    from sordino.records.store import load as load_split
    from sordino.unlearn.base import Child, create_child
    from sordino.unlearn.methods.shards import drop, expected, rebuild

    units = sorted({e.record.unit for e in load_split(run.records).training})
    found = []
    for at in np.random.default_rng(seed).choice(len(units), DELETIONS, replace=False):
        deletion = deleted(run, units[at])
        child = Child(run=create_child(deletion, "shards"), seed=seed, settings={"repair": False})
        dropped = drop(deletion, child)
        start = time.process_time()
        cost = rebuild(deletion, child)
        cpu = time.process_time() - start
        found.append({**asdict(cost), "dropped": dropped, "expected": expected(deletion), "cpu_seconds": cpu})
        shutil.rmtree(child.run.path)
    return found


def every(run: Any) -> float:
    """The mean share of training anew over all authors, each alone: what the formula expects, for these places."""
    import numpy as np

    from sordino.records.store import load as load_split
    from sordino.train.shard_plan import expected_share, place, read_manifest, read_stage, snapshot

    manifest, shards = read_manifest(run), run.card.config["shards"]
    units = {e.record.unit for e in load_split(run.records).training}
    shape = (manifest.count, manifest.slices)
    counts, tokens = np.zeros(shape, dtype=np.int64), np.zeros(shape, dtype=np.int64)
    for unit in units:
        counts[place(manifest.key, unit, shards["count"], shards["slices"])] += 1
    for cell in manifest.cells:
        tokens[cell] = read_stage(snapshot(run, cell)).tokens
    return expected_share(tokens, counts)


def run(cell: Cell, out: Path) -> None:
    """Train one cell, ask it, delete from it, and keep the figures."""
    import torch

    from sordino.config import load
    from sordino.run import Run
    from sordino.train.flow import create, prepare, train_run

    torch.set_num_threads(1)
    path, folder = out / f"{cell.name}.json", out / "runs" / cell.name
    if path.exists():
        return
    values = {
        "data": {"path": str(DATA / SOURCE)}, "out": str(folder),
        "model": {"path": str(DATA / MODEL), "device": "cpu"},
    }  # fmt: skip
    config = load(values=values, environment={}, flags=list(cell.keys))
    begun = [p.parent for p in folder.glob("*/run.json") if Run(p.parent).card.parent is None]
    opened = Run.open(begun[0]) if begun else create(config, prepare(config))
    if opened.card.status != "trained":
        train_run(opened)
    result = {
        "cell": asdict(cell), "keys": cell.keys, "training": dict(opened.card.training),
        "merged": validation(opened, config, opened.weights), "untuned": validation(opened, config, None),
        "counts": dict(opened.card.data["counts"]),
    }  # fmt: skip
    if cell.shards:
        result["ensemble"] = ensemble_loss(opened, config, folder / "ensemble")
        result["every"] = every(opened)
        result["deletions"] = deletions(opened, cell.seed)
    keep(path, result)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def interval(values: Sequence[float], digits: int = 3) -> str:
    """The mean and the range of `values`."""
    if not values:
        return NOT_RUN
    mean = sum(values) / len(values)
    return f"{mean:.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def tables(found: Mapping[tuple[int, int], Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """Utility by the number of shards, and what deletions cost, as Markdown."""
    from sordino.train.shard_plan import formula

    lines = [
        f"Validation loss (nats a token; mean and range of {len(seeds)} seeds), and how much more of it than without",
        "shards, by seed.", "",
        "| shards × slices | merged | more | ensemble | more | untuned |", "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for count in COUNTS:
        cells = {seed: found[count, seed] for seed in seeds if (count, seed) in found}
        row = [f"{count} × {SLICES}" if count else "none"]
        for way in ("merged", "ensemble"):
            losses = {seed: cell[way] for seed, cell in cells.items() if way in cell}
            more = [100 * (v / found[0, s]["merged"] - 1) for s, v in losses.items() if (0, s) in found]
            row += [interval(list(losses.values())), f"{interval(more, 1)} %" if more else NOT_RUN]
        if not count:
            row[2:] = ["–", "–", "–"]
        lines.append("| " + " | ".join([*row, interval([c["untuned"] for c in cells.values()])]) + " |")
    lines += [
        "", "One author deleted: share of training anew, by tokens, in the mean over all authors, and of",
        f"{DELETIONS} a run that were deleted, each alone; and seconds to train, to drop and to rebuild.", "",
        "| shards × slices | formula | all authors | of the formula | deleted | train | drop | rebuild |",
        "|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for count in COUNTS[1:]:
        cells = [found[count, seed] for seed in seeds if (count, seed) in found]
        each = [d for cell in cells for d in cell["deletions"]]
        wanted = formula(count, SLICES)
        means = [c["every"] for c in cells]
        row = [f"{count} × {SLICES}", f"{wanted:.3f}", interval(means), interval([m / wanted for m in means], 2)]
        row += [interval([d["share"] for d in each]), interval([c["training"]["seconds"] for c in cells], 1)]
        row += [interval([d["dropped"] for d in each], 2), interval([d["seconds"] for d in each], 1)]
        lines.append("| " + " | ".join(row) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "shards")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", default="", help="how the names of the cells to run begin: shards-seed")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    unpack("shards", options.out)
    if not options.print:
        if not (DATA / MODEL).is_dir():
            raise SystemExit(f"{DATA / MODEL} is not there: set SORDINO_DATA to the folder that holds it")
        # Read by the libraries when a worker loads them.
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            jobs = {pool.submit(run, cell, options.out): cell.name for cell in grid(options.seeds, options.only)}
            # One that fails is told, and keeps the others from nothing.
            failed = [f"{name}: {job.exception()!r}" for job, name in jobs.items() if job.exception()]
        print(*failed, sep="\n", file=sys.stderr)
    cells = {c: options.out / f"{c.name}.json" for c in grid(options.seeds)}
    found = {(c.shards, c.seed): json.loads(p.read_text()) for c, p in cells.items() if p.exists()}
    text = tables(found, options.seeds)
    print(text)
    if options.write:
        write(options.write, text, MARKS)
        pack("shards", options.out)


if __name__ == "__main__":
    main()
