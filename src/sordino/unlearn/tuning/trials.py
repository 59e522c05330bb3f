"""Trials of a search for settings: what was tried, what came of it, and what all of them took."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from sordino.errors import RunError
from sordino.results import Cost
from sordino.run import Run

__all__ = ["FOLDER", "Trial", "read_trials", "spent_searching", "write_trials"]

FOLDER = "search"
_FILE = "trials.json"


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One setting tried. Losses are means in nats a token, None where the trial failed, and `failed` says how.

    `score` is how far the loss of what was to be forgotten is from that of records never trained on; `utility` is the
    validation loss as a share of that before.
    """

    settings: Mapping[str, Any]
    cost: Cost
    forget: float | None = None
    never: float | None = None
    utility: float | None = None
    failed: str = ""

    @property
    def score(self) -> float | None:
        """The distance of the two losses, in nats a token; the smaller the better."""
        return None if self.forget is None or self.never is None else abs(self.forget - self.never)


def read_trials(run: Run) -> list[Trial]:
    """The trials of the search for the settings of `run`, none where there was no search."""
    path = run.private / FOLDER / _FILE
    if not path.exists():
        return []
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Trial])
    except (msgspec.DecodeError, msgspec.ValidationError) as error:
        raise RunError(f"The trials in {path} are damaged: {error}.", "Remove the file to search anew.") from error


def write_trials(run: Run, trials: list[Trial]) -> None:
    """Write the trials, readable by their owner only."""
    run.write_private(f"{FOLDER}/{_FILE}", msgspec.json.encode(trials))


def spent_searching(run: Run) -> Cost:
    """What the search for the settings of `run` took."""
    costs = [trial.cost for trial in read_trials(run)]
    return Cost(
        seconds=sum(c.seconds for c in costs),
        tokens=sum(c.tokens for c in costs),
        forwards=sum(c.forwards for c in costs),
    )
