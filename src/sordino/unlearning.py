"""What `sordino unlearn` does: requests planned, carried out, verified and certified; certificates checked."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sordino.commands import newest
from sordino.console import display, say
from sordino.errors import ConfigError
from sordino.results import UNBOUNDED, Outcome, encode
from sordino.run import Run

if TYPE_CHECKING:
    from sordino.results import Estimate, Verification
    from sordino.unlearn.flow import Transaction
    from sordino.unlearn.planning import Option, Policy

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

Kind = Literal["subject", "record"]
EXIT: Mapping[Outcome, int] = {"pass": 0, "fail": 3, "inconclusive": 4}


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who or what is to go, as it was given: `request` names one that is there already."""

    subjects: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    file: Path | None = None
    kind: Kind | None = None
    acknowledged: bool = False
    request: str | None = None

    def check_alone(self, dry_run: bool) -> None:
        """Raise `ConfigError` where an earlier request is named together with what makes a new one."""
        given = {
            "--subject": self.subjects, "--record": self.records, "--names": self.file, "--kind": self.kind,
            "--acknowledge": self.acknowledged, "--dry-run": dry_run,
        }  # fmt: skip
        used = [flag for flag, value in given.items() if value]
        if used:
            raise ConfigError(
                f"--request and {used[0]} are given together.", "A request keeps its names: plan it alone."
            )

    def names(self) -> tuple[Kind, tuple[str, ...]]:
        """What kind of thing is named, and the names; raises `ConfigError` unless it is one kind, and not nothing."""
        from sordino.unlearn.requests import names_from

        given = {"--subject": self.subjects, "--record": self.records, "--names": self.file}
        used = [flag for flag, value in given.items() if value]
        if len(used) != 1:
            what = "nothing is named" if not used else f"{' and '.join(used)} are given together"
            raise ConfigError(f"For a request, {what}.", "Give --subject, --record, or a file with --names.")
        if self.file is not None:
            return self.kind or "subject", names_from(self.file)
        if self.kind is not None:
            raise ConfigError(f"--kind {self.kind} was given without --names.", "It says what is in that file.")
        return ("subject", self.subjects) if self.subjects else ("record", self.records)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a plan, as it was given."""

    least: Literal["exact", "dp", "approximate"] = "approximate"
    method: str | None = None
    settings: tuple[str, ...] = ()
    search: int = 0
    epsilon: float | None = None
    delta: float | None = None

    def policy(self) -> "Policy":
        """The same, checked: raises `ConfigError`."""
        from sordino.unlearn.planning import Policy

        if self.search < 0:
            raise ConfigError(f"--search is {self.search}.", "Give a number of trials, 0 for none.")
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise ConfigError(f"--epsilon is {self.epsilon}.", "Give a positive number.")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ConfigError(f"--delta is {self.delta}.", "Give a probability far below 1 / subjects.")
        if (self.epsilon is None) != (self.delta is None):
            raise ConfigError("--epsilon and --delta belong together.", "Give both, or neither.")
        if self.settings and self.method is None:
            raise ConfigError("--setting was given without --method.", "Name the method whose settings they are.")
        return Policy(
            least=self.least, method=self.method, settings=parsed(self.settings), search=self.search,
            epsilon=self.epsilon, delta=self.delta,
        )  # fmt: skip


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Settings from `name=value`, the values as YAML reads them; raises `ConfigError`."""
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--setting is {word!r}.", "Give name=value, such as learning_rate=1e-4.")
        if name in found:
            raise ConfigError(f"--setting {name} was given twice.", "Give it once.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--setting {word!r} cannot be read.", "Give name=value.") from error
        # YAML 1.1 takes 1e-4, without a point, for a text.
        found[name] = _number(value) if isinstance(value, str) else value
    return found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


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
        _show_options(options(deletion, policy, discover(), spent), made.method)
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
    _show_options(options(deletion, policy, discover(), spent), made.method)
    of = f"{_counted(made.counts['forget'], 'record')} of {_counted(made.counts['subjects'], 'subject')}"
    say(f"request {made.request}: {of} to be forgotten")
    print(made.request)
    say(f"next: `sordino unlearn run {transaction.run.path}`")
    return 0


def _counted(count: int, what: str) -> str:
    return f"{count:,} {what}{'' if count == 1 else 's'}"


def _show_options(found: Sequence["Option"], chosen: str) -> None:
    width = max(len(one.method) for one in found)
    for one in found:
        mark = "→" if one.method == chosen else " "
        share = "" if one.share is None else f"{one.share:.1%} of training anew"
        told = "; ".join(filter(None, (share, f"promises: {one.promise}")))
        told = f"not possible. {one.refused}" if one.refused else told
        say(f"{mark} {one.tier:<11}  {one.method:<{width}}  {told}")


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
        _show_verification(found)
        _say_after(found, transaction)
    return EXIT[found.outcome]


def _say_after(found: "Verification", transaction: "Transaction") -> None:
    """What can be done next."""
    run = transaction.run.path
    if found.outcome == "fail":
        say(f"what failed is not certified; with another method: a new request to {transaction.child.path}")
        return
    if found.qualification is None and found.tier == "approximate":
        method = transaction.planned.method
        say(f"no qualification was cited: `sordino unlearn qualify {run} --method {method}`, then verify again")
    say(f"next: `sordino unlearn certify {run} --key KEY`")


def _show_verification(found: "Verification") -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    table = Table("", *(row.name.replace("_", " ") for row in found.rows), box=None, pad_edge=False)
    for name, words in _SHOWN_METRICS.items():
        if any(name in row.metrics for row in found.rows):
            table.add_row(words, *(_figure(row.metrics.get(name)) for row in found.rows))
    console.print(table)
    console.print()
    for one in found.comparisons:
        words = one.metric.replace("_", " ")
        console.print(
            f"{one.outcome:<13} {words}: {_figure(one.difference)}, allowed ± {one.margin:.3g}", soft_wrap=True
        )
    for attack in found.robustness:
        name = attack.name.replace("_", " ")
        console.print(f"{'tried':<13} {name}: {_figure(attack.estimate)}", soft_wrap=True, markup=False)
    for name, why in found.untried.items():
        console.print(f"{'not tried':<13} {name}: {why}", soft_wrap=True, markup=False)
    console.print(f"\n[bold]{found.outcome}[/bold]")
    for reason in found.reasons:
        console.print(f"  {reason}", soft_wrap=True, markup=False)


# Of all metrics those that tell at a glance what was forgotten; the certificate has the others too.
_SHOWN_METRICS = {
    "loss": "loss, forgotten",
    "never_loss": "loss, never trained on",
    "retain_loss": "loss, staying",
    "validation_loss": "loss, validation",
    "auc_calibrated": "AUC, calibrated",
    "extraction_strength": "extraction strength",
    "exact_memorisation": "exact memorisation",
    "rouge_l": "ROUGE-L",
}


def _figure(estimate: "Estimate | None") -> str:
    """An estimate in little room: where no interval can be had, the figure alone."""
    if estimate is None:
        return ""
    if estimate.value is not None and abs(estimate.low) >= UNBOUNDED:
        return f"{estimate.value:.3g} (one subject)"
    return str(estimate)


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
        say(f"{_counted(len(found), 'place')} with what was deleted, of which --purge removes {goes}")
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
        print(f"{row.id}  {row.state:<10} {row.changed}  {_counted(row.count, row.kind)} of {row.run}")
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
    say(f"{_counted(back, kind)} may be trained on again")
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
