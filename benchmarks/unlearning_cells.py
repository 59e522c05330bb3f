"""One cell of benchmarks/unlearning.py: a method on a run, and everything that is measured of what it leaves behind."""

import dataclasses
import json
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from page import keep
from unlearning import DATA, FIRST, PREFIX, QUESTIONS, RECORDS, ROBUSTNESS, TOFU, Cell, started


def deletion_of(cell: Cell, base: Any) -> Any:
    """The authors of the set who were trained on, as a request; its id is of the cell's settings alone."""
    from sordino.evidence import digest
    from sordino.records.store import load as load_split
    from sordino.unlearn.requests import new_request, resolve

    examples = load_split(base.records).examples
    units = dict.fromkeys(e.record.unit for e in examples[FIRST[cell.forget] :] if e.included)
    request = new_request(base, "subject", list(units), True)
    return resolve(base, dataclasses.replace(request, id=digest(cell.forget, cell.base)))


def begun(cell: Cell, out: Path, deletion: Any) -> Any:
    """The child of the cell: the one that an interrupted run of it began, or a new one."""
    from sordino.run import Run
    from sordino.unlearn.base import create_child

    noted = out / "runs" / f"{cell.name}.child"
    if noted.exists():
        return Run.open(deletion.run.path.parent / noted.read_text())
    made = create_child(deletion, cell.method)
    noted.with_suffix(".part").write_text(made.path.name)
    noted.with_suffix(".part").replace(noted)
    return made


def ended(cell: Cell, out: Path, child: Any) -> None:
    """Remove what the cell began."""
    shutil.rmtree(child.path, ignore_errors=True)
    (out / "runs" / f"{cell.name}.child").unlink(missing_ok=True)


def forgotten(deletion: Any, cell: Cell, child: Any, given: Mapping[str, Any]) -> tuple[Any, Any, dict[str, Any]]:
    """The run that the method makes, what it cost, and the settings that were used."""
    from sordino.unlearn.base import Child, finish_child
    from sordino.unlearn.methods import discover

    method = discover()[cell.method]
    settings = {**method.defaults, **{k: v for k, v in given.items() if k in method.defaults}}
    asked = Child(run=child, seed=cell.seed, settings=settings)
    cost = method.run(deletion, asked)
    return finish_child(deletion, asked, method, cost), cost, settings


def run(cell: Cell, out: Path) -> None:
    """Carry out one cell and keep its figures; forgetting goes on after an interruption, measuring begins anew."""
    import torch

    torch.set_num_threads(1)
    path = out / f"{cell.name}.json"
    if path.exists():
        return
    base = started(out / "runs" / cell.base)
    deletion = deletion_of(cell, base)
    child = begun(cell, out, deletion)
    noted = child.private / "spent.json"
    if child.card.status == "trained" and not noted.exists():  # interrupted between the two
        ended(cell, out, child)
        child = begun(cell, out, deletion)
        noted = child.private / "spent.json"
    if child.card.status != "trained":
        start = time.process_time()
        done, cost, settings = forgotten(deletion, cell, child, cell.settings)
        spent = {"forgetting": time.process_time() - start}
        keep(noted, {"cpu_seconds": spent, "cost": asdict(cost), "settings": settings})
        child = done
    kept = json.loads(noted.read_text())
    result = {
        "cell": asdict(cell), "keys": cell.keys, "settings": kept["settings"], "cost": kept["cost"],
        "training": dict(base.card.training),
        "counts": {name: len(getattr(deletion, name)) for name in ("forget", "never", "retain", "validation")},
        **measured(cell, deletion, child, out), "cpu_seconds": kept["cpu_seconds"],
    }  # fmt: skip
    result["cpu_seconds"] |= result.pop("seconds")
    keep(path, shortened(result))
    ended(cell, out, child)
    print(f"done: {cell.name} ({sum(result['cpu_seconds'].values()):.0f} s)", file=sys.stderr, flush=True)


