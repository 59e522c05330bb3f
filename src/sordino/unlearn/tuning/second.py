"""A second adapter beside that of the run, trained for what is to be forgotten, and both read as one model."""

import dataclasses
import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, log_softmax

from sordino.errors import UnlearningError
from sordino.model import save, save_combined
from sordino.results import Cost, Notice
from sordino.run import Run, write_folder
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.loop import train
from sordino.train.objective import Objective
from sordino.train.progress import Progress
from sordino.train.steps import Steps
from sordino.unlearn.base import Child, Deletion
from sordino.unlearn.tuning.opening import Opened, reopen, tuned_state, work_folder, workless
from sordino.unlearn.tuning.retaining import Retained
from sordino.unlearn.tuning.settings import STEPPING, train_config
from sordino.unlearn.tuning.steps import Epochs
from sordino.unlearn.tuning.trials import spent_searching
from sordino.unlearn.tuning.working import WORK, share_of_training

__all__ = ["TRAINING", "Reversed", "Second", "open_for_second", "uniform_loss"]

TRAINING: Mapping[str, Any] = {k: v for k, v in STEPPING.items() if k not in ("tolerance", "check_every")}
"""How the steps of a second adapter are made; the served model keeps its own, so there is no utility to watch."""

# Steps between checkpoints.
_EVERY = 20
_HINT = "Lower learning_rate; nothing was changed."
_REMEMBERS = (
    "An adapter of these weights was trained on what is to be forgotten, and the adapter of the run is as it was: the "
    "model answers as one that has forgotten, but who has its files can read out what was. Serve it, do not share it."
)


@dataclass(frozen=True, kw_only=True)
class Second:
    """A run opened so that what is tuned next becomes the second adapter of its child."""

    deletion: Deletion
    child: Child
    opened: Opened
    folder: Run
    started: float

    def tune(
        self, settings: Mapping[str, Any], *, tokens: Sequence[Tokens] = (), steps: Steps | None = None
    ) -> Progress:
        """Train on `tokens`, or take `steps`, from where it was interrupted; raises where nothing was changed."""
        model, child = self.opened.model, self.child
        before, last = tuned_state(model), [0]
        config = train_config({**settings, "check_every": None}, self.deletion.config.train)
        config = dataclasses.replace(config, select="last", checkpoint_every=_EVERY)
        count = math.ceil(len(tokens) / config.batch_size) * config.epochs if steps is None else steps.steps
        advance = child.ticker("training a second adapter", count)

        def monitor(progress: Progress, total: int) -> None:
            advance(progress.step - last[0])
            last[0] = progress.step

        progress = train(self.folder, model, (tokens, []), config, seed=child.seed, monitor=monitor, given=steps)
        if all(torch.equal(value, before[name]) for name, value in tuned_state(model).items()):
            raise UnlearningError("No weight was changed: nothing was learned.", "Raise learning_rate or epochs.")
        return progress

    def finish(self, progress: Progress, rule: str, name: str, settings: Mapping[str, Any]) -> Cost:
        """Write both adapters as the weights of the child, and what that means into its card."""
        run, place = self.child.run, self.folder.path / "adapter"
        shutil.rmtree(place, ignore_errors=True)
        save(self.opened.model, place)
        with write_folder(run.weights) as out:
            parts = {"model": self.deletion.run.weights, name: place}
            save_combined(out, rule, parts, settings, self.opened.model.tokenizer)
        card = run.card
        notices = [n for n in card.notices if n.kind != "remembers"]
        told = {"inference": "2 forward passes a token", "generator": "numpy default_rng([seed, stream]): retain 1"}
        run.write_card(
            dataclasses.replace(
                card,
                unlearning={**card.unlearning, **told},
                notices=(*notices, Notice(kind="remembers", count=1, message=_REMEMBERS)),
            )
        )
        workless(self.child, WORK)
        searched = spent_searching(run)
        tokens, forwards = progress.tokens + searched.tokens, searched.forwards
        return Cost(
            seconds=max(progress.seconds, time.monotonic() - self.started) + searched.seconds,
            tokens=tokens,
            forwards=forwards,
            share=share_of_training(self.deletion, tokens, forwards),
        )


def open_for_second(deletion: Deletion, child: Child) -> Second:
    """Open the run; raises `UnlearningError` where it has no one adapter of LoRA, or nothing is to be forgotten."""
    started, kind = time.monotonic(), deletion.config.method.kind
    if not deletion.forget:
        raise UnlearningError("There is no record to forget.", "Name a subject or a record that was trained on.")
    if kind != "lora":
        message = f"The run was tuned by method {kind}, and a second adapter lies beside one of LoRA."
        raise UnlearningError(message, "Use a method that changes weights, such as npo.")
    return Second(
        deletion=deletion,
        child=child,
        opened=reopen(deletion),
        folder=work_folder(child.run, WORK),
        started=started,
    )


def uniform_loss(logits: Tensor) -> Tensor:
    """KL(uniform ‖ p), in nats, the mean over rows of logits (N, V); 0 where all tokens are alike."""
    return -log_softmax(logits, dim=-1).mean() - math.log(logits.shape[-1])


@dataclass(kw_only=True)
class Reversed:
    """The steps of an assistant: remember what is to be forgotten, be uniform on what stays.

    NLL on a batch of `forget` plus `beta` times `uniform_loss` on as many sequences that stay, both means over scored
    tokens (Ji et al. 2024, arXiv:2406.08607).
    """

    opened: Opened
    forget: Sequence[Tokens]
    retained: Retained
    beta: float
    epochs: Epochs
    hint: str = _HINT
    steps: int = field(init=False)
    per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        """Count the steps."""
        self.per_epoch = self.epochs.per_epoch
        self.steps = self.per_epoch * self.epochs.epochs

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, each with the places of what is to be forgotten."""
        return self.epochs.batches(start)

    def accepts(self, validation: float | None) -> bool:
        """Whether weights may be kept: all, since they are not the served model's."""
        return True

    def parts(self, number: int, indices: Sequence[int], objective: Objective) -> Iterator[tuple[Tensor, int]]:
        """The loss on what is to be forgotten, then that on what stays."""
        model = self.opened.model
        pad, device = model.tokenizer.pad_token_id, model.device
        batch = collate([self.forget[i] for i in indices], pad, device)
        yield cross_entropy(objective.scores(batch), batch.wanted), batch.targets
        kept = collate(self.retained.take(self.epochs.drawn(number), len(indices)), pad, device)
        yield self.beta * uniform_loss(objective.scores(kept)), kept.targets
