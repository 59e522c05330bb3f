"""Fifty deletions one after the other: does the model drift? The table in docs/unlearning.md.

    python benchmarks/sequence.py                       go on with what has no result yet, then print the table
    python benchmarks/sequence.py --only shards --seeds 0    a part of the grid
    python benchmarks/sequence.py --print               only print: what was not run says so
    python benchmarks/sequence.py --write docs/unlearning.md     and put the table into the page

Authors of TOFU that were trained on go one by one, each by a request of its own on the run that the request before it
made. After every ten, the loss on validation records, and of all that went against authors never trained on, are
measured; the control is a training anew on what is left. The data and the model are read from $SORDINO_DATA (default:
../shared); an interrupted chain goes on.
"""

import argparse
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

from page import NOT_RUN, figure, keep, write

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL = "models/stories260k"
MARKS = ("<!-- figures: made by benchmarks/sequence.py -->", "<!-- end of the sequence -->")
REQUESTS, EVERY = 50, 10

COMMON = (
    "--data.prompt", "question", "--data.completion", "answer", "--data.unit_rows", "20",
    "--split.candidates", "0.3", "--split.validation", "0.05", "--canaries.per_level", "0", "--train.max_length", "128",
    "--train.batch_size", "16", "--train.checkpoint_every", "100000", "--train.learning_rate", "4e-3",
    "--method.rank", "8",
)  # fmt: skip
# A stage of a shard sees a thirty-second of the records: it takes as many epochs over them.
CHAINS: Mapping[str, tuple[str, ...]] = {
    "shards": ("--train.epochs", "5", "--shards.count", "8", "--shards.slices", "4"),
    "grad_diff": ("--train.epochs", "5"),
    "npo": ("--train.epochs", "5"),
}
# What the search of settings on the first request found; the requests after it use the same.
SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "shards": {},
    "grad_diff": {"learning_rate": 1e-3, "epochs": 5},
    "npo": {"learning_rate": 1e-3, "epochs": 5},
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """A chain of requests."""

    method: str
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        return (*COMMON, *CHAINS[self.method], "--seed", str(self.seed))

    @property
    def name(self) -> str:
        """A name that changes with the settings."""
        settled = (self.keys, dict(SETTINGS[self.method]), REQUESTS, EVERY)
        return f"{self.method}-{self.seed}-{hashlib.blake2b(json.dumps(settled).encode(), digest_size=3).hexdigest()}"


def grid(seeds: Sequence[int], only: str) -> list[Cell]:
    """The cells: all methods of a seed before the next."""
    cells = [Cell(method=m, seed=s) for s in seeds for m in CHAINS]
    return [cell for cell in cells if only in cell.name]


def losses(run: Any, examples: Sequence[Any]) -> tuple[Any, Any]:
    """The mean loss of each of `examples` under the model of `run`, and of the untuned one."""
    from sordino.collect import collect
    from sordino.config import recorded
    from sordino.model import restore
    from sordino.signals import Ragged
    from sordino.train.reading import serializer_for

    config = recorded(run.card.config, "run.json")
    model = restore(config.model, config.method, run.weights)
    serializer = serializer_for(config, model.tokenizer, model.context)
    tokens = [serializer.encode(e.record) for e in examples]
    found = []
    for one in (model, model.base()):
        made = collect(one, tokens)
        found.append(-Ragged(made.logprob, made.offsets).mean())
    return found[0], found[1]


def measured(run: Any, gone: Sequence[Any], never: Sequence[Any], validation: Sequence[Any]) -> dict[str, Any]:
    """The validation loss, and what is left of those who went."""
    import numpy as np

    from sordino import stats

    held, _ = losses(run, validation)
    found: dict[str, Any] = {
        "validation": asdict(stats.mean_interval(held, [e.record.unit for e in validation])),
    }
    if gone:
        ours, base = losses(run, [*gone, *never])
        member = np.arange(len(ours)) < len(gone)
        units = [e.record.unit for e in (*gone, *never)]
        found["auc"] = asdict(stats.auc(base - ours, member, units))
    return found


