"""The training loop: the one place that steps an optimizer."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from sordino.config import TrainConfig
from sordino.errors import TrainingError
from sordino.model import Model, head_of
from sordino.model.methods.extra_rows import EXTRA
from sordino.run import Run, disk_errors
from sordino.serialize import Tokens
from sordino.train.checkpoint import latest, load_checkpoint, save_checkpoint, trainable
from sordino.train.collate import collate, epoch_batches
from sordino.train.objective import Objective, check_precision, loss_scaler, recomputed
from sordino.train.private import PrivateSteps
from sordino.train.progress import Monitor, Progress
from sordino.train.steps import Steps
from sordino.train.validation import validation, validation_loss

__all__ = ["learning_rate", "train", "validation_loss"]

# Seconds between lines in events.jsonl.
_EVERY = 5.0


def learning_rate(step: int, steps: int, config: TrainConfig) -> float:
    """The rate of optimizer step `step` (from 0): linear warm-up, then the schedule down to 0."""
    warmup = math.ceil(config.warmup * steps)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, steps - warmup)
    factor = {"constant": 1.0, "linear": 1 - done, "cosine": (1 + math.cos(math.pi * done)) / 2}
    return config.learning_rate * factor[config.schedule]


@contextmanager
def _explained(config: TrainConfig) -> Iterator[None]:
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        text = str(error).lower()
        if not isinstance(error, torch.OutOfMemoryError | MemoryError) and "allocate memory" not in text:
            raise
        message = f"Out of memory with {config.batch_size} records a step in {config.accumulation} parts."
        hint = (
            "Start a new run with train.gradient_checkpointing, more train.accumulation, or less train.batch_size "
            "or train.max_length; `sordino train --dry-run` estimates what each needs."
        )
        raise TrainingError(message, hint) from error


@dataclass
class _Trainer:
    run: Run
    model: Model
    training: Sequence[Tokens]
    validation: Sequence[Tokens]
    config: TrainConfig
    seed: int
    private: PrivateSteps | None
    given: Steps | None = None

    def __post_init__(self) -> None:
        self.parameters = list(trainable(self.model.module).values())
        self.device = self.model.device
        check_precision(self.config.precision, self.device)
        self.optimizer = torch.optim.AdamW(
            self.parameters,
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            # One pass over the weights instead of a dozen; the same arithmetic (see benchmarks/training.py).
            fused=self.device.type in ("cpu", "cuda"),
        )
        # A head that is trained needs to know whose each logit is.
        picks = self.private is None or not any(p.requires_grad for p in self._head())
        self.objective = Objective(self.model, self.config.precision, picks=picks)
        self.scaler = loss_scaler("fp32" if self.private is not None else self.config.precision, self.device)
        self.per_epoch = math.ceil(len(self.training) / self.config.batch_size)
        self.steps = self.per_epoch * self.config.epochs
        if self.private is not None:
            self.steps = self.private.steps
            self.per_epoch = math.ceil(self.steps / self.config.epochs)
        if self.given is not None:
            self.steps, self.per_epoch = self.given.steps, self.given.per_epoch
        self.log = self.run.private / "losses.jsonl"
        self.told = time.monotonic()

    def _head(self) -> list[torch.nn.Parameter]:
        if self.model.classes is not None:
            return []
        more = getattr(self.model.module, EXTRA, None)  # rows of new tokens are part of the head
        return [*head_of(self.model.module).parameters(), *(more.parameters() if more is not None else ())]

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, each with its record indices (under differential privacy: its units)."""
        other = self.private or self.given
        if other is not None:
            yield from other.batches(start)
            return
        lengths = [len(t) for t in self.training]
        for epoch in range(start // self.per_epoch, self.config.epochs):
            for number, batch in enumerate(epoch_batches(lengths, self.config.batch_size, self.seed, epoch)):
                step = epoch * self.per_epoch + number
                if step >= start:
                    yield step, batch

    def step(self, number: int, indices: list[int]) -> tuple[float, int, bool]:
        """One optimizer step; returns the mean loss a target, the tokens for the progress, and whether it was skipped.

        A classifier's speed is told in tokens too: those it reads.
        """
        if self.private is not None:
            return self._private_step(self.private, number, indices)
        parts = self._parts(indices) if self.given is None else self.given.parts(number, indices, self.objective)
        losses, read = [], 0
        for part, tokens in parts:
            self._refuse_constant(part.requires_grad)
            self.scaler.scale(part).backward()  # type: ignore[no-untyped-call]
            losses.append(part.detach())
            read += tokens
        self._refuse_constant(any(p.grad is not None for p in self.parameters))
        self.scaler.unscale_(self.optimizer)
        norm = get_total_norm([p.grad for p in self.parameters if p.grad is not None])
        total = torch.stack(losses).sum()
        # The one time in a step that the device is waited for: a loss that is no number must not reach the weights.
        loss, length = torch.stack([total, norm.to(total)]).tolist()
        overflowed = self._overflowed(loss, length)
        if not overflowed:
            self._refuse_nan(number, loss, length)
            # The length is known by now, so gradients that are short enough need not be multiplied by 1.
            if self.config.clip and length + 1e-6 > self.config.clip:
                clip_grads_with_norm_(self.parameters, self.config.clip, norm)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(number, self.steps, self.config)
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, read, overflowed

    def _parts(self, indices: list[int]) -> Iterator[tuple[torch.Tensor, int]]:
        size = math.ceil(len(indices) / self.config.accumulation)
        chosen = [self.training[i] for i in indices]
        pad = self.model.tokenizer.pad_token_id
        parts = [chosen[k : k + size] for k in range(0, len(chosen), size)]
        batches = [collate(part, pad, self.device) for part in parts]
        targets = sum(batch.targets for batch in batches)
        for part, batch in zip(parts, batches, strict=True):
            read = batch.targets if self.model.classes is None else sum(len(item) for item in part)
            yield self.objective(batch) / max(1, targets), read

    def _refuse_constant(self, changing: bool) -> None:
        # Weight decay would go on changing weights, and nobody would notice that nothing is learned.
        if self.given is not None and not changing:
            raise TrainingError("No gradient reaches any of the weights that are to be changed.", self.given.hint)

    def _private_step(self, private: PrivateSteps, number: int, units: list[int]) -> tuple[float, int, bool]:
        # What is released is finite by construction: clipped, and noisy. Clipping it again would change nothing good.
        loss, targets = private.gradients(number, units, self.objective, self.config)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(number, self.steps, self.config)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return loss, targets, False

    def _overflowed(self, loss: float, norm: float) -> bool:
        # While the scale of float16 gradients is still sought, infinite ones are no failure. A scale below 1 is.
        sought = self.scaler.is_enabled() and float(self.scaler.get_scale()) >= 1
        return sought and math.isfinite(loss) and not math.isfinite(norm)

    def _refuse_nan(self, number: int, loss: float, norm: float) -> None:
        if math.isfinite(loss) and math.isfinite(norm):
            return
        rate = learning_rate(number, self.steps, self.config)
        where = f"step {number + 1} of {self.steps} (learning rate {rate:.2g})"
        message = f"The loss is {loss} and the gradient norm {norm} at {where}."
        hint = "Lower train.learning_rate or lengthen train.warmup; the last checkpoint is untouched."
        raise TrainingError(message, hint if self.given is None else self.given.hint)

    def write_losses(self, progress: Progress, **values: float | int | None) -> Progress:
        """Append a line to the loss log."""
        with disk_errors(self.log), self.log.open("a") as file:
            file.write(json.dumps(values) + "\n")
            file.flush()
            return replace(progress, log_bytes=file.tell())

    def checkpoint(self, progress: Progress) -> None:
        """Save the state under `last`, and under `best` where the validation loss says so."""
        for name in ("best", "last") if progress.best_step == progress.step else ("last",):
            folder = self.run.checkpoints / name
            save_checkpoint(folder, self.model.module, self.optimizer, progress, self.scaler)
        self.run.event("checkpoint", step=progress.step)

    def tell(self, progress: Progress, *, last: bool) -> None:
        """Write a line to events.jsonl every few seconds: how far, how fast, how long still (no losses)."""
        now = time.monotonic()
        if not last and now - self.told < _EVERY:
            return
        self.told = now
        left = progress.seconds / progress.step * (self.steps - progress.step)
        speed = progress.tokens / max(progress.seconds, 1e-9)
        self.run.event(
            "progress",
            step=progress.step,
            steps=self.steps,
            tokens=progress.tokens,
            tokens_per_second=round(speed, 1),
            seconds_left=round(left, 1),
        )

    def resume(self) -> Progress:
        """The state of the last checkpoint, the loss log cut back to it."""
        folder = latest(self.run.checkpoints)
        if folder is None:
            self.log.write_bytes(b"")
            self.log.chmod(0o600)
            return Progress(threads=torch.get_num_threads())
        progress = load_checkpoint(folder, self.model.module, self.optimizer, self.scaler)
        os.truncate(self.log, progress.log_bytes)
        self.run.event("resumed", step=progress.step, threads=torch.get_num_threads())
        return progress

    def validate(self, progress: Progress) -> Progress:
        """Measure the validation loss and note whether it is the best so far."""
        found = validation(self.model, self.validation, self.config.batch_size, self.objective)
        if self.given is not None:
            return self._judge(progress, self.given, None if found is None else found[0])
        if found is None:
            return progress
        loss, accuracy = found
        more = {} if accuracy is None else {"accuracy": accuracy}
        progress = replace(self.write_losses(progress, step=progress.step, validation=loss, **more), accuracy=accuracy)
        if math.isfinite(loss) and (progress.best is None or loss < progress.best):
            progress = replace(progress, best=loss, best_step=progress.step)
        target = self.config.stop_loss
        return replace(progress, validation=loss, stopped=target is not None and loss <= target)

    def _judge(self, progress: Progress, given: Steps, loss: float | None) -> Progress:
        progress = replace(progress, validation=loss)
        if loss is not None:
            progress = self.write_losses(progress, step=progress.step, validation=loss)
        if given.accepts(loss):
            return replace(progress, best=loss, best_step=progress.step)
        return replace(progress, stopped=True)


def train(  # noqa: PLR0913 - what is trained, on what, how, and under which promise
    run: Run,
    model: Model,
    tokens: tuple[Sequence[Tokens], Sequence[Tokens]],
    config: TrainConfig,
    *,
    seed: int,
    monitor: Monitor = lambda progress, steps: None,
    private: PrivateSteps | None = None,
    given: Steps | None = None,
) -> Progress:
    """Tune `model`, from the last checkpoint of `run` if it has one; returns how far it came.

    `tokens` are those to train on and those to validate with; with `private`, steps and gradients are those of
    a differentially private mechanism on the same tokens; `given` are steps of another kind, which say themselves
    what they are about (none of the tokens are trained on then) and which weights may be kept. On a CPU with the same
    number of threads, a run that was interrupted and resumed has the same losses and weights, bit for bit, as
    one that was not. Ends with the weights that `config.select` names.
    Raises `TrainingError` where there is nothing to train on, or training cannot go on.
    """
    if not tokens[0] and given is None:
        message = "No record has a token to train on."
        raise TrainingError(
            message, "Raise train.max_length: prompts may fill it, and only completions are trained on."
        )
    if config.stop_loss is not None and not tokens[1]:
        message = f"train.stop_loss is {config.stop_loss:g}, and no validation record has a token to predict."
        raise TrainingError(message, "Raise split.validation or train.max_length, or leave train.stop_loss out.")
    torch.manual_seed(seed)
    trainer = _Trainer(run, model, *tokens, config, seed, private, given)
    progress = trainer.resume()
    every = config.validate_every or trainer.per_epoch
    model.module.train()
    with _explained(config), recomputed(model.module, on=config.gradient_checkpointing):
        if private is not None:
            private.check(trainer.objective)
            private.resume(progress.clip_norm)
        started = time.monotonic() - progress.seconds
        for number, indices in trainer.batches(progress.step) if not progress.stopped else ():
            loss, read, skipped = trainer.step(number, indices)
            spent, done = time.monotonic() - started, progress.tokens + read
            progress = replace(progress, step=number + 1, loss=loss, tokens=done, seconds=spent)
            norm = None if private is None else private.clip_norm
            progress = replace(progress, skipped=progress.skipped + skipped, clip_norm=norm)
            progress = trainer.write_losses(progress, step=progress.step, loss=loss if math.isfinite(loss) else None)
            last = progress.step == trainer.steps
            if progress.step % every == 0 or last:
                progress = trainer.validate(progress)
            last = last or progress.stopped
            monitor(progress, trainer.steps)
            trainer.tell(progress, last=last)
            if progress.step % config.checkpoint_every == 0 or progress.best_step == progress.step or last:
                trainer.checkpoint(progress)
            if progress.stopped:
                break
    if config.select == "best" and (run.checkpoints / "best").exists():
        load_checkpoint(run.checkpoints / "best", model.module, trainer.optimizer)
    return progress
