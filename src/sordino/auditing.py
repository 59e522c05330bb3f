"""What `sordino audit` does: attacks listed, records planned, runs, models from elsewhere and prompts audited."""

import sys
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from sordino.commands import exit_code, newest
from sordino.console import display, say, show_notices
from sordino.errors import ConfigError
from sordino.results import AuditPlan
from sordino.run import Run

if TYPE_CHECKING:
    from sordino.attacks.base import Attack

__all__ = ["run_audit", "run_audit_elsewhere", "run_in_context", "run_list", "run_plan", "run_unit"]


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
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for family, members in groupby(attacks, key=lambda a: a.family):
        console.print(Text(f"{family.capitalize()} attacks", style="bold underline"))
        for a in members:
            console.print(Text.assemble((a.name, "bold"), f" (suite: {_suite(a)})"))
            console.print(Padding(Text(a.summary), (0, 0, 0, 4)))
            told = {"sees": a.access, "needs": _needs(a), "costs": a.cost, "paper": a.paper}
            console.print(
                Padding(Text("; ".join(f"{k}: {v}" for k, v in told.items() if v), style="dim"), (0, 0, 1, 4))
            )
    return 0


def _suite(attack: "Attack") -> str:
    """The smallest suite that an attack is part of, in words."""
    return "on its own" if attack.family == "in-context" else attack.suite


def _needs(attack: "Attack") -> str:
    """What an attack needs besides the model, in words."""
    words = {
        "known": "records of known membership", "shadows": "shadow models", "units": "units of several records",
        "scores": "other attacks", "samples": "generated text", "gradients": "the weights",
        "tuned_gradients": "the weights", "one_step": "the weights", "similarity": "embeddings",
        "rejected": "rejected answers", "prompt": "its prompt",
        "prefixes": "known non-members to put before", "member_prefixes": "known members to put before",
        "drawn": "", "compressed": "", "self_prompt": "a reference trained on its own text",
    }  # fmt: skip
    needs = [
        *(["the untuned base"] if attack.base else []),
        *(f"{v} view" for v in sorted(attack.views)),
        *(words.get(name, name.replace("_", " ")) for name in sorted(attack.inputs)),
    ]
    return ", ".join(n for n in dict.fromkeys(needs) if n and n != attack.access)


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


def run_unit(words: Sequence[str], given: Mapping[str, str], unit: str, reveal: bool, as_json: bool) -> int:
    """Say what the model gives away about one unit of a run, or of a model from elsewhere."""
    from sordino.audit.person import person
    from sordino.evidence import digest
    from sordino.report import render_person
    from sordino.results import encode

    if given:
        run = _elsewhere(words, given)
    else:
        folders, flags = _apart(words)
        if flags:
            raise ConfigError(
                f"{flags[0]} cannot be given with --unit.", "A unit is asked about as the audit was planned."
            )
        run = Run.open(folders[0] if folders else newest())
    with display() as shown:
        report, revealed = person(run, unit, ticker=shown.task)
    if as_json:
        sys.stdout.write(encode(report).decode())
    else:
        from rich.console import Console

        Console().print(render_person(report))
    if reveal:
        name = f"people/{digest(unit)}-revealed.json"
        run.write_private(name, encode(revealed))
        say(f"warning: {run.private / name} holds private text in full: keep it as safe as the records, then delete it")
    return 0


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
        report = audit(
            run, require=require, attacks=attacks, suite=plan.suite, inputs=plan.inputs, secrets=plan.secrets,
            ticker=shown.task,
        )  # fmt: skip
    if as_json:
        sys.stdout.write(encode(report).decode())
    else:
        from rich.console import Console

        Console().print(render_table(report))
    say(f"report: {write_report(run)}")
    return exit_code(report)
