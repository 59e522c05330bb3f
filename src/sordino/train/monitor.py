"""Memorisation over time: the planted canaries scored while a model is trained, without a trace in the training."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np
import torch

from sordino.config import TrainConfig
from sordino.errors import RunError
from sordino.model import Model
from sordino.run import Run, disk_errors
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.objective import Objective
from sordino.train.planted import Planted, planted
from sordino.train.progress import Monitor, Progress

__all__ = ["CURVE", "CanaryMonitor", "levels", "read_curve", "secret_logprob", "watching"]

CURVE = "memorisation.jsonl"
_BATCH = 32


def secret_logprob(model: Model, tokens: Sequence[Tokens], objective: Objective | None = None) -> np.ndarray:
    """The mean ln p of the targets of each of `tokens` (n) under `model`; NaN where one has none.

    No weight, mode, gradient or random state is another one afterwards.
    """
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    found = np.full(len(tokens), np.nan)
    devices = sorted({p.device.index for p in model.module.parameters() if p.is_cuda and p.device.index is not None})
    with torch.random.fork_rng(devices), model.active():
        objective = objective or Objective(model)
        for start in range(0, len(order), _BATCH):
            part = [i for i in order[start : start + _BATCH] if tokens[i].target[1:].any()]
            if part:
                batch = collate([tokens[i] for i in part], model.tokenizer.pad_token_id, model.device)
                counts = [int(tokens[i].target[1:].sum()) for i in part]
                found[part] = -objective.rows(batch).double().cpu().numpy() / counts
    return found


def levels(canaries: Sequence[Planted], gains: np.ndarray) -> Iterator[tuple[str, int, np.ndarray, np.ndarray]]:
    """By kind and repetitions: the `gains` (n) of the `canaries` (n) trained on, and of those left out."""
    for kind, repetitions in sorted({(c.kind, c.repetitions) for c in canaries}):
        here = np.array([(c.kind, c.repetitions) == (kind, repetitions) for c in canaries]) & np.isfinite(gains)
        inside = np.array([c.included for c in canaries])
        yield kind, repetitions, gains[here & inside], gains[here & ~inside]


def read_curve(run: Run, canaries: Sequence[Planted]) -> list[tuple[int, np.ndarray]]:
    """The steps at which the `canaries` (n) of `run` were scored, with their gains (n) in nats a token.

    None where there was no monitor. Raises `RunError` where the file is damaged.
    """
    path = run.private / CURVE
    rows = _rows(path)
    if any(len(row.gains) != len(canaries) for row in rows):
        message = f"{path} does not have {len(canaries)} canaries in every line, which the run has planted."
        raise RunError(message, "Restore the file, or delete it: the report then has no curve.")
    return [(row.step, np.array([np.nan if g is None else g for g in row.gains])) for row in rows]


@dataclass
class CanaryMonitor:
    """Scores `canaries` every `every` steps of a training; made before its first step, or before it is resumed.

    `tokens` are the canaries' own, with their secrets as targets. Each one's gain, the mean ln p of its targets less
    that of the untuned model, goes to private/; means of those trained on and of those left out go to events.jsonl.
    """

    run: Run
    model: Model
    canaries: Sequence[Planted]
    tokens: Sequence[Tokens]
    every: int

    def __post_init__(self) -> None:
        """Score the untuned model."""
        self.before = secret_logprob(replace(self.model, tuned=False), self.tokens)
        self.begun = False

    def __call__(self, progress: Progress) -> None:
        """After the step that `progress` tells of."""
        if not self.begun:
            self._cut(progress.step)
            self.begun = True
        if progress.step % self.every:
            return
        gains = secret_logprob(self.model, self.tokens) - self.before
        row = _Row(step=progress.step, gains=[None if np.isnan(g) else round(float(g), 6) for g in gains])
        path = self.run.private / CURVE
        with disk_errors(path), path.open("ab") as file:
            file.write(msgspec.json.encode(row) + b"\n")
        for kind, repetitions, inside, outside in levels(self.canaries, gains):
            means = {
                name: round(float(part.mean()), 4)
                for name, part in (("included", inside), ("left_out", outside))
                if part.size
            }
            self.run.event("memorisation", step=progress.step, canaries=kind, repetitions=repetitions, **means)

    def _cut(self, step: int) -> None:
        """Begin the curve, or cut it back to what was before `step`, the first after a checkpoint."""
        kept = (row for row in _rows(self.run.private / CURVE, torn=True) if row.step < step)
        self.run.write_private(CURVE, b"".join(msgspec.json.encode(row) + b"\n" for row in kept))


class _Row(msgspec.Struct, frozen=True, kw_only=True):
    """A line of the file: gains in the order of the canaries, null where one has no token to predict."""

    step: int
    gains: list[float | None]


def _rows(path: Path, *, torn: bool = False) -> list[_Row]:
    """The lines of the file at `path`, none where there is no file; a last one that a crash has `torn` is dropped."""
    found: list[_Row] = []
    lines = path.read_bytes().splitlines() if path.exists() else []
    for number, line in enumerate(lines, 1):
        try:
            found.append(msgspec.json.decode(line, type=_Row))
        except (msgspec.DecodeError, msgspec.ValidationError) as error:
            if torn and number == len(lines):
                break
            hint = "Restore the file, or delete it: the report then has no curve."
            raise RunError(f"{path} is damaged in line {number}: {error}.", hint) from error
    return found


def watching(run: Run, model: Model, tokens: Sequence[Tokens], config: TrainConfig, monitor: Monitor) -> Monitor:
    """`monitor`, and before it the scores of the planted canaries (`tokens`) where `config` asks for them."""
    if config.monitor is None:
        return monitor
    watch = CanaryMonitor(run, model, planted(run), tokens, config.monitor.every)

    def both(progress: Progress, steps: int) -> None:
        watch(progress)
        monitor(progress, steps)

    return both
