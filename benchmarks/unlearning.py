"""What every method of unlearning leaves behind, and what it costs: the tables in docs/unlearning.md.

    python benchmarks/unlearning.py                       run what has no result yet, then print the tables
    python benchmarks/unlearning.py --only forget01-lora --seeds 1    a part of the grid
    python benchmarks/unlearning.py --print               only print: what was not run says so
    python benchmarks/unlearning.py --write docs/unlearning.md    and put the tables into the page
    python benchmarks/unlearning.py --tune            try rates on a seed of their own, and print what RATES should be

TOFU's 4,000 questions with their answers, an author a unit (20 consecutive rows), are trained on but for authors held
out by coin; then its last 2 (forget01) or 20 (forget10) authors are to be forgotten, of whom only those count that were
trained on. The seeds are the first from 0 on under which both authors of forget01 are; that looks at their own coins
alone, so authors held out are as good a control as under any seed. A run is trained once for each seed and way of
tuning, and every method starts from it. The data and the model are read from $SORDINO_DATA (default: ../shared). A
cell's result is kept as JSON under --out; an interrupted training or method goes on. All of a seed is run before the
next.
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import shutil
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from page import keep, pack, unpack, write
from unlearning_rows import tables

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL, TOFU = "models/stories260k", "data/tofu"
MARKS = ("<!-- figures: made by benchmarks/unlearning.py -->", "<!-- end of figures -->")

SEEDS = (1, 2, 4)
TUNING = 7  # the next such seed: no table has it
FORGET = ("forget01", "forget10")
# The first row of full.json that is in the set; the others are the rest of the file.
FIRST = {"forget01": 3960, "forget10": 3600}
CONTROLS = ("retrain", "do_nothing")
FIRST_RANK = ("grad_ascent", "grad_diff", "npo", "simnpo", "dpo", "idk_dpo", "rmu", "task_vector")
SECOND_RANK = (
    "undial", "ce_u", "wga", "satimp", "tnpo", "alt_po", "idk_nll", "idk_ap", "max_entropy", "whp", "uld",
)  # fmt: skip
METHODS: Mapping[str, tuple[str, ...]] = {
    "lora": (*CONTROLS, *FIRST_RANK, *SECOND_RANK),
    "full": (*CONTROLS, *FIRST_RANK),
}

COMMON = (
    "--data.prompt", "question", "--data.completion", "answer", "--data.rejected", "rejected", "--data.unit_rows", "20",
    "--split.candidates", "0.25", "--split.validation", "0.05", "--canaries.per_level", "0",
    "--train.max_length", "160", "--train.batch_size", "16", "--train.checkpoint_every", "100000",
    "--train.learning_rate", "4e-3",
)  # fmt: skip
# So many epochs that records trained on are told from others, and the validation loss still falls.
KINDS: Mapping[str, tuple[str, ...]] = {
    "full": ("--method.kind", "full", "--train.epochs", "4"),
    "lora": ("--method.kind", "lora", "--method.rank", "8", "--method.alpha", "16", "--train.epochs", "5"),
}
# Published settings are for models of billions: of each method the rate that `--tune` finds best on forget01; forget10
# takes as many steps, by larger batches, so that the rates carry over. All stop where the validation loss has grown by
# 10 %, which is looked at every five steps.
STEPPING: Mapping[str, Mapping[str, Any]] = {
    "forget01": {"epochs": 4, "batch_size": 8, "schedule": "constant", "tolerance": 0.1, "check_every": 5},
    "forget10": {"epochs": 2, "batch_size": 32, "schedule": "constant", "tolerance": 0.1, "check_every": 5},
}
RATES: Mapping[str, Mapping[str, float]] = {
    "lora": {
        "grad_ascent": 0.001, "grad_diff": 0.001, "npo": 0.0003, "simnpo": 0.003, "dpo": 0.001, "idk_dpo": 0.0003,
        "rmu": 0.01, "task_vector": 0.001, "undial": 0.003, "ce_u": 0.0003, "wga": 0.0003, "satimp": 0.003,
        "tnpo": 0.001, "alt_po": 0.0003, "idk_nll": 0.003, "idk_ap": 0.0003, "max_entropy": 0.0003, "whp": 0.001,
        "uld": 0.0003,
    },
    "full": {
        "grad_ascent": 0.0002, "grad_diff": 0.0004, "npo": 0.0002, "simnpo": 0.0004, "dpo": 0.0004, "idk_dpo": 0.0004,
        "rmu": 0.003, "task_vector": 0.0004,
    },
}  # fmt: skip
USUAL = {"lora": 1e-3, "full": 2e-4}
TRIED = {"lora": (3e-4, 1e-3, 3e-3), "full": (1e-4, 2e-4, 4e-4)}
# What differs from the defaults otherwise: scales that hang on the width of the model. With the published α of 1,200,
# RMU leaves this one as it was at every rate.
OWN: Mapping[str, Mapping[str, Any]] = {"rmu": {"alpha": 30.0, "steering": 20.0}}
TRIED_OWN: Mapping[str, tuple[float, ...]] = {"rmu": (1e-3, 3e-3, 1e-2)}
# Of each set of questions, and of records that aren't to be forgotten, at most so many.
QUESTIONS, RECORDS, PREFIX = 60, 240, 32
ROBUSTNESS = ("relearning", "quantised", "two_checkpoints")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One method on one run."""

    forget: str
    kind: str
    method: str
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        return (*COMMON, *KINDS[self.kind], "--seed", str(self.seed))

    @property
    def settings(self) -> dict[str, Any]:
        """What is given to the method; what it has no setting for is left out when it is run."""
        rate = RATES[self.kind].get(self.method, USUAL[self.kind])
        if self.method in CONTROLS:
            return {}
        return {**STEPPING[self.forget], "learning_rate": rate, **OWN.get(self.method, {})}

    @property
    def base(self) -> str:
        """The name of the run that it starts from, which changes with the settings."""
        return f"{self.kind}-{self.seed}-{short(self.keys)}"

    @property
    def name(self) -> str:
        """A name that changes with the settings, so that no result of others is taken for its own."""
        settled = (self.keys, self.settings, QUESTIONS, RECORDS, PREFIX, ROBUSTNESS)
        return f"{self.forget}-{self.kind}-{self.method}-{self.seed}-{short(settled)}"


