"""What was deleted stays out of later trainings on the same data."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from sordino.deletions.book import Deletions
from sordino.errors import DataError, RunError
from sordino.records import Example, Split
from sordino.records.columns import Rows
from sordino.results import Notice

__all__ = ["leave_out", "refuse_deleted", "without"]

_BACK = "To let them back, on their consent: `sordino unlearn ledger --reconsent`."


def without(examples: Sequence[Example], gone: np.ndarray) -> Sequence[Example]:
    """Those of `examples` at which the mask `gone` is False."""
    if isinstance(examples, Rows):
        return examples.take(np.flatnonzero(~gone))
    return tuple(example for example, out in zip(examples, gone.tolist(), strict=True) if not out)


def leave_out(placed: Split, out: Path | str, unit: str) -> Split:
    """`placed` without what the ledger in `out` says was deleted, counted in a notice; itself where nothing was.

    `unit` is the kind of the units. Raises `DataError` where nothing is left to train on.
    """
    book = Deletions.open(out)
    gone = book.blocked(placed.examples, unit)
    count = int(gone.sum())
    if not count:
        return placed
    left = without(placed.examples, gone)
    subjects = len({example.record.unit for example in without(placed.examples, ~gone)})
    what = f"{count:,} record{'s' * (count != 1)} of {subjects:,} deleted subject{'s' * (subjects != 1)}"
    found = dataclasses.replace(placed, examples=left)
    if not found.training:
        raise DataError(f"Nothing is left to train on: {what} may not come back.", _BACK)
    message = f"{what} {'were' if count != 1 else 'was'} left out. {_BACK}"
    return dataclasses.replace(found, notices=(*placed.notices, Notice(kind="deleted", count=count, message=message)))


def refuse_deleted(examples: Sequence[Example], run: Path, unit: str) -> None:
    """Raise `RunError` where a run that was prepared before a deletion would train on what was deleted."""
    count = int(Deletions.open(run.parent).blocked(examples, unit).sum())
    if count:
        message = f"{run} was prepared before a deletion: {count:,} of its records may not be trained on."
        raise RunError(message, "Start a new run on the same data: it leaves them out.")