def run(cell: Cell, out: Path) -> None:
    """Train, then delete one author after the other."""
    import torch

    from sordino.config import load
    from sordino.records.store import load as load_split
    from sordino.run import Run
    from sordino.train.flow import create, prepare, train_run
    from sordino.unlearn.flow import begin, find
    from sordino.unlearn.planning import Policy

    torch.set_num_threads(1)
    path, folder = out / f"{cell.name}.json", out / "runs" / cell.name
    if path.exists():
        return
    values = {
        "data": {"path": str(DATA / "data/tofu/full.json")}, "out": str(folder),
        "model": {"path": str(DATA / MODEL), "device": "cpu"},
    }  # fmt: skip
    config = load(values=values, environment={}, flags=list(cell.keys))
    kept = folder / "chain.json"
    state: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else {}
    if not state:
        opened = create(config, prepare(config))
        started = time.process_time()
        train_run(opened)
        state = {"first": str(opened.path), "runs": [str(opened.path)], "points": {}, "cpu": [],
                 "training": time.process_time() - started}  # fmt: skip
        keep(kept, state)
    first = load_split(Run.open(state["first"]).records)
    units = list(dict.fromkeys(e.record.unit for e in first.training if e.role != "canary"))[:REQUESTS]
    never, validation = list(first.nonmembers), list(first.validation)
    while True:
        done, current = len(state["runs"]) - 1, Run.open(state["runs"][-1])
        gone = [e for e in first.training if e.record.unit in set(units[:done])]
        if done % EVERY == 0 and str(done) not in state["points"]:
            state["points"][str(done)] = measured(current, gone, never, validation)
            keep(kept, state)
        if done == REQUESTS:
            break
        started = time.process_time()
        try:
            transaction = find(current)
        except Exception:  # none was begun on it before it was interrupted
            transaction = begin(current, "subject", [units[done]], acknowledged=True)
        policy = Policy(method=cell.method, settings=SETTINGS[cell.method])
        if transaction.state == "received":
            transaction.plan(policy)
        made = transaction.execute() if transaction.state == "planned" else transaction.child
        state["cpu"].append(time.process_time() - started)
        state["runs"].append(str(made.path))
        keep(kept, state)
        if done:  # what a chain of fifty leaves behind would fill a disk
            for old in ("weights", "private/checkpoints", "private/shards"):
                shutil.rmtree(current.path / old, ignore_errors=True)
    control = retrained(cell, config, state, units, folder, (never, validation))
    keep(path, {"cell": asdict(cell), "keys": cell.keys, **{k: state[k] for k in ("points", "cpu", "training")},
                "control": control})  # fmt: skip
    shutil.rmtree(folder, ignore_errors=True)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def retrained(
    cell: Cell, config: Any, state: Mapping[str, Any], units: Sequence[str], folder: Path, asked: tuple[Any, Any]
) -> dict[str, Any]:
    """The control: a training anew, in one piece or in shards as before, on what is left at the end."""
    from sordino.records.store import load as load_split
    from sordino.run import Run
    from sordino.unlearn.base import Child, create_child, finish_child
    from sordino.unlearn.methods import discover
    from sordino.unlearn.requests import new_request, resolve

    start = Run.open(state["first"])
    request = new_request(start, "subject", units, acknowledged=True)
    deletion = resolve(start, request)
    method = discover()["retrain"]
    child = Child(run=create_child(deletion, "retrain"), seed=cell.seed, settings=dict(method.defaults))
    made = finish_child(deletion, child, method, method.run(deletion, child))
    gone = [e for e in load_split(start.records).training if e.record.unit in set(units)]
    return measured(made, gone, *asked)


def table(found: Mapping[tuple[str, int], Mapping[str, Any]], seeds: Sequence[int]) -> str:
    """A row a method and number of requests, pooled over nothing: seed by seed."""
    lines = [
        "| method | seed | requests | validation loss | forgotten against never-trained, AUC | CPU seconds a request |",
        "|---|---|---|---|---|---|",
    ]
    for method in CHAINS:
        for seed in seeds:
            one = found.get((method, seed))
            if one is None:
                lines.append(f"| {method} | {seed} | {NOT_RUN} | | | |")
                continue
            for count, point in one["points"].items():
                auc = figure(point["auc"]) if "auc" in point else ""
                spent = one["cpu"][int(count) - EVERY : int(count)]
                mean = f"{sum(spent) / len(spent):.1f}" if spent else ""
                lines.append(f"| {method} | {seed} | {count} | {figure(point['validation'])} | {auc} | {mean} |")
            control = one["control"]
            lines.append(
                f"| {method}, control: trained anew | {seed} | {REQUESTS} | {figure(control['validation'])} | "
                f"{figure(control['auc'])} | {one['training']:.1f} (training) |"
            )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "sequence")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--workers", type=int, default=2, help="chains at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the table")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.print:
        if not (DATA / MODEL).is_dir():
            raise SystemExit(f"{DATA / MODEL} is not there: set SORDINO_DATA to the folder that holds it")
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            jobs = {pool.submit(run, cell, options.out): cell.name for cell in grid(options.seeds, options.only)}
            failed = [f"{name}: {job.exception()!r}" for job, name in jobs.items() if job.exception()]
        print(*failed, sep="\n", file=sys.stderr)
    cells = {c: options.out / f"{c.name}.json" for c in grid(options.seeds, "")}
    found = {(c.method, c.seed): json.loads(p.read_text()) for c, p in cells.items() if p.exists()}
    text = table(found, options.seeds)
    print(text)
    if options.write:
        write(options.write, text, MARKS)


if __name__ == "__main__":
    main()