def short(settled: Any) -> str:
    """A digest of settings."""
    return hashlib.blake2b(json.dumps(settled).encode(), digest_size=3).hexdigest()


def grid(seeds: Sequence[int], only: str) -> list[Cell]:
    """The cells: controls first, then the first rank, then the second; a seed before the next."""
    ranks = (CONTROLS, FIRST_RANK, SECOND_RANK)
    cells = [
        Cell(forget=f, kind=k, method=m, seed=s)
        for s in seeds for rank in ranks for f in FORGET for k in KINDS for m in rank if m in METHODS[k]
    ]  # fmt: skip
    return [cell for cell in cells if only in cell.name]


def source(out: Path) -> Path:
    """TOFU's full.json with an answer that is wrong as `rejected`, which `dpo` prefers to the true one.

    Of authors to forget it is TOFU's own; of the others, for whom it has no say, the answer of the row before.
    """
    path = out / "full.json"
    if path.exists():
        return path
    folder = DATA / TOFU
    lines = (folder / "forget10_perturbed.json").read_text().splitlines()
    wrong = {(r["question"], r["answer"]): r["perturbed_answer"][0] for r in map(json.loads, lines) if r}
    rows = [json.loads(line) for line in (folder / "full.json").read_text().splitlines()]
    made = [
        {**row, "rejected": wrong.get((row["question"], row["answer"]), rows[i - 1]["answer"])}
        for i, row in enumerate(rows)
    ]
    whole = path.with_suffix(f".{os.getpid()}")
    whole.write_text("".join(json.dumps(row) + "\n" for row in made))
    whole.replace(path)
    return path


