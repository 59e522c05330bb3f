"""Removing what holds the deleted, once a model without them is there.

Afterwards a run has its card, its audit and its ledger, which are aggregates, and the records of those who did not ask.
Blocks of a disk may outlive a file, and copies outside of the folder of the runs that nobody wrote down are not found.
"""

import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from pathlib import Path

import numpy as np

from sordino.deletions import Deletions
from sordino.deletions.leaving_out import without
from sordino.errors import UnlearningError
from sordino.records.store import load, save
from sordino.results import DeletionRequest, Notice
from sordino.run import Run
from sordino.unlearn.requests.holdings import Asked, Holding, holdings, is_inside, kept_child, masks_for

__all__ = ["Holding", "holdings", "purge"]


def purge(
    run: Run,
    request: DeletionRequest,
    found: Sequence[Holding],
    *,
    dry_run: bool = False,
    siblings: bool = False,
) -> tuple[Holding, ...]:
    """Remove what `holdings` found, and say of each whether it is gone; with `dry_run` nothing is touched.

    Other models that were trained on the deleted (`relation` "sibling") stay unless `siblings`: nothing replaces them.
    What could not be removed stays in the list, with the reason. A purge that was interrupted is made again.

    Raises `UnlearningError` where the request was not carried out, so that nothing would be left of the run, or where
    what is to be removed is of the run that replaces it; `RunError` where another process works on a run.
    """
    out = run.path.parent
    standing = Deletions.open(out).standing(request.id)
    if standing.state not in ("executed", "verified", "certified"):
        message = f"The request {request.id!r} is {standing.state}: nothing replaces {run.path.name} yet."
        raise UnlearningError(message, "Carry it out first: `sordino unlearn run`.")
    protected = kept_child(run, request)
    mine = [one for one in found if any(_is_of(one.place, out / name) for name in protected)]
    if mine:
        message = f"{len(mine)} of {len(found)} things to purge are of the run that replaces {run.path.name}."
        raise UnlearningError(message, "Ask for the holdings of the request anew.")
    if dry_run:
        return tuple(found)
    asked = masks_for(run, request)
    made: dict[int, Holding] = {}
    order = sorted(range(len(found)), key=lambda at: (found[at].run, found[at].kind == "records"))
    for _, places in groupby(order, key=lambda at: found[at].run):
        group = list(places)
        with ExitStack() as held:
            owner = Run(out / found[group[0]].run)
            if owner.private.is_dir() and not owner.path.is_symlink():
                held.enter_context(owner.lock())
            for at in group:
                made[at] = _purged(found[at], owner, asked, out) if _goes(found[at], siblings) else found[at]
    # What is told to be gone stays gone if the machine crashes now.
    os.sync()
    return tuple(made[at] for at in range(len(found)))


def _goes(one: Holding, siblings: bool) -> bool:
    return one.removable and (siblings or one.relation != "sibling")


def _is_of(place: Path, folder: Path) -> bool:
    return (place.parent.resolve() / place.name).is_relative_to(folder.resolve())


def _purged(one: Holding, owner: Run, asked: Asked, out: Path) -> Holding:
    """Remove `one`; what cannot be is told with the reason, and the others go on."""
    if one.kind not in ("merge", "export") and not is_inside(out, one.place):
        return replace(one, why="behind a link out of the folder of the runs, which is not followed")
    try:
        if one.kind == "records":
            _rewrite(owner, asked.among(owner))
        elif one.place.is_dir() and not one.place.is_symlink():
            shutil.rmtree(one.place)
        else:
            one.place.unlink(missing_ok=True)
    except OSError as error:
        return replace(one, why=f"could not be removed: {os.strerror(error.errno or 0)}")
    return replace(one, removed=True)


def _rewrite(run: Run, mask: np.ndarray) -> None:
    """Take the records at `mask` out of the file of `run`, whole or not at all, and say so in its card first."""
    count = int(mask.sum())
    card = run.card
    message = f"{count:,} records were purged on request: the manifest is of those that were trained on before."
    notice = Notice(kind="purged", count=count, message=message)
    if notice not in card.notices:
        run.write_card(replace(card, notices=(*card.notices, notice)))
    placed = load(run.records)
    left = replace(placed, examples=without(placed.examples, mask))
    temporary = run.records.with_name(f".{run.records.name}.new")
    save(left, temporary)
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    temporary.replace(run.records)
    run.event("purged", records=count)
