"""From names to a deletion: what is to be forgotten and what stays, and everything that must be refused before.

Errors count names and records, and never tell one: places in the list are told, which only the caller has.
"""

import json
import secrets
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np

from sordino.config import RunConfig, recorded
from sordino.deletions import Deletions, asked_of
from sordino.errors import ConfigError, RunError, UnlearningError
from sordino.manifest import manifest_of
from sordino.records import Example
from sordino.records.columns import Rows
from sordino.records.placed import where
from sordino.records.store import load
from sordino.results import DeletionRequest, RunCard
from sordino.run import Run
from sordino.unlearn.base import Deletion
from sordino.unlearn.requests.copies import Copies

__all__ = ["LARGEST", "lineage", "names_from", "new_request", "resolve"]

LARGEST = 0.5
"""Share of the training records from which on training anew is the better way."""

Kind = Literal["subject", "record"]


def names_from(path: Path | str) -> tuple[str, ...]:
    """The names in a file: a JSON list of texts or whole numbers, or one a line, blank lines left out.

    Raises `ConfigError` where there are none, or the file holds something else.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {type(error).__name__}.", "Give a text file in UTF-8.") from error
    lines = tuple(line.strip() for line in text.splitlines() if line.strip())
    if text.lstrip().startswith("["):
        lines = _listed(text, path)
    if not lines:
        raise ConfigError(f"{path} holds no name.", "Write one a line, or a JSON list.")
    return lines


def _listed(text: str, path: Path | str) -> tuple[str, ...]:
    hint = "Write a JSON list of texts or whole numbers, or one name a line."
    try:
        found = json.loads(text)
    except ValueError as error:
        raise ConfigError(f"{path} begins like a JSON list, and is none.", hint) from error
    wrong = [place for place, one in enumerate(found, 1) if isinstance(one, bool) or not isinstance(one, str | int)]
    if wrong:
        raise ConfigError(f"{path} holds something else than a name in place {wrong[0]}.", hint)
    return tuple(map(str, found))


def new_request(run: Run, kind: Kind, names: Iterable[str], acknowledged: bool = False) -> DeletionRequest:
    """A request that subjects or records be forgotten by the model in `run`, with an id of its own.

    Raises `UnlearningError` where there are no names, or some come twice.
    """
    given = tuple(names)
    if not given or not all(given):
        raise UnlearningError(f"The request has {sum(map(bool, given))} names.", f"Name at least one {kind}.")
    if len(set(given)) < len(given):
        message = f"{len(given) - len(set(given))} of {len(given)} names come twice."
        raise UnlearningError(message, f"Name each {kind} once.")
    return DeletionRequest(
        id=f"{datetime.now(UTC):%Y-%m-%d}-{secrets.token_hex(6)}",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        run=run.path.name,
        kind=kind,
        names=given,
        acknowledged=acknowledged,
    )


def lineage(run: Run) -> tuple[Run, ...]:
    """`run` and the runs that it came of, the youngest first, as far as they are beside it.

    Raises `RunError` where a run is its own ancestor.
    """
    found = [run]
    while (parent := found[-1].card.parent) is not None:
        path = run.path.parent / parent
        # The name of a parent is that of a folder beside its child, and nothing else.
        if Path(parent).name != parent or not (path / "run.json").exists():
            break
        if any(path.name == known.path.name for known in found):
            raise RunError(f"{path} is its own ancestor.", "Restore run.json as it was written.")
        found.append(Run(path))
    return tuple(found)


def resolve(run: Run, request: DeletionRequest) -> Deletion:
    """What `request` comes to in `run`: the records that are to be forgotten, and those that stay.

    Of the parts, `forget`, `others`, `retain`, `never` and `validation` hold no canaries, which are nobody's records;
    `left` holds all of them. Raises `UnlearningError` (see the checks below) for what cannot be carried out, and
    `RunError` where the run is not one that Sordino trained to its end, or its records are not those of its manifest.
    """
    card = run.card
    config = _check_run(run, card, request)
    examples = load(run.records).examples
    _check_names(run, request, examples)
    manifest_of(run)
    asked = asked_of(request, examples)
    role = np.array(_column(examples, "role"), dtype=object)
    included = np.array(_column(examples, "included"), dtype=bool)
    own = role != "canary"

    def some(mask: np.ndarray) -> Sequence[Example]:
        return _take(examples, mask)

    deletion = Deletion(
        run=run,
        request=request,
        forget=some(asked & included),
        others=some(asked & ~included),
        retain=some(~asked & included & own),
        never=some(~asked & ~included & (role == "candidate")),
        validation=some(~asked & (role == "validation")),
        left=replace(load(run.records), examples=some(~asked)),
    )
    _check_amount(deletion)
    _check_copies(deletion, config)
    return deletion


def _column(examples: Sequence[Example], name: str) -> list[Any]:
    assert isinstance(examples, Rows)  # which stored examples always are
    found: list[Any] = examples.column(name).to_pylist()
    return found


def _take(examples: Sequence[Example], mask: np.ndarray) -> Sequence[Example]:
    assert isinstance(examples, Rows)
    return examples.take(np.flatnonzero(mask))


def _check_run(run: Run, card: RunCard, request: DeletionRequest) -> RunConfig:
    """Refuse runs that no request can be made to, and requests to another run."""
    if request.run != run.path.name:
        message = f"The request is to the run {request.run}, and this one is {run.path.name}."
        raise UnlearningError(message, "Make a new request: what a run holds is its own.")
    if card.status == "external":
        hint = "Only what Sordino trained can be made to forget here: it has the records and the weights."
        raise RunError(f"{run.path} is an audit of a model trained elsewhere.", hint)
    if card.status == "unlearning":
        raise RunError(f"{run.path} is being made to forget itself.", "Go on with `sordino unlearn run`.")
    if card.status != "trained":
        hint = f"Finish it: `sordino train --resume {run.path}`."
        raise RunError(f"{run.path} is not trained to its end ({card.status}).", hint)
    config = recorded(card.config, str(run.path / "run.json"))
    if config.task == "classification":
        message = "The run is a classifier, and unlearning is of causal language models."
        raise UnlearningError(message, "Train it again on what stays: take the records out of its data.")
    return config


def _check_names(run: Run, request: DeletionRequest, examples: Sequence[Example]) -> None:
    """Refuse no names, names twice, what was deleted already, and what is unknown, in this order."""
    names, kind = request.names, request.kind
    if not names or len(set(names)) < len(names):
        hint = f"Name at least one {kind}, and each once."
        raise UnlearningError(f"The request has {len(set(names))} names, of which {len(names)} were given.", hint)
    book, runs = Deletions.open(run.path.parent), [one.path.name for one in lineage(run)]
    gone = book.deleted(names, kind, runs, but=request.id)
    if gone:
        message = f"{len(gone)} of {len(names)} {kind}s are already deleted."
        raise UnlearningError(message, "Leave them out of the request; `sordino unlearn ledger` has theirs.")
    earlier = book.carried_out([run.path.name], but=request.id)
    if earlier:
        message = f"{run.path.name} was replaced: {len(earlier)} requests to it were carried out."
        hint = "Make the request to the run that came of the last one: here, those who were deleted would come back."
        raise UnlearningError(message, hint)
    own = where(examples, None)
    known = {*_names_of(own, kind)}
    unknown = [place for place, name in enumerate(names, 1) if name not in known]
    if not unknown:
        return
    places = ", ".join(map(str, unknown[:10])) + (", …" if len(unknown) > 10 else "")
    message = f"{len(unknown)} of {len(names)} {kind}s are unknown to the run, in places {places}."
    other: Kind = "record" if kind == "subject" else "subject"
    if {names[place - 1] for place in unknown} <= {*_names_of(own, other)}:
        raise UnlearningError(message, f"They name {other}s: ask for those.")
    unit = str(run.card.data.get("unit", "record"))
    what = "ids (data.id)" if kind == "record" else f"units ({unit})"
    raise UnlearningError(message, f"Write {what} exactly as they are in the data; nothing was done.")


def _names_of(examples: Sequence[Example], kind: Kind) -> Iterable[str]:
    names = _column(examples, "unit" if kind == "subject" else "id")
    return (name for name, role in zip(names, _column(examples, "role"), strict=True) if role != "canary")


def _check_amount(deletion: Deletion) -> None:
    """Refuse what was never trained on, and what is most of all there is."""
    forget, retain = len(deletion.forget), len(deletion.retain)
    if not forget:
        message = f"Nothing of those who ask was trained on: their {len(deletion.others)} records were held out."
        hint = "There is nothing to unlearn; take them out of your data, and later runs will not hold them."
        raise UnlearningError(message, hint)
    share = forget / (forget + retain)
    if share > LARGEST:
        message = f"{forget:,} of {forget + retain:,} training records ({share:.0%}) are to be forgotten."
        raise UnlearningError(message, f"Above {LARGEST:.0%}, train anew on what stays: it is cheaper, and exact.")


def _check_copies(deletion: Deletion, config: RunConfig) -> None:
    """Refuse where what is to be forgotten stays with others, or was held out and trained on at once."""
    copies = Copies.of(deletion, config)
    if copies.trained:
        message = f"{copies.trained:,} records that stay say exactly what records to forget say."
        hint = "What stays trained on is not forgotten: ask for these too, in one request."
        raise UnlearningError(message, hint)
    if copies.held_out:
        message = f"{copies.held_out:,} held-out records say exactly what was trained on."
        hint = "They cannot show what a model says of texts it never saw: split the data anew, and train again."
        raise UnlearningError(message, hint)
    if (copies.near or copies.planted) and not deletion.request.acknowledged:
        message = (
            f"{copies.near:,} records that stay are near-duplicates of records to forget "
            f"(at a similarity of {config.split.near_duplicates:g})"
        )
        message += f", and {copies.planted:,} canaries hold passages of them." if copies.planted else "."
        hint = "Ask for them too; or, if they may stay with others, say so (--acknowledge)."
        raise UnlearningError(message, hint)
