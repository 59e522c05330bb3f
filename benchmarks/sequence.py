"""Fifty deletions one after the other: does the model drift? The table in docs/unlearning.md.

    python benchmarks/sequence.py                       go on with what has no result yet, then print the table
    python benchmarks/sequence.py --only shards --seeds 0    a part of the grid
    python benchmarks/sequence.py --requests 10 --every 5 --authors 100    shorter chains on fewer records
    python benchmarks/sequence.py --print               only print: what was not run says so
    python benchmarks/sequence.py --write docs/unlearning.md     and put the table into the page

Authors of TOFU that were trained on go one by one, each by a request of its own on the run that the request before it
made. After every ten, the loss on validation records, and of all that went against authors never trained on, are
measured; the control is a training anew on what is left, in one piece or in the same shards. A chain whose method
refuses a request ends there, and says so. The data and the model are read from $SORDINO_DATA (default: ../shared); an
interrupted chain goes on.
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
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from page import NOT_RUN, figure, keep, pack, unpack, write

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL = "models/stories260k"
MARKS = ("<!-- figures: made by benchmarks/sequence.py -->", "<!-- end of the sequence -->")

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
    """A chain of `requests`, measured after `every` so many, on the first `authors` of TOFU's two hundred."""

    method: str
    seed: int
    requests: int = 50
    every: int = 10
    authors: int = 200

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        return (*COMMON, *CHAINS[self.method], "--seed", str(self.seed))

    @property
    def name(self) -> str:
        """A name that changes with the settings."""
        settled = (self.keys, dict(SETTINGS[self.method]), self.requests, self.every, self.authors)
        return f"{self.method}-{self.seed}-{hashlib.blake2b(json.dumps(settled).encode(), digest_size=3).hexdigest()}"


def grid(seeds: Sequence[int], only: str, shape: Mapping[str, int]) -> list[Cell]:
    """The cells: all methods of a seed before the next; `shape` has what all chains share."""
    cells = [Cell(method=m, seed=s, **shape) for s in seeds for m in CHAINS]
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
        found["auc"] = asdict(stats.delong(base - ours, member, units, scale="logit"))
    return found


def run(cell: Cell, out: Path) -> None:
    """Train, then delete one author after the other."""
    import torch

    from sordino.records.store import load as load_split
    from sordino.run import Run

    torch.set_num_threads(1)
    path, folder = out / f"{cell.name}.json", out / "runs" / cell.name
    if path.exists():
        return
    kept = folder / "chain.json"
    state: dict[str, Any] = json.loads(kept.read_text()) if kept.exists() else begun(cell, folder)
    keep(kept, state)
    first = load_split(Run.open(folder / state["runs"][0]).records)
    units = list(dict.fromkeys(e.record.unit for e in first.training if e.role != "canary"))
    if len(units) <= cell.requests:
        raise SystemExit(f"{cell.name}: {len(units)} authors were trained on, and {cell.requests} are to go")
    asked = list(first.nonmembers), list(first.validation)
    while True:
        done, current = len(state["runs"]) - 1, Run.open(folder / state["runs"][-1])
        ended = done == cell.requests or "stopped" in state
        if (ended or done % cell.every == 0) and str(done) not in state["points"]:
            gone = [e for e in first.training if e.record.unit in set(units[:done])]
            state["points"][str(done)] = measured(current, gone, *asked)
            keep(kept, state)
        if ended:
            break
        step(cell, state, current, units[done])
        keep(kept, state)
        if done:  # what a chain of fifty leaves behind would fill a disk
            for old in ("weights", "private/checkpoints", "private/shards"):
                shutil.rmtree(current.path / old, ignore_errors=True)
        print(f"{cell.name}: {done + 1} of {cell.requests}", file=sys.stderr, flush=True)
    gone = [e for e in first.training if e.record.unit in set(units[:done])]
    anew = retrained(folder, state)
    control = measured(anew, gone, *asked) | {"weights": anew.card.model["weights"]}
    result = {k: state[k] for k in ("points", "cpu", "shares", "training")} | {"stopped": state.get("stopped", "")}
    result |= {"weights": current.card.model["weights"], "control": control}
    keep(path, {"cell": asdict(cell), "keys": cell.keys, **result})
    shutil.rmtree(folder, ignore_errors=True)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def begun(cell: Cell, folder: Path) -> dict[str, Any]:
    """Train the run that a chain begins with."""
    from sordino.config import load
    from sordino.train.flow import create, prepare, train_run

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    data = folder / "rows.json"
    lines = (DATA / "data/tofu/full.json").read_text().splitlines(keepends=True)
    data.write_text("".join(lines[: 20 * cell.authors]))
    values = {
        "data": {"path": str(data)}, "out": str(folder), "model": {"path": str(DATA / MODEL), "device": "cpu"},
    }  # fmt: skip
    config = load(values=values, environment={}, flags=list(cell.keys))
    started = time.process_time()
    opened = train_run(create(config, prepare(config)))
    spent = time.process_time() - started
    return {"runs": [opened.path.name], "points": {}, "cpu": [], "shares": [], "training": spent}


