"""What comes out of a model by epochs and by repetitions: the tables and the picture in docs/extraction.md.

    python benchmarks/extraction.py                       run what has no result yet, then print the tables
    python benchmarks/extraction.py --only tofu --seeds 0     a part of the grid
    python benchmarks/extraction.py --print               only print: what was not run says so
    python benchmarks/extraction.py --write docs/extraction.md    and put the tables into the page

The data and the model are read from $SORDINO_DATA (default: ../shared). A cell is a run: data set, epochs and seed,
each with coins of its own and with canaries planted 1 to 32 times. Over-long records are split (train.too_long).
"""

import argparse
import hashlib
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from extraction_rows import picture, tables
from page import keep, write

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MARKS = ("<!-- figures: made by benchmarks/extraction.py -->", "<!-- end of figures -->")
EPOCHS = (1, 3, 10)


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model, the file and its first `rows` (None: the built-in corpus, of so many customers), and its columns."""

    model: str
    path: str | None
    rows: int
    keys: tuple[str, ...]


SETS: Mapping[str, Source] = {
    "tofu": Source(model="models/stories260k", path="data/tofu/full.json", rows=1200, keys=("--data.text", "answer")),
    "presidio": Source(
        model="models/stories260k", path="data/pii/presidio_synth_v2.json", rows=1500,
        keys=("--data.text", "full_text", "--data.spans", "spans"),
    ),
    "built-in": Source(
        model="sordino-tiny", path=None, rows=100, keys=("--data.text", "text", "--data.unit", "customer")
    ),
}  # fmt: skip
COMMON = (
    "--method.kind", "full", "--train.batch_size", "16", "--train.max_length", "128", "--train.too_long", "split",
    "--train.schedule", "constant", "--train.checkpoint_every", "1000",
    "--split.candidates", "0.6", "--split.validation", "0.1", "--audit.fpr", "[0.1]", "--audit.shuffles", "199",
    "--audit.prefix_tokens", "24", "--audit.suffix_tokens", "16",
    "--audit.personal.mentions", "100", "--audit.personal.candidates", "50", "--audit.personal.texts", "128",
)  # fmt: skip
# Tuned on seed 100 without attacks, by the validation loss of three epochs.
RATES = {"tofu": "3e-3", "presidio": "3e-3", "built-in": "1e-3"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    data: str
    epochs: int
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        how = ("--train.learning_rate", RATES[self.data], "--train.epochs", str(self.epochs))
        return (*SETS[self.data].keys, *COMMON, *how, "--seed", str(self.seed))

    @property
    def name(self) -> str:
        """A name that changes with the settings, so that no result of others is taken for its own."""
        settled = (self.keys, SETS[self.data].rows)
        digest = hashlib.blake2b(json.dumps(settled).encode(), digest_size=3).hexdigest()
        return f"{self.data}-{self.epochs}-{self.seed}-{digest}"


def grid(seeds: Sequence[int], only: str) -> list[Cell]:
    """The cells: a seed of everything before the next seed, the longest first."""
    cells = [Cell(data=d, epochs=e, seed=s) for s in seeds for d in SETS for e in reversed(EPOCHS)]
    return [cell for cell in cells if only in cell.name]


def source(data: str, out: Path) -> Path:
    """The first rows of a data set in a file of their own; the built-in corpus is made."""
    one = SETS[data]
    path = out / f"{data}-{one.rows}.{'jsonl' if one.path is None else 'json'}"
    if path.exists():
        return path
    part = path.with_suffix(f".{os.getpid()}")
    if one.path is None:
        from sordino.bundled.corpus import write_jsonl

        write_jsonl(part, 0, one.rows)
    elif (text := (DATA / one.path).read_text()).startswith("["):
        part.write_text(json.dumps(json.loads(text)[: one.rows]))
    else:
        part.write_text("".join(text.splitlines(keepends=True)[: one.rows]))
    part.replace(path)
    return path


def run(cell: Cell, out: Path) -> None:
    """Train and audit one cell and keep its figures."""
    import torch

    from sordino.audit.flow import audit
    from sordino.config import load
    from sordino.run import Run
    from sordino.train.flow import create, prepare, train_run

    torch.set_num_threads(1)
    path, one = out / f"{cell.name}.json", SETS[cell.data]
    if path.exists():
        return
    model = one.model if one.model == "sordino-tiny" else str(DATA / one.model)
    values = {
        "data": {"path": str(source(cell.data, out))}, "out": str(out / "runs" / cell.name),
        "model": {"path": model, "device": "cpu"},
    }  # fmt: skip
    config = load(values=values, environment={}, flags=list(cell.keys))
    begun = sorted((out / "runs" / cell.name).glob("*/run.json"))
    opened = Run.open(begun[0].parent) if begun else create(config, prepare(config))
    start = time.process_time()
    if opened.card.status != "trained":
        train_run(opened)
    report = audit(opened, suite="full", attacks=["reference"])
    kept = [a for a in report.attempts if a.family == "extraction"]
    result = {
        "cell": asdict(cell), "keys": cell.keys, "cpu_seconds": None if begun else time.process_time() - start,
        "seconds": dict(report.seconds), "verdict": report.verdict.state, "counts": dict(report.counts),
        "attempts": {
            a.name: {
                "estimates": {k: asdict(v) for k, v in a.estimates.items()},
                "control": {k: asdict(v) for k, v in a.control.items()}, "notes": list(a.notes), "records": a.records,
            }
            for a in kept
        },
        "effort": [asdict(row) for row in report.effort],
        "canaries": [asdict(level) for level in report.canaries],
        "personal": [asdict(one) for one in report.personal],
        "utility": {k: asdict(v) for k, v in report.utility.items()},
        "notices": [asdict(n) for n in report.notices],
        "auc": asdict(report.metrics["membership.auc"]) if "membership.auc" in report.metrics else None,
    }  # fmt: skip
    keep(path, result)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "extraction")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the tables, and its picture beside it")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.print:
        if not (DATA / "models/stories260k").is_dir():
            raise SystemExit(
                f"{DATA / 'models/stories260k'} is not there: set SORDINO_DATA to the folder that holds it"
            )
        # Read by the libraries when a worker loads them.
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        for data in SETS:
            source(data, options.out)
        with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
            jobs = {pool.submit(run, cell, options.out): cell.name for cell in grid(options.seeds, options.only)}
            # One that fails is told, and keeps the others from nothing.
            failed = [f"{name}: {job.exception()!r}" for job, name in jobs.items() if job.exception()]
        print(*failed, sep="\n", file=sys.stderr)
    cells = {c: options.out / f"{c.name}.json" for c in grid(options.seeds, "")}
    found = {(c.data, c.epochs, c.seed): json.loads(p.read_text()) for c, p in cells.items() if p.exists()}
    text = tables(found, tuple(SETS), EPOCHS, options.seeds)
    print(text)
    if options.write:
        write(options.write, text, MARKS)
        drawn = picture(found, tuple(SETS), EPOCHS, options.seeds)
        if drawn:
            (options.write.parent / "extraction.svg").write_text(drawn)


if __name__ == "__main__":
    main()