def measured(cell: Cell, deletion: Any, child: Any, out: Path) -> dict[str, Any]:
    """TOFU's figures, the scores of records, MUSE's metrics and robustness, and the CPU seconds of each."""
    from sordino.unlearn.measuring.muse import knowledge_memorisation, verbatim_memorisation
    from sordino.unlearn.measuring.scoring import sampled, score
    from sordino.unlearn.measuring.tofu import questions
    from sordino.unlearn.measuring.tofu_asking import evaluate, trained_on

    marks = [time.process_time()]

    def lap() -> float:
        marks.append(time.process_time())
        return marks[-1] - marks[-2]

    seconds: dict[str, float] = {}
    asked = questions(
        DATA / TOFU, cell.forget, limit=QUESTIONS, seed=cell.seed, trained=trained_on(deletion.run)
    )  # fmt: skip
    tofu = asdict(evaluate(child, asked))
    seconds["tofu"] = lap()
    # One folder for each cell: two workers would write the same figures of the untuned model.
    folder = child.private / "scores"
    scores = asdict(score(child, deletion, generate=False, limit=RECORDS, folder=folder))
    seconds["scores"] = lap()
    records = sampled(deletion, QUESTIONS)
    muse = {}
    for name in ("forget", "retain"):
        some = [e.record for e in records[name]][:QUESTIONS]
        muse[f"verbatim_{name}"] = asdict(verbatim_memorisation(child, some, prefix_tokens=PREFIX))
        muse[f"knowledge_{name}"] = asdict(knowledge_memorisation(child, asked[name]))
    seconds["muse"] = lap()
    robustness = attacked(cell, deletion, child)
    seconds["robustness"] = lap()
    return {"tofu": tofu, "scores": scores, "muse": muse, "robustness": robustness, "seconds": seconds}


def attacked(cell: Cell, deletion: Any, child: Any) -> dict[str, Any]:
    """What each way to bring back what was forgotten finds; why one was not tried, in its place."""
    from sordino.errors import SordinoError
    from sordino.unlearn import robustness as ways

    child.private.joinpath("robustness").mkdir(mode=0o700, exist_ok=True)
    one = ways.Attacked(
        child=child, deletion=deletion, folder=child.private / "robustness", seed=cell.seed, most=RECORDS
    )
    calls = {
        "relearning": lambda: ways.relearning(one),
        "quantised": lambda: ways.quantised(one, 8),
        "two_checkpoints": lambda: ways.two_checkpoints(one),
    }
    found: dict[str, Any] = {}
    for name in ROBUSTNESS:
        try:
            found[name] = asdict(calls[name]())
        except SordinoError as error:
            found[name] = {"missing": str(error)}
    return found


def tried(cell: Cell, out: Path, rates: Sequence[float]) -> float | None:
    """The learning rate under which forgotten records come closest to never-trained ones, by their mean loss.

    The utility stop keeps the validation loss within its tolerance under each of them; None where all of them fail.
    """
    import torch

    from sordino.unlearn.measuring.measures import mean_of
    from sordino.unlearn.measuring.scoring import score

    torch.set_num_threads(1)
    base = started(out / "runs" / cell.base)
    deletion, found = deletion_of(cell, base), {}
    for rate in rates:
        path = out / f"tuning-{cell.name}-{rate:g}.json"
        if not path.exists():
            # What an interrupted run left behind may be of another rate.
            (out / "runs" / f"{cell.name}.child").unlink(missing_ok=True)
            child = begun(cell, out, deletion)
            try:
                made, _, settings = forgotten(deletion, cell, child, {**cell.settings, "learning_rate": rate})
                scores = score(made, deletion, generate=False, limit=100, folder=made.private / "scores")
                figures = {s: mean_of(scores, s, "loss").value for s in ("forget", "never", "retain", "validation")}
            except Exception as error:  # a rate at which a method breaks is no rate
                figures, settings = {"failed": repr(error)}, {}
            keep(path, {"rate": rate, "settings": settings, **figures})
            ended(cell, out, child)
            print(f"tried: {path.name} {figures} {os.times().user:.0f} s", file=sys.stderr, flush=True)
        found[rate] = json.loads(path.read_text())
    good = {r: abs(f["forget"] - f["never"]) for r, f in found.items() if "failed" not in f}
    return min(good, key=lambda r: good[r]) if good else None


def shortened(value: Any) -> Any:
    """`value` with numbers of five digits: thousands of them are kept."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {name: shortened(one) for name, one in value.items()}
    return [shortened(one) for one in value] if isinstance(value, list | tuple) else value
