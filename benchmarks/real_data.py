"""Real text and a real pretrained model through init, train, audit and report: every figure of docs/real-data.md.

    python benchmarks/real_data.py                       run what has no result yet, then print the tables
    python benchmarks/real_data.py --only tofu --seeds 0 a part of the grid
    python benchmarks/real_data.py --print               only print: what was not run says so
    python benchmarks/real_data.py --write docs/real-data.md   and put the tables into the page

The data and the model are read from $SORDINO_DATA (default: ../shared). A cell is one run: data set, setting,
method and seed. It is done by the commands a user would type, and its result kept as JSON under --out; what is
there is not run again, and an interrupted training goes on.
"""

import argparse
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from page import NOT_RUN, figure, keep, write

from sordino import stats
from sordino.records.store import load
from sordino.run import Run

ROOT = Path(__file__).resolve().parent.parent
DATA = Path(os.environ.get("SORDINO_DATA", ROOT.parent / "shared"))
MODEL = "models/stories260k"
START, END = "<!-- figures: made by benchmarks/real_data.py -->", "<!-- end of figures -->"

# What every run of a data set is given beside the defaults of `sordino init`.
SETS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "tofu": (
        "data/tofu/full.json",
        # 200 authors: all of them are candidates or validation, or too few coins are left.
        ("--data.unit_rows", "20", "--split.candidates", "0.9", "--split.validation", "0.1",
         "--audit.fpr", "[0.3, 0.1]"),
    ),
    "presidio": (
        "data/pii/presidio_synth_v2.json",
        ("--data.text", "full_text", "--split.candidates", "0.9", "--split.validation", "0.1",
         "--audit.fpr", "[0.1, 0.01]"),
    ),
}  # fmt: skip

# (data set, setting, method): epochs and learning rate.
GRID: Mapping[tuple[str, str, str], tuple[int, str]] = {
    ("presidio", "separates", "full"): (3, "2e-3"),
    ("presidio", "separates", "lora"): (3, "5e-3"),
    ("presidio", "leaks", "full"): (8, "4e-3"),
    ("presidio", "leaks", "lora"): (12, "4e-3"),
    ("tofu", "separates", "full"): (1, "1e-3"),
    ("tofu", "separates", "lora"): (1, "5e-3"),
    ("tofu", "leaks", "full"): (3, "4e-3"),
    ("tofu", "leaks", "lora"): (4, "4e-3"),
}
TITLES = {"tofu": "TOFU: made-up authors", "presidio": "Presidio: sentences with made-up personal data"}


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of the grid."""

    data: str
    setting: str
    method: str
    seed: int

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys given to `sordino train`, without paths of this machine."""
        epochs, rate = GRID[self.data, self.setting, self.method]
        return (
            *SETS[self.data][1],
            "--method.kind", self.method, "--train.epochs", str(epochs), "--train.learning_rate", rate,
            "--seed", str(self.seed),
        )  # fmt: skip

    @property
    def name(self) -> str:
        """A name that changes with the settings, so that no result of others is taken for its own."""
        digest = hashlib.blake2b(json.dumps(self.keys).encode(), digest_size=3).hexdigest()
        return f"{self.data}-{self.setting}-{self.method}-{self.seed}-{digest}"


def grid(seeds: Sequence[int], only: str) -> list[Cell]:
    """The cells to run, all settings of the first seed before the next."""
    cells = [Cell(data=d, setting=s, method=m, seed=seed) for seed in seeds for d, s, m in GRID]
    return [cell for cell in cells if only in cell.name]


