"""A method of unlearning held against training anew, five seeds of each: the table in docs/unlearning.md.

    python benchmarks/qualification.py                  go on with what has no result yet, then print the table
    python benchmarks/qualification.py --print          only print: what was not run says so
    python benchmarks/qualification.py --write docs/unlearning.md    and put the table into the page

It is `sordino unlearn qualify` on one setting of benchmarks/unlearning.py: LoRA on TOFU, simulated requests of two
authors each. Both methods and the retrained models are made from one run, whose training comes first. The data and the
model are read from $SORDINO_DATA (default: ../shared); what was interrupted goes on.
"""

import argparse
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from page import NOT_RUN, figure, keep, pack, unpack, write
from unlearning import DATA, MODEL, RATES, ROOT, STEPPING, Cell, started, train

MARKS = ("<!-- figures: made by benchmarks/qualification.py -->", "<!-- end of the qualification -->")
METHODS = ("npo", "grad_diff")
SEED, SEEDS, SUBJECTS = 1, 5, 2


def run(out: Path) -> None:
    """Train the run, and qualify each method on it."""
    import torch

    from sordino.unlearn.methods import discover
    from sordino.unlearn.verifying.qualifying import qualify

    torch.set_num_threads(1)
    cell = Cell(forget="forget01", kind="lora", method="npo", seed=SEED)
    train(cell, out)
    base = started(out / "runs" / cell.base)
    for name in METHODS:
        path = out / f"{name}.json"
        if path.exists():
            continue
        given = {**STEPPING["forget01"], "learning_rate": RATES["lora"][name]}
        settings = {k: v for k, v in given.items() if k in discover()[name].defaults}
        begun = time.process_time()
        found = qualify(base, name, settings, seeds=SEEDS, subjects=SUBJECTS)
        keep(path, {"cpu_seconds": time.process_time() - begun, **asdict(found)})
        print(f"done: {name}", file=sys.stderr, flush=True)


def table(out: Path) -> str:
    """A row a comparison of each method."""
    lines = [
        "| method | metric | unlearned less retrained | margin | p | smallest margin at 80 % power | outcome |",
        "|---|---|---|---|---|---|---|",
    ]
    for name in METHODS:
        path = out / f"{name}.json"
        if not path.exists():
            lines.append(f"| {name} | {NOT_RUN} | | | | | |")
            continue
        found: dict[str, Any] = json.loads(path.read_text())
        for one in found["comparisons"]:
            least = "" if one["detectable"] is None else f"{one['detectable']:.3g}"
            lines.append(
                f"| {name} | {one['metric'].replace('_', ' ')} | {figure(one['difference'])} | {one['margin']:.3g} | "
                f"{one['p_value']:.2g} | {least} | {one['outcome']} |"
            )
        lines.append(f"| {name} | **in all** | {len(found['seeds'])} seeds of each | | | | **{found['outcome']}** |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Run what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "out" / "qualification")
    parser.add_argument("--print", action="store_true", help="run nothing")
    parser.add_argument("--write", type=Path, help="the page that gets the table")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    unpack("qualification", options.out)
    if not options.print:
        if not (DATA / MODEL).is_dir():
            raise SystemExit(f"{DATA / MODEL} is not there: set SORDINO_DATA to the folder that holds it")
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        run(options.out)
    text = table(options.out)
    print(text)
    if options.write:
        write(options.write, text, MARKS)
        pack("qualification", options.out)


if __name__ == "__main__":
    main()
