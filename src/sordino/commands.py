"""What each command does: it calls the library, shows progress on stderr and data on stdout."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from sordino.console import display, say, show_notices
from sordino.errors import ConfigError, RunError
from sordino.results import AuditPlan, AuditReport
from sordino.run import Run

if TYPE_CHECKING:
    pass

__all__ = [
    "exit_code",
    "newest",
    "run_demo",
    "run_export",
    "run_init",
    "run_report",
    "run_train",
]


def newest(root: Path = Path("runs")) -> Path:
    """The run folder in `root` that was written last; raises `RunError` where there is none."""
    runs = sorted(root.glob("*/run.json"), key=lambda p: p.stat().st_mtime)
    if not runs:
        raise RunError(f"There is no run in {root}.", "Name a run folder, or train one: `sordino train run.yaml`.")
    say(f"taking the newest run: {runs[-1].parent}")
    return runs[-1].parent


def exit_code(report: AuditReport) -> int:
    """0, 3 where a requirement failed, 4 where one or the audit itself is inconclusive."""
    statuses = {r.status for r in report.requirements}
    if "failed" in statuses:
        return 3
    undecided = "inconclusive" in statuses or report.verdict.state in ("inconclusive", "invalid split")
    return 4 if undecided else 0


def run_init(data: str | None, out: Path, force: bool, task: str = "causal-lm") -> int:
    """Write a commented configuration, with a seed that nobody can guess."""
    import secrets

    from sordino.records import suggest_columns
    from sordino.run import write_atomic
    from sordino.starter import starter

    if out.exists() and not force:
        raise ConfigError(f"{out} exists already.", "Choose another --out, or overwrite it with --force.")
    if data is None:
        columns, data = {}, "records.jsonl"
        say("no file was given: set data.path before you train")
    else:
        columns = suggest_columns(data, labelled=task == "classification")
        for key, column in columns.items():
            say(f"{key}: column {column!r}")
        if task == "classification" and "label" not in columns:
            say("label: no column is called label, category or intent; set data.label before you train")
    write_atomic(out, starter(data, columns, task, secrets.randbelow(2**40)).encode())
    print(out)
    say(f"next: look at {out}, then `sordino train {out}`")
    return 0


def run_train(config: Path | None, keys: Sequence[str], resume: Path | None, dry_run: bool, as_json: bool) -> int:
    """Fine-tune, or show what would be done."""
    from sordino.audit.secrets import check_secrets
    from sordino.config import load
    from sordino.train.flow import create, plan_of, prepare, train_run

    if resume is not None:
        if config is not None or keys or dry_run:
            raise ConfigError("--resume takes the configuration from the run.", "Give it alone: --resume RUN.")
        run = Run.open(resume)
    else:
        if config is None and not any(k.startswith("--data.path") for k in keys):
            raise ConfigError("No configuration was given.", "`sordino init FILE` writes one.")
        settings = load(config, flags=keys)
        _check_plan(settings.audit, settings.task)
        say(f"reading {settings.data.path}")
        prepared = prepare(settings)
        show_notices(prepared.notices)
        check_secrets(settings.audit, prepared.split.candidates)
        if dry_run:
            _show(plan_of(settings, prepared), as_json)
            return 0
        run = create(settings, prepared)
        say(f"writing to {run.path}")
    with display() as shown:
        train_run(run, say=say, monitor=shown.training())
    _print_run(run, as_json)
    say(f"next: `sordino audit {run.path}`")
    return 0


def _check_plan(plan: AuditPlan, task: str) -> None:
    # The plan is fixed by training, so what it names is looked up before, not after.
    from sordino.attacks.base import find
    from sordino.audit.require import parse

    if plan.headline != "canaries":  # whose own bound it is then
        find("membership", plan.headline, task)
    for text in plan.require:
        parse(text)


def _show(plan: dict[str, object], as_json: bool) -> None:
    if as_json:
        from sordino.results import encode

        sys.stdout.write(encode(plan).decode())
        return
    # A curve of a hundred points is for programs.
    plan = {key: value for key, value in plan.items() if key != "curve"}
    width = max(len(k) for k in plan)
    for key, value in plan.items():
        print(f"{key:<{width}}  {_readable(key, value)}")


def _readable(key: str, value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not isinstance(value, int):
        return str(value)
    return _size(value) if key.startswith("bytes ") else f"{value:,}"


def _size(count: int) -> str:
    """`count` bytes as people read them."""
    power = min(4, max(0, (count.bit_length() - 1) // 10))
    return f"{count:,} bytes" if power == 0 else f"{count / 1024**power:,.1f} {'KMGT'[power - 1]}iB"


def _print_run(run: Run, as_json: bool) -> None:
    from sordino.results import encode

    sys.stdout.write(encode(run.card).decode() if as_json else f"{run.path}\n")


def run_report(folder: Path | None, reveal: bool, out: Path | None) -> int:
    """Write the report of an audited run."""
    from sordino.report import write_report

    run = Run.open(folder or newest())
    if reveal:
        say("note: the report shows private text; keep it as safe as the records themselves")
    print(write_report(run, reveal=reveal, out=out))
    return 0


def run_export(
    folder: Path | None, out: Path, merge: bool, dtype: Literal["float32", "bfloat16", "float16"], force: bool
) -> int:
    """Write the tuned model for others to use."""
    from sordino.export import export

    run = Run.open(folder or newest())
    written = export(run, out, merge=merge, dtype=dtype, force=force)
    if not (run.path / "audit.json").exists():
        say(f"note: its card says that nothing is known about leaks; `sordino audit {run.path}`, then export again")
    print(written)
    return 0


def run_demo(out: Path, seed: int) -> int:
    """Make the corpus, fine-tune and audit without and with differential privacy, and set the two side by side."""
    from rich.console import Console

    from sordino.audit.flow import audit
    from sordino.demo import prepare_demo
    from sordino.report import beside_table, render_table, sides, write_beside, write_report
    from sordino.train.flow import train_run

    say("1/5  making a private corpus: support tickets of made-up customers")
    plain, private, prepared = prepare_demo(out, seed)
    show_notices(prepared.notices)
    counts = prepared.counts
    say(f"     {counts['records']:,} records of {counts['units']:,} customers; {counts['trained']:,} are trained on, "
        f"{counts['non-members']:,} held out by coin; {counts['canaries']} canaries")  # fmt: skip
    found = []
    for run, training, attacking in (
        (plain, "2/5  fine-tuning the built-in model on them, the usual way",
         "3/5  attacking the result, and the untuned model as the control"),
        (private, "4/5  the same under differential privacy: same records, same coins, same canaries",
         "5/5  attacking that as well"),
    ):  # fmt: skip
        say(training)
        with display() as shown:
            train_run(run, say=lambda text: say(f"     {text}"), monitor=shown.training())
            say(attacking)
            found.append((run.card, audit(run, ticker=shown.task)))
        say(f"     its report: {write_report(run)}")
    (_, leaking), _ = found
    console = Console()
    console.print(render_table(leaking))
    console.print(beside_table(sides(found)))
    say("What differential privacy bought, and what it cost, in a picture; open it in a browser:")
    print(write_beside([plain, private], out / "side-by-side.html"))
    return 0
