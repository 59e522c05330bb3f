"""What each command does: it calls the library, shows progress on stderr and data on stdout."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sordino.console import display, say, show_notices
from sordino.errors import ConfigError, RunError
from sordino.results import AuditPlan, AuditReport
from sordino.run import Run

if TYPE_CHECKING:
    from sordino.attacks.base import Attack

__all__ = [
    "exit_code",
    "newest",
    "run_audit",
    "run_audit_elsewhere",
    "run_demo",
    "run_export",
    "run_in_context",
    "run_init",
    "run_list",
    "run_plan",
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


def run_list(as_json: bool) -> int:
    """List every attack with what it needs."""
    from sordino.attacks.base import discover
    from sordino.results import encode

    attacks = [a for family in ("membership", "extraction", "in-context") for a in discover(family).values()]
    if as_json:
        rows = [
            {"name": a.name, "family": a.family, "suite": _suite(a), "summary": a.summary, "access": a.access,
             "cost": a.cost, "paper": a.paper, "base": a.base, "views": sorted(a.views), "inputs": sorted(a.inputs),
             "tasks": list(a.tasks), "level": a.level} for a in attacks
        ]  # fmt: skip
        sys.stdout.write(encode(rows).decode())
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("attack", "suite", "what it does", "sees", "needs", "costs", "paper")
    for a in attacks:
        table.add_row(a.name, _suite(a), a.summary, a.access, _needs(a), a.cost, a.paper)
    Console().print(table)
    return 0


def _suite(attack: "Attack") -> str:
    """The suite an attack is part of, in words."""
    return {"membership": attack.suite, "in-context": "on its own"}.get(attack.family, "–")


def _needs(attack: "Attack") -> str:
    """What an attack needs besides the model, in words."""
    words = {
        "known": "records known to be non-members", "shadows": "shadow models", "units": "units of several records",
        "scores": "other attacks", "samples": "generated text", "gradients": "the weights",
        "tuned_gradients": "the weights", "one_step": "the weights", "similarity": "embeddings",
        "rejected": "rejected answers", "prompt": "its prompt",
    }  # fmt: skip
    needs = [
        *(["the untuned base"] if attack.base else []),
        *(f"{v} view" for v in sorted(attack.views)),
        *(words.get(name, name.replace("_", " ")) for name in sorted(attack.inputs)),
        *(["generated text"] if "samples" in attack.needs else []),
    ]
    return ", ".join(needs) or "–"


def run_plan(given: Mapping[str, float], as_json: bool) -> int:
    """Say how many records and coins the wanted figures of an audit take."""
    from sordino.audit.planning import Wanted, needs
    from sordino.results import encode

    wanted = Wanted(**given)
    found = needs(wanted)
    if as_json:
        sys.stdout.write(encode({"wanted": wanted, "needs": found}).decode())
        return 0
    from rich.console import Console
    from rich.table import Table

    table = Table("to say", "members", "non-members", "coins", "how", caption=_PLAN_CAPTION, caption_justify="left")
    for one in found:
        counts = ("–" if n is None else f"{n:,}" for n in (one.members, one.nonmembers, one.coins))
        table.add_row(one.wanted, *counts, one.how)
    Console().print(table)
    return 0


_PLAN_CAPTION = (
    "Coins decide who is trained on and are drawn for split.candidates (40 %) of the units. audit.bound and "
    "audit.guess_share are fixed by training."
)


def run_audit(
    words: Sequence[str], require: Sequence[str], attacks: Sequence[str], suite: str | None, as_json: bool
) -> int:
    """Audit a run, print its table and write its report."""
    from sordino.audit.settings import anew

    folders, flags = _apart(words)
    anew(AuditPlan(), flags)  # what is wrong with a word is known before a folder is looked for
    run = Run.open(folders[0] if folders else newest())
    return _audit(run, require, attacks, anew(run.card.plan, flags, suite), as_json)


def _apart(words: Sequence[str]) -> tuple[Sequence[str], Sequence[str]]:
    """The run folder, or none, and the flags after it."""
    at = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    if at > 1:
        raise ConfigError(f"{at} run folders were given: {', '.join(words[:at])}.", "Audit one at a time.")
    return words[:at], words[at:]


def run_audit_elsewhere(
    words: Sequence[str], given: Mapping[str, str], require: Sequence[str], attacks: Sequence[str], as_json: bool
) -> int:
    """Audit a model that was trained elsewhere, in a run folder of its own."""
    run = _elsewhere(words, given)
    if "requests" in run.card.model:
        say(f"asking {run.card.model['endpoint']}: {run.card.model['requests']}, less what was answered before")
    return _audit(run, require, attacks, run.card.plan, as_json)


def run_in_context(words: Sequence[str], given: Mapping[str, str], prompts: Mapping[str, int], as_json: bool) -> int:
    """Put records into prompts of a run, or of a model from elsewhere, and say whether that can be told."""
    from sordino.audit.in_context import audit_prompt
    from sordino.report import render_prompts
    from sordino.results import encode

    if given.get("endpoint"):
        message = f"--in-context makes prompts for models whose weights are here; {given['endpoint']} is a server."
        raise ConfigError(message, "Leave out --endpoint, and give --model a folder or a hub id.")
    if given:
        run = _elsewhere(words, given)
    else:
        folders, flags = _apart(words)
        if flags:
            raise ConfigError(f"{flags[0]} cannot be given with --in-context.", "Give --shots and --trials.")
        run = Run.open(folders[0] if folders else newest())
    with display() as shown:
        report = audit_prompt(run, **prompts, ticker=shown.task)
    show_notices(report.notices)
    if as_json:
        sys.stdout.write(encode(report).decode())
    else:
        from rich.console import Console

        Console().print(render_prompts(report))
    say(f"result: {run.path / 'in-context.json'}")
    return 4 if report.verdict.state in ("inconclusive", "invalid split") else 0


def _elsewhere(words: Sequence[str], given: Mapping[str, str]) -> Run:
    """The new folder of an audit of a model that was trained elsewhere."""
    from sordino.audit.external import create_external
    from sordino.audit.settings import load_external

    if words and not words[0].startswith("-"):
        message = (
            f"{words[0]} is a run folder, and --{next(iter(given)).replace('_', '-')} is for a model from elsewhere."
        )
        raise ConfigError(message, "Give one or the other.")
    values: dict[str, Any] = {k: v for k, v in given.items() if k not in ("model", "members")}
    values |= {"model": {"path": given["model"]}} if "model" in given else {}
    values |= {"data": {"path": given["members"]}} if "members" in given else {}
    run = create_external(load_external(values, words))
    show_notices(run.card.notices)
    say(f"writing to {run.path}")
    return run


def _audit(run: Run, require: Sequence[str], attacks: Sequence[str], plan: AuditPlan, as_json: bool) -> int:
    from sordino.audit.flow import audit
    from sordino.report import render_table, write_report
    from sordino.results import encode

    with display() as shown:
        report = audit(run, require=require, attacks=attacks, suite=plan.suite, inputs=plan.inputs, ticker=shown.task)
    if as_json:
        sys.stdout.write(encode(report).decode())
    else:
        from rich.console import Console

        Console().print(render_table(report))
    say(f"report: {write_report(run)}")
    return exit_code(report)


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
