"""From steps to the weights of a run that has forgotten: tuned, watched, checked, saved, and paid for."""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import msgspec

from sordino.config import TrainConfig
from sordino.errors import UnlearningError
from sordino.model import save
from sordino.results import Cost
from sordino.run import Run, write_folder
from sordino.serialize import Tokens
from sordino.train.loop import train
from sordino.train.progress import Progress
from sordino.train.steps import Steps
from sordino.train.validation import validation_loss
from sordino.unlearn.base import Child, Deletion
from sordino.unlearn.tuning.opening import Opened, count_targets, reopen, watched, work_folder, workless
from sordino.unlearn.tuning.settings import UnsuitedSettings, train_config
from sordino.unlearn.tuning.steps import Limit
from sordino.unlearn.tuning.trials import spent_searching

__all__ = ["CountedSteps", "Watch", "Worked", "begin", "finish", "share_of_training", "tune"]

WORK = "unlearning"
_SETTINGS = "settings.json"


@runtime_checkable
class CountedSteps(Steps, Protocol):
    """Steps that can say what a reference read for them."""

    def forwards(self, steps: int) -> int:
        """Scored tokens that went forwards only for the first `steps` steps."""


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Sequences by which utility is watched, how much their loss may grow, and which of `retain` they are."""

    tokens: Sequence[Tokens]
    limit: Limit
    held: frozenset[int]


@dataclass(frozen=True, kw_only=True)
class Worked:
    """A deletion at work: the model opened again, its watch, the folder for what is needed on the way."""

    deletion: Deletion
    child: Child
    opened: Opened
    watch: Watch
    folder: Run
    before: str
    started: float


def begin(deletion: Deletion, child: Child, settings: Mapping[str, Any]) -> Worked:
    """Open the model and measure its utility before; raises `UnlearningError` for what cannot be unlearned so."""
    started = time.monotonic()
    if not deletion.forget:
        raise UnlearningError("There is no record to forget.", "Name a subject or a record that was trained on.")
    opened = reopen(deletion)
    tokens, held = watched(deletion, opened.serializer, child.seed)
    tolerance = settings["tolerance"]
    if tolerance is not None and not tokens:
        message = f"tolerance is {tolerance:g}, and there is no record to measure utility on."
        raise UnlearningError(message, "Give tolerance none to go without a utility stop.")
    before = validation_loss(opened.model, tokens, settings["batch_size"])
    return Worked(
        deletion=deletion,
        child=child,
        opened=opened,
        watch=Watch(tokens=tokens, limit=Limit(before=before, tolerance=tolerance), held=held),
        folder=_folder(child, settings),
        before=opened.model.digest(),
        started=started,
    )


def _folder(child: Child, settings: Mapping[str, Any]) -> Run:
    """The folder for work: what was begun with other settings or another seed is not gone on with."""
    made = msgspec.json.encode([child.seed, dict(settings)], order="deterministic")
    path = work_folder(child.run, WORK).private / _SETTINGS
    if path.exists() and path.read_bytes() != made:
        workless(child, WORK)
    folder = work_folder(child.run, WORK)
    folder.write_private(_SETTINGS, made)
    return folder


def tune(work: Worked, steps: CountedSteps, settings: Mapping[str, Any]) -> Cost:
    """Take `steps`, from where they were interrupted, and write the weights; returns what it cost.

    Raises `UnlearningError` where utility was lost before weights that may be kept were found, or nothing changed.
    """
    child, model, watch = work.child, work.opened.model, work.watch
    config = train_config(settings, work.deletion.config.train)
    advance = child.ticker("unlearning", steps.steps)
    done = [0]

    def monitor(progress: Progress, total: int) -> None:
        advance(progress.step - done[0])
        done[0] = progress.step

    progress = train(
        work.folder, model, ([], list(watch.tokens)), config, seed=child.seed, monitor=monitor, given=steps
    )  # fmt: skip
    if progress.best_step is None:
        raise UnsuitedSettings(
            f"At step {progress.step} the loss on validation records was {progress.validation}, before it "
            f"{watch.limit.before}: more than tolerance ({watch.limit.tolerance}) allows, and no weights before it may "
            "be kept.",
            "Lower learning_rate, set a smaller check_every, or raise tolerance.",
        )
    told: dict[str, Any] = {"steps": progress.best_step, "stopped": progress.stopped}
    if progress.stopped:
        child.say(f"stopped at step {progress.step:,}: utility; kept are the weights of step {progress.best_step:,}")
    read = steps.forwards(progress.step) + _checks(progress, config, steps) * count_targets(watch.tokens)
    return finish(work, told, tokens=progress.tokens, forwards=read, seconds=progress.seconds)


def _checks(progress: Progress, config: TrainConfig, steps: Steps) -> int:
    every = config.validate_every or steps.per_epoch
    return progress.step // every + (progress.step == steps.steps and progress.step % every > 0)


def finish(work: Worked, told: Mapping[str, Any], *, tokens: int, forwards: int, seconds: float = 0.0) -> Cost:
    """Check that something changed, write the weights and the card, remove what was needed on the way."""
    child, model = work.child, work.opened.model
    if model.digest() == work.before:
        message = f"No weight was changed ({work.before}): nothing was forgotten."
        raise UnsuitedSettings(message, "Raise learning_rate or epochs.")
    with write_folder(child.run.weights) as folder:
        save(model, folder)
    card = child.run.card
    streams = "numpy default_rng([seed, stream]): retain 1, refusals 2, watched 3, control 4, alternatives 5"
    held = f"{len(work.watch.held)} records that stay, held back" if work.watch.held else "validation records"
    about = {
        "generator": streams,
        "utility": {
            "watched": f"{len(work.watch.tokens)} sequences of {held}",
            "before": work.watch.limit.before,
            "after": validation_loss(model, work.watch.tokens, 8),
            "tolerance": work.watch.limit.tolerance,
        },
        **told,
    }
    child.run.write_card(dataclasses.replace(card, unlearning={**card.unlearning, **about}))
    workless(child, WORK)
    searched = spent_searching(child.run)
    # The utility before and after is measured once each.
    forwards += 2 * count_targets(work.watch.tokens) + searched.forwards
    tokens += searched.tokens
    # What an interrupted attempt took is in the progress that it left; the rest is opening and saving.
    return Cost(
        seconds=max(seconds, time.monotonic() - work.started) + searched.seconds,
        tokens=tokens,
        forwards=forwards,
        share=share_of_training(work.deletion, tokens, forwards),
    )


def share_of_training(deletion: Deletion, tokens: int, forwards: int) -> float | None:
    """Scored tokens as a share of training anew on what stays, all epochs; None where the run's card does not say.

    Training anew takes what the run's own took, less what those who go had of it, record by record.
    """
    trained, stays = deletion.run.card.training.get("tokens"), len(deletion.left.training)
    if not trained or not stays:
        return None
    return (tokens + forwards / 3) / (float(trained) * stays / (stays + len(deletion.forget)))
