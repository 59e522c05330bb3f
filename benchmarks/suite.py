"""The whole suite of membership attacks at once, against each attack with passes of its own; where the time goes.

    python benchmarks/suite.py              prints two tables; --quick for one round

stories260k is tuned by LoRA on answers of TOFU (both from $SORDINO_DATA, default: ../shared). A: an audit with every
attack of the suite "full", none of whose numbers is there before. B: the same attacks one by one, each computing
the numbers that it needs, of the tuned and the untuned model, from an empty store. Rounds are interleaved
(A B A B …); the ratio is the median of each round's B/A, in CPU time, of what A and B both do.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import torch

import sordino.audit.evaluate as judging
from sordino.attacks.base import Attack, discover
from sordino.audit.collecting import Collector
from sordino.audit.flow import _told, audit
from sordino.audit.inputs import Context, provide
from sordino.config import load
from sordino.model import Model
from sordino.records.store import load as load_split
from sordino.results import AuditReport
from sordino.run import Run
from sordino.signals import Store
from sordino.train.flow import create, prepare, train_run

DATA = Path(os.environ.get("SORDINO_DATA", Path(__file__).resolve().parents[2] / "shared"))
KNOWN = 60
# What a run keeps of an audit, so that the next need not compute it.
KEPT = ("signals", "exposures", "written", "references", "shadows")


def trained(folder: Path, records: int) -> Run:
    """A run on the first `records` answers of TOFU."""
    folder.mkdir()
    with (DATA / "data/tofu/full.json").open(encoding="utf-8") as file:
        (folder / "some.jsonl").write_text("".join(islice(file, records)), encoding="utf-8")
    values = {
        "data": {"path": str(folder / "some.jsonl"), "text": "answer"}, "out": str(folder),
        "model": {"path": str(DATA / "models/stories260k"), "device": "cpu"}, "method": {"kind": "lora", "rank": 8},
        "split": {"candidates": 0.6, "validation": 0.2}, "train": {"epochs": 3, "batch_size": 16, "max_length": 128},
        "audit": {"inputs": {"known": KNOWN}},
    }  # fmt: skip
    config = load(values=values, environment={})
    run = create(config, prepare(config))
    train_run(run)
    return run


class Clock:
    """Seconds of the processor by the name of what was done."""

    def __init__(self) -> None:
        self.spent: dict[str, float] = {}
        self._open: list[str] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Add what is done inside; what is inside itself already counts once."""
        outermost, started = name not in self._open, time.process_time()
        self._open.append(name)
        try:
            yield
        finally:
            self._open.pop()
            if outermost:
                self.spent[name] = self.spent.get(name, 0.0) + time.process_time() - started


def _within(clock: Clock, name: str, function: Callable[..., object]) -> Callable[..., object]:
    def counted(*args: object, **more: object) -> object:
        with clock(name):
            return function(*args, **more)

    return counted


@contextmanager
def watched(clock: Clock) -> Iterator[None]:
    """Count what happens while a model is in use, and in the attacks' own arithmetic."""
    active, score = Model.active, judging.score

    @contextmanager
    def counted(model: Model) -> Iterator[object]:
        with clock("models"), active(model) as module:
            yield module

    Model.active, judging.score = counted, _within(clock, "attacks", score)
    try:
        yield
    finally:
        Model.active, judging.score = active, score


def forget(run: Run) -> None:
    """Throw away what was computed or written for earlier attacks."""
    for kept in KEPT:
        shutil.rmtree(run.private / kept, ignore_errors=True)


def together(run: Run) -> tuple[AuditReport, Clock]:
    """A: one audit with all attacks, from an empty store."""
    forget(run)
    clock = Clock()
    with watched(clock), clock("audit"):
        report = audit(run, suite="full")
    return report, clock


def apart(run: Run, attacks: dict[str, Attack], folder: Path) -> float:
    """B: seconds of the processor for the same attacks, each with passes of its own."""
    collector, placed = Collector(run), load_split(run.records)
    plan, candidates = collector.card.plan, list(placed.candidates)
    known = _told(placed, plan, 0)
    started = time.process_time()
    for name, attack in attacks.items():
        forget(run)
        shutil.rmtree(folder / name, ignore_errors=True)
        collector.store = Store(folder / name)
        context = Context(collector=collector, examples=candidates, known=known, plan=plan, seed=0)
        for signals in provide(attack.inputs, context, collector.signals(candidates, attack.views)):
            judging.score(attack, signals)
    return time.process_time() - started


def one_pass(run: Run) -> float:
    """Seconds of the processor for one pass of the tuned model over the judged records."""
    collector = Collector(run)
    tokens = [collector.encode(e) for e in load_split(run.records).candidates]
    collector.reader.measure(tokens[:1], "tuned", lambda done: None)
    started = time.process_time()
    collector.reader.measure(tokens, "tuned", lambda done: None)
    return time.process_time() - started


def shares(report: AuditReport, clock: Clock) -> Iterator[str]:
    """Where the time of an audit went: its parts by the clock on the wall, models and attacks by the processor's."""
    whole = report.seconds["audit"]
    yield "| part of the audit | seconds | share |\n|---|---|---|"
    for name, seconds in sorted(report.seconds.items(), key=lambda item: -item[1]):
        if name not in ("training", "audit"):
            yield f"| {name} | {seconds:.2f} | {seconds / whole:.0%} |"
    rest = whole - sum(s for n, s in report.seconds.items() if n not in ("training", "audit"))
    yield f"| everything else | {rest:.2f} | {rest / whole:.0%} |"
    for name, words in (("models", "while a model runs"), ("attacks", "the attacks' arithmetic, both models")):
        spent = clock.spent.get(name, 0.0)
        yield f"| of CPU time: {words} | {spent:.2f} | {spent / clock.spent['audit']:.1%} |"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--records", type=int, default=200)
    parser.add_argument("--quick", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        run = trained(Path(folder) / "runs", arguments.records)
        report, clock = together(run)  # what is compiled or loaded once is not counted
        attacks = {n: a for n, a in discover("membership").items() if n in {t.name for t in report.attempts}}
        alone = {n: a for n, a in attacks.items() if a.level != "dataset"}
        both, ratios, passes = [], [], []
        for _ in range(1 if arguments.quick else arguments.rounds):
            report, clock = together(run)
            mine = clock.spent["audit"] * sum(_membership(report).values()) / report.seconds["audit"]
            both.append(mine)
            ratios.append(apart(run, alone, Path(folder) / "apart") / mine)
            passes.append(one_pass(run))
        told, counts = statistics.median(passes), report.counts
        print(f"{len(attacks)} attacks on {counts['members'] + counts['non-members']} records: {', '.join(attacks)}.\n")
        print("| passes and attacks together, CPU seconds | one pass of the tuned model | passes' worth | "
              "one by one / together |\n|---|---|---|---|")  # fmt: skip
        spent = statistics.median(both)
        print(f"| {spent:.2f} | {told:.2f} | {spent / told:.1f} | {statistics.median(ratios):.1f}× |\n")
        print("\n".join(shares(report, clock)))


def _membership(report: AuditReport) -> dict[str, float]:
    """The parts of an audit that make membership scores and judge them: A has the statistics in addition to B."""
    return {n: s for n, s in report.seconds.items() if n in ("passes", "statistics") or n.startswith("input ")}


if __name__ == "__main__":
    main()
