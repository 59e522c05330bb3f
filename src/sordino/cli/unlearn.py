"""`sordino unlearn`: argument parsing only."""

from pathlib import Path
from typing import Annotated, Literal

from cyclopts import App, Parameter

from sordino.cli.common import Json

__all__ = ["unlearn"]

unlearn = App(
    name="unlearn",
    help="Delete records or subjects from a trained model: plan, carry out, verify, certify.",
    help_epilogue="In order: `plan`, `run`, `verify`, `certify`; anyone can `check` a certificate.",
    result_action="return_value",
)

Many = Annotated[tuple[str, ...], Parameter(negative="")]
Flag = Annotated[bool, Parameter(negative="")]


@unlearn.command
def plan(  # noqa: PLR0913 - each is an option of its own
    run: Path | None = None,
    *,
    subject: Many = (),
    record: Many = (),
    names: Path | None = None,
    kind: Literal["subject", "record"] | None = None,
    acknowledge: Flag = False,
    at_least: Literal["exact", "dp", "approximate"] = "approximate",
    method: str | None = None,
    setting: Many = (),
    search: int = 0,
    epsilon: float | None = None,
    delta: float | None = None,
    request: str | None = None,
    dry_run: Flag = False,
    json: Json = False,
) -> int:
    """Receive a request and say what is the cheapest way that promises enough.

    Parameters
    ----------
    run
        The run folder; without one, the newest in ./runs.
    subject
        Whose records are to go, as data.unit names them. May be given several times.
    record
        A record that is to go, by its id. May be given several times.
    names
        A file of them: one a line, or a JSON list.
    kind
        What is in the file of --names; subjects, unless it is said.
    acknowledge
        Near-duplicates of what is to go stay with others, and that is known.
    at_least
        What has to be promised: weights trained without them, (ε, δ)-closeness to such weights, or what is measured.
    method
        This method, and no other; `sordino unlearn methods` lists them.
    setting
        One of the method's settings, such as learning_rate=1e-4. May be given several times.
    search
        Trials that may be spent on finding the method's other settings.
    epsilon
        The ε that a guarantee of differential privacy has to be worth for those who go.
    delta
        The δ of that.
    request
        Plan this request anew instead of receiving one.
    dry_run
        Show the ways and what each costs; write nothing.

    """
    from sordino.unlearning import Asked, Wanted, run_plan

    asked = Asked(subjects=subject, records=record, file=names, kind=kind, acknowledged=acknowledge, request=request)
    wanted = Wanted(least=at_least, method=method, settings=setting, search=search, epsilon=epsilon, delta=delta)
    return run_plan(run, asked, wanted, dry_run=dry_run, as_json=json)


@unlearn.command
def run(run: Path | None = None, *, request: str | None = None, json: Json = False) -> int:
    """Carry out the plan of a request, from where it was interrupted. Prints the run folder that has forgotten.

    Parameters
    ----------
    run
        The run folder; without one, the newest in ./runs that has an open request.
    request
        The request, where the run has several.

    """
    from sordino.unlearning import run_execute

    return run_execute(run, request, json)


@unlearn.command
def verify(
    run: Path | None = None,
    *,
    request: str | None = None,
    qualification: str | None = None,
    robustness: Annotated[bool, Parameter(negative="--no-robustness")] = True,
    json: Json = False,
) -> int:
    """Measure what is left, against the model as it was and records it never saw; exit code 3 fails, 4 is inconclusive.

    Parameters
    ----------
    run
        The run folder that the request was made on.
    request
        The request, where the run has several.
    qualification
        The qualification of the method to cite; without one, the newest that fits.
    robustness
        Also try to bring back what was forgotten; without it the outcome is inconclusive.

    """
    from sordino.unlearning import run_verify

    return run_verify(run, request, qualification, robustness=robustness, as_json=json)


@unlearn.command
def qualify(
    run: Path | None = None,
    *,
    method: str,
    setting: Many = (),
    seeds: int = 5,
    subjects: int = 1,
    json: Json = False,
) -> int:
    """Hold a method against training anew, on simulated requests from the same run: several seeds of both.

    Parameters
    ----------
    run
        The run folder; without one, the newest in ./runs.
    method
        The method to qualify.
    setting
        One of the method's settings. May be given several times.
    seeds
        Unlearned and retrained models, of each so many; fewer than 5 are inconclusive.
    subjects
        How many subjects each simulated request names.

    """
    from sordino.unlearning import run_qualify

    return run_qualify(run, method, setting, (seeds, subjects), json)


@unlearn.command
def certify(  # noqa: PLR0913 - each is an option of its own
    run: Path | None = None,
    *,
    key: Path,
    request: str | None = None,
    issuer: str = "",
    purge: Flag = False,
    dry_run: Flag = False,
    json: Json = False,
) -> int:
    """Issue the signed certificate of a verified request, and list (or remove) what still holds the deleted.

    Parameters
    ----------
    run
        The run folder that the request was made on.
    key
        Your private Ed25519 key (PEM); made where there is none. Its public key is told, for `check --key`.
    request
        The request, where the run has several.
    issuer
        Who issues it, in your words.
    purge
        Remove old checkpoints, weights, exports and stores that hold what was deleted.
    dry_run
        Only list what --purge would remove; issue nothing.

    """
    from sordino.unlearning import run_certify

    return run_certify(run, request, key, issuer=issuer, purge=purge, dry_run=dry_run, as_json=json)


@unlearn.command
def check(certificate: Path, *, key: str | None = None, json: Json = False) -> int:
    """Check a certificate without the model: signature, proofs, and every statistic computed again. Exit code 3 fails.

    Parameters
    ----------
    certificate
        certificate.json.
    key
        The public key that you trust: hexadecimal, or a file; without it, that of the certificate is taken.

    """
    from sordino.unlearning import run_check

    return run_check(certificate, key, json)


@unlearn.command
def ledger(
    runs: Path = Path("runs"),
    *,
    reconsent: Many = (),
    kind: Literal["subject", "record"] | None = None,
    reason: str = "",
    json: Json = False,
) -> int:
    """List the requests and where each stands; or note that somebody consents to being trained on again.

    Parameters
    ----------
    runs
        The folder of the runs.
    reconsent
        A subject or record that may come back. May be given several times.
    kind
        What --reconsent names; subjects, unless it is said.
    reason
        Why, for the ledger.

    """
    from sordino.unlearning import run_ledger

    return run_ledger(runs, reconsent, kind, reason, json)


@unlearn.command
def methods(*, json: Json = False) -> int:
    """List the methods with their tier, their settings and their source."""
    from sordino.unlearning import run_methods

    return run_methods(json)