def step(cell: Cell, state: dict[str, Any], current: Any, unit: str) -> None:
    """Carry out one request on the last run of a chain, or go on with it; what a method refuses ends the chain."""
    from sordino.deletions import Deletions
    from sordino.errors import UnlearningError
    from sordino.unlearn.flow import begin, find
    from sordino.unlearn.planning import Policy

    started = time.process_time()
    known = any(one.run == current.card.name for one in Deletions.open(current.path.parent).requests())
    transaction = find(current) if known else begin(current, "subject", [unit], acknowledged=True)
    if transaction.state == "received":
        transaction.plan(Policy(method=cell.method, settings=SETTINGS[cell.method]))
    try:
        made = transaction.execute() if transaction.state == "planned" else transaction.child
    except UnlearningError as error:
        state["stopped"] = error.message
        return
    state["cpu"].append(time.process_time() - started)
    state["shares"].append(made.card.unlearning["cost"]["share"])
    state["runs"].append(made.path.name)


def retrained(folder: Path, state: Mapping[str, Any]) -> Any:
    """The control: a training anew, in one piece or in shards as before, on what is left at the end."""
    from sordino.evidence import digest
    from sordino.records.store import load as load_split
    from sordino.records.store import save as save_split
    from sordino.run import Run
    from sordino.train.flow import train_run

    last = Run.open(folder / state["runs"][-1])
    card = Run.open(folder / state["runs"][0]).card
    made = Run.create(folder, "control", digest(last.path.name))
    save_split(load_split(last.records), made.records)
    made.write_private("canaries.json", (last.private / "canaries.json").read_bytes())
    # Shards place who stays by the key of the run that this one names as its parent.
    named = {"name": made.path.name, "parent": last.path.name, "unlearning": {}}
    made.write_card(replace(card, status="prepared", training={}, privacy={}, **named))
    return train_run(made)


def table(found: Mapping[str, Mapping[str, Any]], cells: Sequence[Cell]) -> str:
    """A row a method and number of requests, pooled over nothing: seed by seed."""
    lines = [
        "| method | seed | requests | validation loss | forgotten against never-trained, AUC | share of training anew, "
        "mean a request | CPU seconds a request |",
        "|---|---|---|---|---|---|---|",
    ]
    for cell in sorted(cells, key=lambda cell: list(CHAINS).index(cell.method)):
        one = found.get(cell.name)
        if one is None:
            lines.append(f"| {cell.method} | {cell.seed} | {NOT_RUN} | | | | |")
            continue
        before, last = 0, max(map(int, one["points"]))
        for count, point in one["points"].items():
            auc = figure(point["auc"]) if "auc" in point else ""
            costs = [one[name][before : int(count)] for name in ("shares", "cpu")]
            share, spent = (sum(cost) / len(cost) if cost else None for cost in costs)
            told = f"{share:.1%} | {spent:.1f}" if share is not None and spent is not None else " | "
            lines.append(f"| {cell.method} | {cell.seed} | {count} | {figure(point['validation'])} | {auc} | {told} |")
            before = int(count)
        control = one["control"]
        if one["stopped"]:
            lines.append(f"| {cell.method} | {cell.seed} | {last + 1} | refused: {one['stopped']} | | | |")
        same = ", the same bits" if one["weights"] == control["weights"] else ""
        auc = figure(control["auc"]) if "auc" in control else ""
        lines.append(
            f"| {cell.method}, control: trained anew{same} | {cell.seed} | {last} | {figure(control['validation'])} | "
            f"{auc} | 100% | {one['training']:.1f} (training) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "sequence")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--requests", type=int, default=50, help="in a chain")
    parser.add_argument("--every", type=int, default=10, help="requests between measurements")
    parser.add_argument("--authors", type=int, default=200, help="of TOFU's two hundred, 20 records each")
    parser.add_argument("--workers", type=int, default=2, help="chains at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the table")
    options = parser.parse_args()
    shape = {name: getattr(options, name) for name in ("requests", "every", "authors")}
    options.out.mkdir(parents=True, exist_ok=True)
    unpack("sequence", options.out)
    if not options.print:
        if not (DATA / MODEL).is_dir():
            raise SystemExit(f"{DATA / MODEL} is not there: set SORDINO_DATA to the folder that holds it")
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            jobs = {pool.submit(run, cell, options.out): cell.name for cell in grid(options.seeds, options.only, shape)}
            failed = [f"{name}: {job.exception()!r}" for job, name in jobs.items() if job.exception()]
        print(*failed, sep="\n", file=sys.stderr)
    cells = grid(options.seeds, "", shape)
    paths = {c.name: options.out / f"{c.name}.json" for c in cells}
    text = table({name: json.loads(p.read_text()) for name, p in paths.items() if p.exists()}, cells)
    print(text)
    if options.write:
        write(options.write, text, MARKS)
        pack("sequence", options.out)


if __name__ == "__main__":
    main()
