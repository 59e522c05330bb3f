"""What every membership attack finds on real text: the tables in docs/membership.md.

    python benchmarks/membership.py                       run what has no result yet, then print the tables
    python benchmarks/membership.py --only tofu-lora --seeds 0    a part of the grid
    python benchmarks/membership.py --print               only print: what was not run says so
    python benchmarks/membership.py --write docs/membership.md    and put the tables into the page

The data and the model are read from $SORDINO_DATA (default: ../shared). A cell is one run with all attacks: data set,
method and seed; its result is kept as JSON under --out, and an interrupted training or audit goes on. Coins are drawn
anew for each seed, so that counts at a false-positive rate can be pooled over seeds. The first data set gets every
attack; the others those of the first rank, which are the quick ones and those with shadows.
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

from membership_rows import tables
from page import keep, write

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL = "models/stories260k"
MARKS = ("<!-- figures: made by benchmarks/membership.py -->", "<!-- end of figures -->")

SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tofu": ("data/tofu/full.json", ("--data.text", "answer")),  # the first ROWS of it
    "presidio": ("data/pii/presidio_synth_v2.json", ("--data.text", "full_text")),
    "mts": ("data/medical/mts_dialog_train.csv", ("--data.text", "section_text")),
    "authors": ("data/tofu/full.json", ("--data.text", "answer", "--data.unit_rows", "20")),
}
METHODS: Mapping[str, tuple[str, ...]] = {
    "full": ("--method.kind", "full"),
    "lora": ("--method.kind", "lora", "--method.rank", "8"),
    "prefix": ("--method.kind", "prefix"),
    "bitfit": ("--method.kind", "bitfit"),
}
# One model and data set with every method first; of the others, full weights and LoRA.
COLUMNS: Mapping[str, tuple[str, ...]] = {
    "tofu": ("full", "lora", "prefix", "bitfit"),
    "presidio": ("full", "lora"),
    "mts": ("full", "lora"),
    "authors": ("full", "lora"),
}
# Tuned without attacks on seed 100: rates at which the validation loss falls for all the epochs.
RATES = {"full": "4e-3", "lora": "4e-3", "prefix": "5e-2", "bitfit": "2e-2"}
# So many that there is something to find, and not so many that everything is found.
EPOCHS = {"full": 3, "lora": 5, "prefix": 6, "bitfit": 6}
# Short sentences, of which little is left after few epochs, and authors, who are known by twenty answers at once.
TIMES = {"presidio": 2.0, "authors": 0.34}
COMMON = (
    "--split.candidates", "0.85", "--split.validation", "0.1", "--train.max_length", "64", "--train.batch_size", "16",
    "--train.checkpoint_every", "1000", "--audit.fpr", "[0.1, 0.01]", "--canaries.per_level", "0",
    "--audit.prefix_tokens", "24", "--audit.suffix_tokens", "12",
    "--audit.inputs.known", "200", "--audit.inputs.samples", "2",
)  # fmt: skip
ROWS = {"tofu": 1200}  # the first 60 of 200 authors, so that the grid takes no more than an hour and a half
SHADOWS = 4  # the same for all methods, of which only LoRA's are trained together
RATES_AT = (0.01, 0.1)
_ARITHMETIC = (
    "loss", "zlib", "lowercase", "reference", "reference_ratio", "min_k", "min_k_plus_plus", "error_zone", "windows",
)  # fmt: skip
_SHADOWED = ("lira", "lira_offline", "rmia", "rmia_offline", "rmia_ratio")
# Of a data set that is not named here: every attack.
ATTACKS: Mapping[str, tuple[str, ...]] = {
    "presidio": (*_ARITHMETIC, *_SHADOWED, "dataset_inference"),
    "mts": (*_ARITHMETIC, *_SHADOWED, "dataset_inference"),
    "authors": (*_ARITHMETIC, "user_inference", "dataset_inference"),
}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    data: str
    method: str
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        epochs = max(1, round(EPOCHS[self.method] * TIMES.get(self.data, 1.0)))
        how = ("--train.learning_rate", RATES[self.method], "--train.epochs", str(epochs))
        shadows = ("--audit.inputs.shadows", str(SHADOWS))
        return (*SETS[self.data][1], *COMMON, *METHODS[self.method], *how, *shadows, "--seed", str(self.seed))

    @property
    def attacks(self) -> tuple[str, ...]:
        """The attacks by name; all of them where none is named."""
        return ATTACKS.get(self.data, ())

    @property
    def name(self) -> str:
        """A name that changes with the settings, so that no result of others is taken for its own."""
        settled = (self.keys, self.attacks, ROWS.get(self.data))
        digest = hashlib.blake2b(json.dumps(settled).encode(), digest_size=3).hexdigest()
        return f"{self.data}-{self.method}-{self.seed}-{digest}"


def grid(seeds: Sequence[int], only: str) -> list[Cell]:
    """The cells to run: all of the first data set, then a seed of all others before the next seed."""
    first, *others = COLUMNS
    cells = [
        Cell(data=d, method=m, seed=s) for some in ([first], others) for s in seeds for d in some for m in COLUMNS[d]
    ]
    return [cell for cell in cells if only in cell.name]


def counted(folder: Path, seed: int, fpr: float) -> dict[str, dict[str, int]]:
    """Hits and false alarms of each attack: half of all records above a threshold set by the other non-members, twice.

    So each record is judged once, by a threshold that it had no part in.
    """
    import numpy as np

    from sordino import stats

    rows = json.loads((folder / "private" / "scores.json").read_text())
    member = np.array(rows["member"], dtype=bool)
    first, found = np.random.default_rng(seed).random(len(member)) < 0.5, {}
    for name, scores in rows["scores"].items():
        values, hits, alarms = np.array(scores), 0, 0
        for sets in (first, ~first):
            # tpr_at_fpr takes its threshold from the non-members held out, and judges by the others.
            threshold = stats.tpr_at_fpr(values, member, sets & ~member, fpr)[2]
            above = (values > threshold) & ~sets
            hits, alarms = hits + int((above & member).sum()), alarms + int((above & ~member).sum())
        inside = int(member.sum())
        found[name] = {"hits": hits, "members": inside, "alarms": alarms, "non-members": len(member) - inside}
    return found


def source(data: str, out: Path) -> Path:
    """The file of a data set, or its first rows in a file of their own."""
    path = DATA / SETS[data][0]
    if data not in ROWS:
        return path
    some = out / f"{data}-{ROWS[data]}.json"
    rows = path.read_text().splitlines(keepends=True)[: ROWS[data]]
    if not some.exists():
        whole = some.with_suffix(f".{os.getpid()}")
        whole.write_text("".join(rows))
        whole.replace(some)
    return some


def run(cell: Cell, out: Path) -> None:
    """Train and audit one cell and keep its figures."""
    import torch

    from sordino.attacks.base import discover
    from sordino.audit.flow import audit
    from sordino.config import load
    from sordino.run import Run
    from sordino.train.flow import create, prepare, train_run

    torch.set_num_threads(1)
    path = out / f"{cell.name}.json"
    if path.exists():
        return
    values = {
        "data": {"path": str(source(cell.data, out))}, "out": str(out / "runs" / cell.name),
        "model": {"path": str(DATA / MODEL), "device": "cpu"},
    }  # fmt: skip
    config = load(values=values, environment={}, flags=list(cell.keys))
    begun = sorted((out / "runs" / cell.name).glob("*/run.json"))
    opened = Run.open(begun[0].parent) if begun else create(config, prepare(config))
    start = time.process_time()
    if opened.card.status != "trained":
        train_run(opened)
    trained = time.process_time()
    report = audit(opened, suite="all", attacks=cell.attacks)
    attacks = discover("membership")
    result = {
        "cell": asdict(cell), "keys": cell.keys, "training": dict(opened.card.training),
        "cpu_seconds": {"training": None if begun else trained - start, "audit": time.process_time() - trained},
        "verdict": report.verdict.state, "strongest": report.strongest, "seconds": dict(report.seconds),
        "metrics": {k: asdict(v) for k, v in report.metrics.items()}, "counts": dict(report.counts),
        "gates": [asdict(g) for g in report.gates], "untested": list(report.untested),
        "attempts": {
            a.name: {
                "auc": asdict(a.estimates["auc"]), "control": asdict(a.control["auc"]) if a.control else None,
                "p_value": a.p_value, "inputs": sorted(attacks[a.name].inputs), "cost": attacks[a.name].cost,
                "access": a.access, "level": attacks[a.name].level,
            }
            for a in report.attempts if a.family == "membership"
        },
        "rates": {str(rate): counted(opened.path, cell.seed, rate) for rate in RATES_AT},
    }  # fmt: skip
    keep(path, result)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "membership")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the tables")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
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
    cells = {c: options.out / f"{c.name}.json" for c in grid(options.seeds, "")}
    found = {(c.data, c.method, c.seed): json.loads(p.read_text()) for c, p in cells.items() if p.exists()}
    text = tables(found, COLUMNS, options.seeds)
    print(text)
    if options.write:
        write(options.write, text, MARKS)


if __name__ == "__main__":
    main()