def train(cell: Cell, out: Path) -> None:
    """Train the run that a cell starts from, or go on with it."""
    import time

    import torch

    from sordino.config import load
    from sordino.run import Run
    from sordino.train.flow import create, prepare, train_run

    torch.set_num_threads(1)
    folder = out / "runs" / cell.base
    values = {
        "data": {"path": str(source(out))}, "out": str(folder),
        "model": {"path": str(DATA / MODEL), "device": "cpu"},
    }  # fmt: skip
    config = load(values=values, environment={}, flags=list(cell.keys))
    opened = started(folder) or create(config, prepare(config))
    if opened.card.status != "trained":
        begun = time.process_time()
        train_run(Run(opened.path))
        keep(folder / "cpu.json", {"training": time.process_time() - begun})
        print(f"trained: {cell.base}", file=sys.stderr, flush=True)


def started(folder: Path) -> Any:
    """The run in `folder` that all methods start from, or None."""
    from sordino.run import Run

    found = [Run.open(path.parent) for path in sorted(folder.glob("*/run.json"))]
    return next((run for run in found if run.card.parent is None), None)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "unlearning")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=list(SEEDS))
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--workers", type=int, default=2, help="cells at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the tables")
    parser.add_argument("--tune", nargs="?", const="forget01", metavar="PART", help="try rates, and print the best")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    unpack("unlearning", options.out)
    if not options.print:
        if not (DATA / MODEL).is_dir():
            raise SystemExit(f"{DATA / MODEL} is not there: set SORDINO_DATA to the folder that holds it")
        # Read by the libraries when a worker loads them.
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            every(pool, options)
    if options.tune is not None:
        return
    cells = {c: options.out / f"{c.name}.json" for c in grid(options.seeds, "")}
    found = {(c.forget, c.kind, c.method, c.seed): json.loads(p.read_text()) for c, p in cells.items() if p.exists()}
    text = tables(found, METHODS, options.seeds)
    print(text)
    if options.write:
        write(options.write, text, MARKS)
        pack("unlearning", options.out)


def every(pool: ProcessPoolExecutor, options: argparse.Namespace) -> None:
    """Run what is missing, all of a seed before the next; what fails is told, and keeps the others from nothing."""
    from unlearning_cells import run, tried

    source(options.out)
    seeds = options.seeds if options.tune is None else [TUNING]
    for seed in seeds:
        cells = grid([seed], options.only if options.tune is None else options.tune)
        todo = [c for c in cells if not (options.out / f"{c.name}.json").exists()]
        bases = list({c.base: c for c in todo}.values())
        told({c.base: pool.submit(train, c, options.out) for c in bases})
        if options.tune is not None:
            rates = {c: TRIED_OWN.get(c.method, TRIED[c.kind]) for c in cells if c.settings}
            jobs = {c: pool.submit(tried, c, options.out, some) for c, some in rates.items()}
            told({c.name: job for c, job in jobs.items()})
            best = {c: job.result() for c, job in jobs.items() if not job.exception()}
            for kind in KINDS:
                print(f'"{kind}": {json.dumps({c.method: rate for c, rate in best.items() if c.kind == kind})},')
            continue
        told({c.name: pool.submit(run, c, options.out) for c in todo})
        left = {c.base for c in grid([seed], "") if not (options.out / f"{c.name}.json").exists()}
        for base in {c.base for c in bases} - left:
            shutil.rmtree(options.out / "runs" / base, ignore_errors=True)


def told(jobs: Mapping[str, Any]) -> None:
    """Wait for `jobs`, and say which failed."""
    failed = [f"{name}: {job.exception()!r}" for name, job in jobs.items() if job.exception()]
    print(*failed, sep="\n", file=sys.stderr, end="\n" if failed else "", flush=True)


if __name__ == "__main__":
    main()