def sordino(words: Sequence[str], log: Path, codes: tuple[int, ...] = (0,)) -> tuple[str, float]:
    """What `sordino WORDS` prints on stdout, and the CPU seconds it took; its words go to `log`."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    printed = log.with_suffix(".stdout")
    with log.open("a") as err, printed.open("w") as out:
        err.write(f"$ sordino {' '.join(words)}\n")
        err.flush()
        child = subprocess.Popen([sys.executable, "-m", "sordino.cli", *words], stdout=out, stderr=err, env=env)
        _, status, usage = os.wait4(child.pid, 0)
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in codes:
        raise RuntimeError(f"sordino {words[0]} ended with {child.returncode}: see {log}")
    text = printed.read_text()
    printed.unlink()
    return text, usage.ru_utime + usage.ru_stime


def trained(cell: Cell, out: Path, log: Path) -> tuple[Path, float]:
    """The run folder of `cell`, trained now if it was not before, and the CPU seconds that took."""
    runs = out / "runs" / cell.name
    for card in sorted(runs.glob("*/run.json")):
        if json.loads(card.read_text())["status"] == "trained":
            return card.parent, 0.0
        return card.parent, sordino(["train", "--resume", str(card.parent)], log)[1]
    settings = out / f"{cell.name}.yaml"
    sordino(["init", str(DATA / SETS[cell.data][0]), "--out", str(settings), "--force"], log)
    where = ("--out", str(runs), "--model.path", str(DATA / MODEL))
    text, seconds = sordino(["train", str(settings), *where, *cell.keys], log)
    return Path(text.strip().splitlines()[-1]), seconds


def run(cell: Cell, out: Path) -> None:
    """Train, audit and report one cell and keep its figures."""
    path, log = out / f"{cell.name}.json", out / f"{cell.name}.log"
    if path.exists():
        return
    folder, training = trained(cell, out, log)
    # 4 is an audit that could not decide: a result like any other.
    text, auditing = sordino(["audit", str(folder), "--json"], log, codes=(0, 4))
    sordino(["report", str(folder)], log)
    report = json.loads(text)
    kept = {k: report[k] for k in ("verdict", "metrics", "canaries", "gates", "counts", "seconds", "provenance")}
    kept["by_unit"] = by_unit(folder)
    kept["control"] = {a["name"]: a["control"] for a in report["attempts"]}
    cpu = {"training": round(training, 1), "audit": round(auditing, 1)}
    result = {"cell": asdict(cell), "keys": cell.keys, "cpu_seconds": cpu, **kept}
    keep(path, result)
    print(f"done: {cell.name}", file=sys.stderr)


def by_unit(folder: Path) -> dict[str, Any]:
    """The AUC of every attack where a whole unit is judged, by the mean score of its records.

    `audit` judges one record at a time, also where a unit has many.
    """
    opened = Run.open(folder)
    kept = json.loads((opened.private / "scores.json").read_text())
    candidates = [e for e in load(opened.records).examples if e.role == "candidate"]
    member, names = np.array(kept["member"], dtype=bool), [e.group for e in candidates]
    if [e.included for e in candidates] != member.tolist():
        raise RuntimeError(f"the scores in {folder} are not those of all candidates")
    _, group, sizes = np.unique(names, return_inverse=True, return_counts=True)
    inside = np.bincount(group, member) > 0
    means = {name: np.bincount(group, row) / sizes for name, row in kept["scores"].items()}
    return {name: asdict(stats.delong(row, inside, scale="logit")) for name, row in means.items()}


def exposure(result: Mapping[str, Any], level: int) -> str:
    """The mean exposure of the canaries planted `level` times, and of how many."""
    found = next(c for c in result["canaries"] if c["repetitions"] == level)
    bits = found["exposures"]
    return f"{sum(bits) / len(bits):.1f} ({len(bits)})" if bits else "none planted"


def left_out(result: Mapping[str, Any]) -> str:
    """The mean exposure of all canaries whose coin kept them out."""
    bits = [b for c in result["canaries"] for b in c["left_out_exposures"]]
    return f"{sum(bits) / len(bits):.1f} ({len(bits)})"


def metric(name: str) -> Callable[[Mapping[str, Any]], str]:
    """The figure `name` of a result."""
    return lambda result: figure(result["metrics"].get(name))


def control(attack: str, name: str) -> Callable[[Mapping[str, Any]], str]:
    """The figure `name` of `attack` on the untuned model."""
    return lambda result: figure(result["control"][attack][name])


def whole(attack: str) -> Callable[[Mapping[str, Any]], str]:
    """The AUC of `attack` on whole units."""
    return lambda result: figure(result["by_unit"][attack])


Row = tuple[str, Callable[[Mapping[str, Any]], str]]


def sections(results: Sequence[Mapping[str, Any]]) -> dict[str, list[Row]]:
    """The rows of each table of one data set, as its results have them."""
    names = sorted({k.split(".")[1] for r in results for k in r["metrics"] if k.endswith(".auc") and k.count(".") == 2})
    rates = sorted({k.partition("@")[2] for r in results for k in r["metrics"] if ".tpr@" in k}, reverse=True)
    levels = sorted({c["repetitions"] for r in results for c in r["canaries"]})
    tables: dict[str, list[Row]] = {"AUC": [(f"`{n}`", metric(f"membership.{n}.auc")) for n in names]}
    tables["AUC"].append(("`loss` on the untuned model", control("loss", "auc")))
    if any(r["counts"]["units"] < r["counts"]["records"] for r in results):
        tables["AUC of whole units"] = [(f"`{n}`", whole(n)) for n in names]
    for rate in rates:
        if any(r["metrics"][f"membership.{names[0]}.tpr@{rate}"]["value"] is not None for r in results):
            tables[f"TPR at {float(rate.removesuffix('fpr')):.0%} FPR"] = [
                (f"`{n}`", metric(f"membership.{n}.tpr@{rate}")) for n in names
            ]
    return {**tables, "Extraction, canaries, utility, time": rest(levels)}


def rest(levels: Sequence[int]) -> list[Row]:
    """The rows that are not membership attacks."""
    return [
        ("verdict", lambda r: str(r["verdict"]["state"])),
        ("coins in / out", lambda r: f"{r['counts']['coins in']} / {r['counts']['coins out']}"),
        ("prefix extraction, members", metric("extraction.prefix.rate")),
        ("… non-members", metric("extraction.prefix.non-members")),
        *((f"canary exposure at {k}×, bits", lambda r, k=k: exposure(r, k)) for k in levels),
        ("… of those left out", left_out),
        ("ε̂ lower bound", lambda r: f"{r['metrics']['epsilon.lower']['value']:.2f}"),
        ("perplexity, validation", metric("utility.perplexity")),
        ("… before tuning", metric("utility.base_perplexity")),
        ("CPU seconds, training", lambda r: f"{r['cpu_seconds']['training']:.0f}"),
        ("CPU seconds, audit", lambda r: f"{r['cpu_seconds']['audit']:.0f}"),
    ]


def tables(out: Path, seeds: Sequence[int]) -> str:
    """The figures of all data sets as Markdown; a line of a field is a seed."""
    lines: list[str] = []
    for data, title in TITLES.items():
        columns = [key for key in GRID if key[0] == data]
        cells = {key: [Cell(data=key[0], setting=key[1], method=key[2], seed=s) for s in seeds] for key in columns}
        paths = {cell: out / f"{cell.name}.json" for row in cells.values() for cell in row}
        found = {cell: json.loads(path.read_text()) for cell, path in paths.items() if path.exists()}
        lines += [f"### {title}", ""]
        if not found:
            lines += [f"{NOT_RUN.capitalize()}.", ""]
            continue
        heads = [f"{s}: {m}, {GRID[d, s, m][0]} × {GRID[d, s, m][1]}" for d, s, m in columns]
        for name, rows in sections(list(found.values())).items():
            lines += [f"| {name} | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
            for label, show in rows:
                fields = ["<br>".join(show(found[c]) if c in found else NOT_RUN for c in cells[k]) for k in columns]
                lines.append(f"| {label} | {' | '.join(fields)} |")
            lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Run what is missing, print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "real")
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
        with ThreadPoolExecutor(options.workers) as pool:
            for job in [pool.submit(run, cell, options.out) for cell in grid(options.seeds, options.only)]:
                job.result()
    text = tables(options.out, options.seeds)
    print(text)
    if options.write:
        write(options.write, text, (START, END))


if __name__ == "__main__":
    main()
