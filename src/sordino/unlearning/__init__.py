"""What `sordino unlearn` does: requests planned, carried out, verified and certified; certificates checked."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from sordino.commands import newest
from sordino.console import display, say
from sordino.errors import ConfigError
from sordino.results import Outcome, encode
from sordino.run import Run
from sordino.unlearning.asked import Asked, Kind, Wanted, parsed
from sordino.unlearning.shown import counted, say_after, show_options, show_verification

if TYPE_CHECKING:
    from sordino.unlearn.flow import Transaction
    from sordino.unlearn.planning import Policy

__all__ = [
    "Asked",
    "Wanted",
    "run_certify",
    "run_check",
    "run_execute",
    "run_ledger",
    "run_methods",
    "run_plan",
    "run_qualify",
    "run_verify",
]

EXIT: Mapping[Outcome, int] = {"pass": 0, "fail": 3, "inconclusive": 4}


def _print(value: object) -> None:
    sys.stdout.write(encode(value).decode())


def run_plan(run: Path | None, asked: Asked, wanted: Wanted, *, dry_run: bool, as_json: bool) -> int:
    """Receive a request and plan it, or with `dry_run` show what it would be."""
    from sordino.deletions import Deletions
    from sordino.unlearn.flow import begin, find
    from sordino.unlearn.methods import discover
    from sordino.unlearn.planning import decide, options
    from sordino.unlearn.requests import new_request, resolve

    policy = wanted.policy()
    if asked.request is not None:
        asked.check_alone(dry_run)
        return _planned(find(Run.open(run or newest()), asked.request, say=say), policy, as_json)
    kind, names = asked.names()
    chosen = Run.open(run or newest())
    if not dry_run:
        new = begin(chosen, kind, names, acknowledged=asked.acknowledged, policy=policy, say=say)
        return _planned(new, policy, as_json)
    deletion = resolve(chosen, new_request(chosen, kind, names, acknowledged=asked.acknowledged))
    spent = Deletions.open(chosen.path.parent).spent(chosen.card.name)
    made = decide(deletion, policy, discover(), spent)
    if as_json:
        _print(made)
    else:
        show_options(options(deletion, policy, discover(), spent), made.method)
    return 0


def _planned(transaction: "Transaction", policy: "Policy", as_json: bool) -> int:
    from sordino.unlearn.methods import discover
    from sordino.unlearn.planning import options

    made = transaction.plan(policy)
    if as_json:
        _print(made)
        return 0
    spent = transaction.deletions.spent(transaction.run.card.name)
    deletion = transaction.received or transaction.resolved()
    show_options(options(deletion, policy, discover(), spent), made.method)
    of = f"{counted(made.counts['forget'], 'record')} of {counted(made.counts['subjects'], 'subject')}"
    say(f"request {made.request}: {of} to be forgotten")
    print(made.request)
    say(f"next: `sordino unlearn run {transaction.run.path}`")
    return 0


def _asked_on(run: Path | None) -> Run:
    """The run that a request was made on: as given, or that of the only open request in ./runs."""
    from sordino.deletions import Deletions

    if run is not None:
        return Run.open(run)
    root = Path("runs")
    names = {one.run for one in Deletions.open(root).open_requests()} if (root / "deletions").is_dir() else set()
    if len(names) != 1:
        message = f"{len(names)} runs in {root} have open requests."
        raise ConfigError(message, "Name the run folder; `sordino unlearn plan` makes a request.")
    return Run.open(root / names.pop())


def run_execute(run: Path | None, request: str | None, as_json: bool) -> int:
    """Carry out the plan of a request."""
    from sordino.unlearn.flow import find

    with display() as shown:
        transaction = find(_asked_on(run), request, say=say, ticker=shown.task)
        made = transaction.execute()
    if as_json:
        _print(made.card)
        return 0
    cost = made.card.unlearning["cost"]
    share = "" if cost.get("share") is None else f", {cost['share']:.2%} of training anew"
    say(f"{made.card.unlearning['method']}: {cost['seconds']:.1f} s{share}; {made.card.unlearning['promise']}")
    print(made.path)
    say(f"next: `sordino unlearn verify {transaction.run.path}`")
    return 0


def run_verify(
    run: Path | None, request: str | None, qualification: str | None, *, robustness: bool, as_json: bool
) -> int:
    """Verify a request that was carried out."""
    from sordino.unlearn.flow import find

    with display() as shown:
        transaction = find(_asked_on(run), request, say=say, ticker=shown.task)
        found = transaction.verify(qualification, robustness=robustness)
    if as_json:
        _print(found)
    else:
        show_verification(found)
        say_after(found, transaction)
    return EXIT[found.outcome]


def run_qualify(run: Path | None, method: str, settings: Sequence[str], how: tuple[int, int], as_json: bool) -> int:
    """Hold a method against training anew on simulated requests."""
    from sordino.unlearn.methods import discover, named
    from sordino.unlearn.planning import check_suited, settled
    from sordino.unlearn.verifying.qualifying import qualify

    seeds, subjects = how
    chosen, given, on = named(method, discover()), parsed(settings), Run.open(run or newest())
    check_suited(on, chosen)
    with display() as shown:
        found = qualify(
            on, method, settled(chosen, given), seeds=seeds, subjects=subjects, say=say, ticker=shown.task
        )  # fmt: skip
    if as_json:
        _print(found)
    else:
        from rich.console import Console

        console = Console()
        for one in found.comparisons:
            words = one.metric.replace("_", " ")
            told = f"{one.outcome:<13} {words}: {one.difference}, allowed ± {one.margin:.3g}"
            console.print(told, highlight=False, markup=False, soft_wrap=True)
        console.print(f"[bold]{found.outcome}[/bold] ({found.id})", highlight=False)
    return EXIT[found.outcome]


def run_certify(  # noqa: PLR0913 - each is an option of its own
    run: Path | None,
    request: str | None,
    key: Path,
    *,
    issuer: str,
    purge: bool,
    dry_run: bool,
    as_json: bool,
) -> int:
    """Issue a certificate, and list or remove what still holds the deleted."""
    from sordino.evidence import load_key, public_hex
    from sordino.unlearn.flow import find
    from sordino.unlearn.requests.purge import holdings

    transaction = find(_asked_on(run), request, say=say)
    if dry_run:
        found = holdings(transaction.run, transaction.request)
        if as_json:
            # Where a place is on this machine is for nobody else to read.
            _print([{k: v for k, v in vars(one).items() if k != "place"} for one in found])
        else:
            for one in found:
                stays = "" if one.removable else " [stays]"
                print(f"{one.kind:<18} {one.path} ({one.bytes:,} bytes){stays}: {one.why}")
        goes = sum(one.removable for one in found)
        say(f"{counted(len(found), 'place')} with what was deleted, of which --purge removes {goes}")
        return 0
    path = transaction.certify(key, issuer=issuer, purge=purge)
    if as_json:
        sys.stdout.write(path.read_text())
    else:
        print(path)
        say(f"outcome: {transaction.verification.outcome}; public key: {public_hex(load_key(key))}")
        say(f"its page: {path.with_suffix('.html')}; anyone can `sordino unlearn check {path}`")
    return 0


def run_check(certificate: Path, key: str | None, as_json: bool) -> int:
    """Check a certificate, without torch."""
    from sordino.unlearn.certificates.checking import check

    found = check(certificate, key=key)
    if as_json:
        _print(found)
    else:
        for one in found.checks:
            print(f"{one.state:<12} {one.name}: {one.what}")
    return 0 if found.sound else 3


def run_ledger(runs: Path, reconsent: Sequence[str], kind: Kind | None, reason: str, as_json: bool) -> int:
    """List the requests of a folder of runs, or note a consent."""
    from sordino.deletions import Deletions

    if not runs.is_dir():
        raise ConfigError(f"There is no folder {runs}.", "Give the folder that holds the runs.")
    if reconsent:
        return _reconsented(runs, reconsent, kind or "subject", reason, as_json)
    for flag, given in (("--reason", reason), ("--kind", kind)):
        if given:
            raise ConfigError(f"{flag} was given without --reconsent.", "It belongs to somebody who may come back.")
    rows = Deletions.open(runs).requests() if (runs / "deletions").is_dir() else ()
    if as_json:
        _print(rows)
        return 0
    for row in rows:
        print(f"{row.id}  {row.state:<10} {row.changed}  {counted(row.count, row.kind)} of {row.run}")
    if not rows:
        say(f"no request was ever made in {runs}")
    return 0


def _reconsented(runs: Path, names: Sequence[str], kind: Kind, reason: str, as_json: bool) -> int:
    from sordino.deletions import Deletions

    if not reason.strip():
        raise ConfigError("--reconsent was given without --reason.", "Say who agreed, and when, without the name.")
    if not (runs / "deletions").is_dir():
        raise ConfigError(f"No request was ever made in {runs}.", "Give the folder of the runs that forgot.")
    back = Deletions.open(runs).reconsent(names, kind, reason)
    if as_json:
        _print({"reconsented": back, "kind": kind})
    say(f"{counted(back, kind)} may be trained on again")
    return 0


def run_methods(as_json: bool) -> int:
    """List the methods."""
    from sordino.unlearn.methods import discover

    found = discover()
    if as_json:
        _print([
            {"name": m.name, "tier": m.tier, "summary": m.summary, "needs": sorted(m.needs), "defaults": m.defaults,
             "paper": m.paper, "control": m.control} for m in found.values()
        ])  # fmt: skip
        return 0
    from rich.console import Console
    from rich.padding import Padding
    from rich.text import Text

    console = Console(highlight=False)
    for m in found.values():
        console.print(Text.assemble((m.name, "bold"), f" ({'control' if m.control else m.tier})"))
        console.print(Padding(Text(m.summary), (0, 0, 0, 4)))
        told = {
            "needs": ", ".join(sorted(m.needs)),
            "settings": ", ".join(f"{k}={v}" for k, v in m.defaults.items()),
            "paper": m.paper,
        }
        console.print(Padding(Text("; ".join(f"{k}: {v}" for k, v in told.items() if v), style="dim"), (0, 0, 1, 4)))
    return 0
