"""What differential privacy buys and costs on real text: the tables in docs/differential-privacy.md.

    python benchmarks/privacy.py                       run what has no result yet, then print the tables
    python benchmarks/privacy.py --only tofu-lora --seeds 0    a part of the grid
    python benchmarks/privacy.py --print               only print: what was not run says so
    python benchmarks/privacy.py --write docs/differential-privacy.md   and put the tables into the page

The data and the model are read from $SORDINO_DATA (default: ../shared). A cell is one run: data set, method, guard
and seed; its result is kept as JSON under --out, and an interrupted training goes on. A guard is ε of 1, 8 or ∞, or a
free defence, which stops at the validation loss that ε = 8 reached with this method, data and seed.
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
from typing import Any

from page import NOT_RUN, keep, write
from picture import tradeoff
from privacy_rows import ATTACKS, ROWS, Result

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL = "models/stories260k"
MARKS = ("<!-- figures: made by benchmarks/privacy.py -->", "<!-- end of figures -->")
PICTURE = "privacy.svg"  # in the folder of the page

SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tofu": ("data/tofu/full.json", ("--data.text", "answer")),
    "presidio": ("data/pii/presidio_synth_v2.json", ("--data.text", "full_text")),
    "mts": ("data/medical/mts_dialog_train.csv", ("--data.text", "section_text")),
}
TITLES = {
    "tofu": "TOFU: answers about made-up authors",
    "presidio": "Presidio: sentences with made-up personal data",
    "mts": "MTS-Dialog: sections of doctors' notes",
}
COMMON = (
    "--split.candidates", "0.9", "--split.validation", "0.1", "--train.max_length", "64",
    "--train.checkpoint_every", "100", "--audit.fpr", "[0.1, 0.02]",
    "--audit.prefix_tokens", "24", "--audit.suffix_tokens", "12",
    "--canaries.levels", "[1, 16]", "--canaries.per_level", "10", "--canaries.digits", "3",
    "--canaries.templates", '["The code of {name} is {secret}."]',
)  # fmt: skip
METHOD: Mapping[str, tuple[str, ...]] = {
    "full": ("--method.kind", "full"),
    "lora": ("--method.kind", "lora", "--method.rank", "4"),
    "prefix": ("--method.kind", "prefix"),
    "bitfit": ("--method.kind", "bitfit"),
}
# Learning rates with DP-SGD and without it. Tuned on seed 100.
RATES: Mapping[str, tuple[str, str]] = {
    "full": ("5e-3", "4e-3"),
    "lora": ("7e-3", "4e-3"),
    "prefix": ("2e-1", "5e-2"),
    "bitfit": ("4e-2", "2e-2"),
}
# Expected batch and epochs with DP-SGD; batch and epochs without it.
SIZES: Mapping[str, tuple[tuple[int, int], tuple[int, int]]] = {
    "tofu": ((256, 3), (16, 3)),
    "presidio": ((128, 8), (16, 6)),
    "mts": ((128, 8), (16, 6)),
}
PART = 32  # records at a time: fastest here
# Defences that are free and promise nothing; each stops where ε = 8 did, and so looks every other step.
OFTEN = ("--train.validate_every", "2")
FREE: Mapping[str, tuple[str, ...]] = {
    "early": OFTEN,
    "dropout": (*OFTEN, "--train.dropout", "0.2"),
    "goldfish": (*OFTEN, "--train.goldfish", "4"),
}
GUARDS = {
    "eps1": "ε = 1", "eps8": "ε = 8", "inf": "ε = ∞",
    "early": "early stopping", "dropout": "dropout 0.2, early stopping", "goldfish": "goldfish k = 4, early stopping",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    data: str
    method: str
    guard: str
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine and the loss at which to stop."""
        private = self.guard.startswith("eps")
        rate, (batch, epochs) = (pair[not private] for pair in (RATES[self.method], SIZES[self.data]))
        how = (
            "--train.learning_rate", rate, "--train.batch_size", str(batch), "--train.epochs", str(epochs),
            *FREE.get(self.guard, ()),
        )  # fmt: skip
        if private:
            target, parts = self.guard.removeprefix("eps"), str(batch // PART)
            how += ("--train.accumulation", parts, "--dp.unit", "cluster", "--dp.epsilon", target)
        return (*SETS[self.data][1], *COMMON, *METHOD[self.method], *how, "--seed", str(self.seed))

    @property
    def name(self) -> str:
        """A name that changes with the settings, so that no result of others is taken for its own."""
        matched = [self.model_of_use.name] if self.model_of_use else []
        digest = hashlib.blake2b(json.dumps([*self.keys, *matched]).encode(), digest_size=3).hexdigest()
        return f"{self.data}-{self.method}-{self.guard}-{self.seed}-{digest}"

    @property
    def model_of_use(self) -> "Cell | None":
        """The run whose validation loss a free defence has to reach."""
        return Cell(data=self.data, method=self.method, guard="eps8", seed=self.seed) if self.guard in FREE else None


def columns(data: str) -> list[tuple[str, str]]:
    """Methods and guards of a data set, in the order of its tables."""
    methods = list(METHOD) if data == "tofu" else ["lora"]
    found = [(m, g) for m in methods for g in ("eps1", "eps8", "inf")]
    return found + [(m, g) for m in ("full", "lora") for g in FREE if data == "tofu"]


def grid(seeds: Sequence[int], only: str) -> list[list[Cell]]:
    """The cells to run, seed by seed; in each, free defences after what they have to match."""
    phases = []
    for seed in seeds:
        cells = [Cell(data=d, method=m, guard=g, seed=seed) for d in SETS for m, g in columns(d)]
        chosen = [cell for cell in cells if only in cell.name]
        phases += [[c for c in chosen if c.guard not in FREE], [c for c in chosen if c.guard in FREE]]
    return phases


class Clock:
    """CPU seconds and tokens between the first step and the last, so that imports and set-up do not count."""

    def __init__(self) -> None:
        self.first: tuple[float, int] | None = None
        self.last = (0.0, 0)

    def __call__(self, progress: Any, steps: int) -> None:
        """Note a step; validation in between counts."""
        self.last = (time.process_time(), progress.tokens)
        self.first = self.first or self.last

    @property
    def per_token(self) -> float | None:
        """CPU seconds a target token."""
        if self.first is None or self.last[1] == self.first[1]:
            return None
        return (self.last[0] - self.first[0]) / (self.last[1] - self.first[1])


def settings(cell: Cell, out: Path) -> Any:
    """The configuration of `cell`; None where the run that it has to match is not there."""
    from sordino.config import load

    keys: tuple[str, ...] = cell.keys
    if cell.model_of_use is not None:
        path = out / f"{cell.model_of_use.name}.json"
        if not path.exists():
            return None
        loss = json.loads(path.read_text())["training"]["validation"]
        keys = (*keys, "--train.stop_loss", repr(loss))
    values = {
        "data": {"path": str(DATA / SETS[cell.data][0])}, "out": str(out / "runs" / cell.name),
        "model": {"path": str(DATA / MODEL), "device": "cpu"},
    }  # fmt: skip
    return load(values=values, environment={}, flags=list(keys))


def run(cell: Cell, out: Path) -> None:
    """Train and audit one cell and keep its figures."""
    import torch

    from sordino.audit.flow import audit
    from sordino.run import Run
    from sordino.train.flow import create, prepare, train_run

    torch.set_num_threads(1)
    path = out / f"{cell.name}.json"
    if path.exists():
        return
    config = settings(cell, out)
    if config is None:
        print(f"waits for {cell.model_of_use.name}: {cell.name}", file=sys.stderr)  # type: ignore[union-attr]
        return
    begun = sorted((out / "runs" / cell.name).glob("*/run.json"))
    # `prepare` is the same for all guards, so only what differs between them is timed.
    opened = Run.open(begun[0].parent) if begun else create(config, prepare(config))
    clock, start = Clock(), time.process_time()
    if opened.card.status != "trained":
        train_run(opened, monitor=clock)
    trained = time.process_time()
    _share_signals(opened, out, cell)
    report = audit(opened, attacks=ATTACKS)
    cpu = {
        # Of a resumed training only the end was timed.
        "training": None if begun else trained - start,
        "token": None if begun else clock.per_token,
        "audit": time.process_time() - trained,
    }
    card = opened.card
    result = {
        "cell": asdict(cell), "keys": cell.keys, "cpu_seconds": cpu, "training": dict(card.training),
        "privacy": dict(card.privacy), "verdict": report.verdict.state, "strongest": report.strongest,
        "metrics": {k: asdict(v) for k, v in report.metrics.items()}, "counts": dict(report.counts),
        "canaries": [asdict(c) for c in report.canaries], "gates": [asdict(g) for g in report.gates],
        "provenance": dict(report.provenance), "trainable": card.model["trainable"],
    }  # fmt: skip
    keep(path, result)
    print(f"done: {cell.name}", file=sys.stderr, flush=True)


def _share_signals(opened: Any, out: Path, cell: Cell) -> None:
    # Signals are kept under digests of weights and records: runs of a seed share those of the untuned model.
    shared, link = out.resolve() / "signals" / f"{cell.data}-{cell.seed}", opened.private / "signals"
    shared.mkdir(parents=True, exist_ok=True)
    if not link.exists():
        link.symlink_to(shared, target_is_directory=True)


def slower(found: Mapping[Cell, Result], cell: Cell) -> str:
    """CPU time a target token as a multiple of that without privacy or defence."""
    plain = Cell(data=cell.data, method=cell.method, guard="inf", seed=cell.seed)
    if cell not in found or plain not in found:
        return NOT_RUN
    if cell.guard in FREE:
        return "few steps"  # whose time is that of validation
    own, other = (found[c]["cpu_seconds"]["token"] for c in (cell, plain))
    return "resumed" if own is None or other is None else f"{own / other:.2f}"


def found_in(out: Path, seeds: Sequence[int]) -> dict[Cell, Result]:
    """All results that are there."""
    cells = [Cell(data=d, method=m, guard=g, seed=s) for d in SETS for m, g in columns(d) for s in seeds]
    paths = {cell: out / f"{cell.name}.json" for cell in cells}
    return {cell: json.loads(path.read_text()) for cell, path in paths.items() if path.exists()}


def table(data: str, method: str, seeds: Sequence[int], found: Mapping[Cell, Result]) -> list[str]:
    """One table: a column for each guard, a line of a field for each seed."""
    guards = [g for m, g in columns(data) if m == method]
    cells = {g: [Cell(data=data, method=method, guard=g, seed=s) for s in seeds] for g in guards}
    lines = [f"| {method} | {' | '.join(GUARDS[g] for g in guards)} |", "|---" * (len(guards) + 1) + "|"]
    for label, show in ROWS:
        fields = ["<br>".join(show(found[c]) if c in found else NOT_RUN for c in cells[g]) for g in guards]
        lines.append(f"| {label} | {' | '.join(fields)} |")
    ratios = ["<br>".join(slower(found, c) for c in cells[g]) for g in guards]
    return [*lines, f"| … as a multiple of ε = ∞ | {' | '.join(ratios)} |", ""]


def tables(out: Path, seeds: Sequence[int]) -> str:
    """The figures of all data sets as Markdown."""
    found, lines = found_in(out, seeds), []
    for data, title in TITLES.items():
        lines += [f"### {title}", ""]
        there = [r for c, r in found.items() if c.data == data]
        if not there:
            lines += [f"{NOT_RUN.capitalize()}.", ""]
            continue
        counts = there[0]["counts"]
        lines += [f"Seed {there[0]['cell']['seed']}: {counts['members']:,} members, {counts['non-members']:,} not.", ""]
        for method in dict.fromkeys(m for m, _ in columns(data)):
            lines += table(data, method, seeds, found)
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "privacy")
    parser.add_argument("--seeds", type=lambda text: [int(s) for s in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--only", default="", help="a part of the name of the cells to run")
    parser.add_argument("--workers", type=int, default=2, help="runs at a time, each on one core")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the tables, and the picture beside it")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.print:
        if not (DATA / MODEL).is_dir():
            raise SystemExit(f"{DATA / MODEL} is not there: set SORDINO_DATA to the folder that holds it")
        # Read by the libraries when a worker loads them.
        failed: list[str] = []
        os.environ.update(OMP_NUM_THREADS="1", OMP_WAIT_POLICY="PASSIVE", HF_HUB_OFFLINE="1")
        for cells in grid(options.seeds, options.only):
            with ProcessPoolExecutor(options.workers, multiprocessing.get_context("spawn")) as pool:
                jobs = {pool.submit(run, cell, options.out): cell.name for cell in cells}
                # One that fails is told, and keeps the others from nothing.
                failed += [f"{name}: {job.exception()!r}" for job, name in jobs.items() if job.exception()]
        print(*failed, sep="\n", file=sys.stderr)
    text = tables(options.out, options.seeds)
    print(text)
    if options.write:
        drawn = tradeoff([r for c, r in found_in(options.out, options.seeds).items() if c.data == "tofu"], GUARDS)
        if drawn:
            (options.write.parent / PICTURE).write_text(drawn)
            text = f"![TOFU: perplexity against the AUC of the strongest attack, a mark a run]({PICTURE})\n\n{text}"
        write(options.write, text, MARKS)


if __name__ == "__main__":
    main()
