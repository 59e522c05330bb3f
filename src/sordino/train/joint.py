"""Training of K adapters on one frozen base at once: what each would become alone, for less than K times the price."""

import json
import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sordino.config import TrainConfig
from sordino.errors import TrainingError
from sordino.results import Notice
from sordino.run import disk_errors
from sordino.serialize import Tokens
from sordino.train.adapters import Adapters
from sordino.train.checkpoint import latest, load_checkpoint, save_checkpoint
from sordino.train.collate import epoch_batches
from sordino.train.joint_batches import Corpus, Pass, passes, worth
from sordino.train.joint_checks import check_joint, claim, explained, fingerprint
from sordino.train.joint_private import JointPrivacy, PrivatePart
from sordino.train.loop import learning_rate
from sordino.train.objective import Objective, recomputed
from sordino.train.progress import Monitor, Progress
from sordino.train.trunk import Room, States, Trunk, find_trunk

__all__ = ["JointOptions", "JointResult", "train_joint"]

_TOKENS_AT_ONCE = {"cpu": 8192, "cuda": 65536, "mps": 16384}


@dataclass(frozen=True, kw_only=True)
class JointOptions:
    """What decides about speed and memory, and not about results beyond rounding.

    `tokens_at_once` (None: by device) are the padded tokens of a pass. `trunk` says whether blocks below all adapters
    are computed once a record, where that is exact; their states take up to `trunk_bytes` of memory, else a file.
    """

    tokens_at_once: int | None = None
    trunk: Literal["auto", "off"] = "auto"
    trunk_bytes: int = 2 << 30


@dataclass(frozen=True, kw_only=True)
class JointResult:
    """How far training came (`progress.step` counts the steps of the longest), the `steps` of each adapter, notices."""

    progress: Progress
    steps: tuple[int, ...]
    notices: tuple[Notice, ...]


class _Trainer:
    def __init__(
        self, folder: Path, adapters: Adapters, tokens: Sequence[Tokens], subsets: Sequence[Sequence[int]],
        config: TrainConfig, options: JointOptions,
    ) -> None:  # fmt: skip
        self.folder, self.adapters, self.subsets, self.config = folder, adapters, subsets, config
        model = adapters.model
        self.device = model.device
        self.tokens, self.options = tokens, options
        self.corpus = Corpus(tokens, model.tokenizer.pad_token_id, self.device)
        self.limit = options.tokens_at_once or _TOKENS_AT_ONCE.get(self.device.type, 8192)
        blocks = int(model.module.config.get_text_config().num_hidden_layers)
        self.spare = worth(sum(p.numel() for p in model.module.parameters()), blocks)
        # A row an adapter: AdamW is fused over each, with a rate and a count of steps of its own.
        self.rows = nn.ParameterList(nn.Parameter(row[adapters.start :]) for row in adapters.flat)
        groups = [{"params": [row], "lr": config.learning_rate} for row in self.rows]
        self.optimizer = torch.optim.AdamW(
            groups, weight_decay=config.weight_decay, fused=self.device.type in ("cpu", "cuda")
        )
        self.privacy: JointPrivacy | None = None
        self.trunk: Trunk | None = None
        self.states: States | None = None
        self.notices: list[Notice] = []
        self.per_epoch = [math.ceil(len(subset) / config.batch_size) for subset in subsets]
        self.steps = [each * config.epochs for each in self.per_epoch]
        self.epoch = lru_cache(maxsize=2 * len(subsets))(self._epoch)
        self.log = folder / "losses.jsonl"

    def find_trunk(self) -> None:
        """Compute what all adapters share, where that is exact, and say where it is not although it would pay."""
        if self.options.trunk == "off":
            return
        with torch.random.fork_rng():  # where there is dropout, trying draws it
            found = find_trunk(self.adapters.model, [layer.name for layer in self.adapters.layers], training=True)
        if found is None:
            return
        if isinstance(found, str):
            message = f"All blocks are computed for each adapter at each step: {found}."
            self.notices.append(Notice(kind="trunk", count=len(self.adapters), message=message))
            return
        wanted = sorted({i for subset in self.subsets for i in subset})
        self.trunk = found
        room = Room(at_once=self.limit, memory=self.options.trunk_bytes, folder=self.folder)
        self.states = States(self.adapters.model, found, self.tokens, wanted, room)
        where = "on disk" if self.states.on_disk else "in memory"
        message = f"The first {len(found.blocks)} blocks were computed once for all adapters, kept {where}."
        self.notices.append(Notice(kind="trunk", count=len(wanted), message=message))

    def _epoch(self, k: int, epoch: int) -> list[list[int]]:
        lengths = [int(self.corpus.lengths[i]) for i in self.subsets[k]]
        return epoch_batches(lengths, self.config.batch_size, self.adapters.seeds[k], epoch)

    def batches(self, number: int) -> dict[int, list[list[int]]]:
        """The units of step `number` of each adapter that has one, as places in the corpus."""
        chosen = {}
        for k, subset in enumerate(self.subsets):
            if number < self.steps[k]:
                if self.privacy is not None:
                    units = self.privacy.batch(k, number)
                else:
                    epoch, place = divmod(number, self.per_epoch[k])
                    units = [[i] for i in self.epoch(k, epoch)[place]]
                chosen[k] = [[subset[i] for i in unit] for unit in units]
        return chosen

    def step(self, number: int) -> tuple[list[float], int]:
        """One optimizer step of every adapter that has one left; their mean losses a target, and the tokens read."""
        adapters, chosen = self.adapters, self.batches(number)
        adapters.grads.zero_()
        most = 1 << 30 if self.privacy is None else self.privacy.most
        losses = torch.zeros(len(adapters), dtype=torch.float64)
        read = 0
        for one in passes(chosen, self.corpus.lengths, limit=self.limit, spare=self.spare, most=most):
            read += self._pass(one, chosen, losses)
        if self.privacy is None:
            self._clip(number, list(chosen), losses)
        else:
            self.privacy.release(number, list(chosen))
        for k, (row, group) in enumerate(zip(self.rows, self.optimizer.param_groups, strict=True)):
            row.grad = adapters.grads[k, adapters.start :] if k in chosen else None
            group["lr"] = learning_rate(number, self.steps[k], self.config)
        self.optimizer.step()
        return [float(losses[k]) for k in chosen], read

    def _pass(self, one: Pass, chosen: dict[int, list[list[int]]], losses: torch.Tensor) -> int:
        """A forward and backward pass; gradients are added to those of the adapters, their losses to `losses`."""
        flat = one.rows.ravel()
        batch, owner = self.corpus.batch(flat, one.width)
        if self.states is not None and self.trunk is not None:
            self.trunk.states = self.states.batch(flat, one.width)
        weights = self._weights(one, chosen)
        adapters, first = self.adapters, one.chosen[0]
        neighbours = one.chosen == tuple(range(first, first + len(one.chosen)))
        if self.privacy is not None:
            grads = self.privacy.room(len(one.chosen) * one.rows.shape[1])
        else:
            rows = adapters.grads[first : first + len(one.chosen)]
            grads = rows if neighbours else torch.zeros_like(adapters.flat[: len(one.chosen)])
        adapters.select(one.chosen, len(flat), one.width, grads=grads)
        nll = cross_entropy(self.objective.scores(batch), batch.wanted, reduction="none")
        nll = nll * torch.from_numpy(weights[owner]).to(nll)
        nll.sum().backward()  # type: ignore[no-untyped-call]
        groups = owner // (len(flat) // len(one.chosen))
        whose = torch.from_numpy(np.array(one.chosen, dtype=np.int64)[groups])
        losses.index_add_(0, whose, nll.detach().cpu().double())
        if self.privacy is not None:
            self.privacy.add(one.chosen, grads)
        elif not neighbours:
            adapters.grads.index_add_(0, torch.tensor(one.chosen, device=self.device), grads)
        return len(owner)

    def _weights(self, one: Pass, chosen: dict[int, list[list[int]]]) -> np.ndarray:
        """What the loss of a target in each row counts: a share of the mean over its batch, or its unit."""
        if self.privacy is not None:
            return self.privacy.weights(one, self.corpus.targets)
        counts = [max(1, sum(int(self.corpus.targets[i]) for unit in chosen[k] for i in unit)) for k in one.chosen]
        return np.repeat(1 / np.array(counts), one.rows[0].size)

    def _clip(self, number: int, active: Sequence[int], losses: torch.Tensor) -> None:
        grads = self.adapters.grads[:, self.adapters.start :]
        norms = torch.linalg.vector_norm(grads, dim=1)
        # The one time in a step that the device is waited for: a loss that is no number must not reach the weights.
        found = norms.tolist()
        for k in active:
            if not (math.isfinite(found[k]) and math.isfinite(float(losses[k]))):
                rate = learning_rate(number, self.steps[k], self.config)
                message = (
                    f"The loss of adapter {k} (seed {self.adapters.seeds[k]}) is {float(losses[k])} and its gradient "
                    f"norm {found[k]} at step {number + 1} of {self.steps[k]} (learning rate {rate:.2g})."
                )
                hint = "Lower train.learning_rate or lengthen train.warmup; the last checkpoint is untouched."
                raise TrainingError(message, hint)
        bound = self.config.clip
        if bound and max(found) + 1e-6 > bound:
            grads.mul_((bound / (norms + 1e-6)).clamp(max=1.0)[:, None])

    def resume(self) -> Progress:
        """The state of the last checkpoint, the loss log cut back to it."""
        found = latest(self.folder)
        if found is None:
            self.log.write_bytes(b"")
            self.log.chmod(0o600)
            return Progress(threads=torch.get_num_threads())
        progress = load_checkpoint(found, self.rows, self.optimizer)
        os.truncate(self.log, progress.log_bytes)
        return progress

    def write_losses(self, progress: Progress, losses: Sequence[float]) -> Progress:
        """Append a line to the loss log: the loss of each adapter that took the step, in order."""
        with disk_errors(self.log), self.log.open("a") as file:
            kept = [loss if math.isfinite(loss) else None for loss in losses]
            file.write(json.dumps({"step": progress.step, "losses": kept}) + "\n")
            file.flush()
            return replace(progress, log_bytes=file.tell())

    @contextmanager
    def ready(self) -> Iterator[None]:
        """The model as training wants it: adapters attached, the trunk skipped."""
        module, was = self.adapters.model.module, self.adapters.model.module.training
        try:
            module.train()
            with self.adapters.attached(), recomputed(module, on=self.config.gradient_checkpointing):
                if self.trunk is None:
                    yield
                else:
                    with self.trunk.skipped():
                        yield
        finally:
            module.train(was)

    def prepare(self, private: Sequence[PrivatePart] | None) -> None:
        """Try what is about to be relied on, before it sees a record."""
        self.adapters.check()
        self.objective = Objective(self.adapters.model)
        if private is not None:
            self.privacy = JointPrivacy(self.adapters, private)
            self.steps = self.privacy.steps
            self.privacy.check(self.objective)


def train_joint(  # noqa: PLR0913 - what is trained, on what, how, and under which promise
    folder: Path,
    adapters: Adapters,
    tokens: Sequence[Tokens],
    subsets: Sequence[Sequence[int]],
    config: TrainConfig,
    *,
    monitor: Monitor = lambda progress, steps: None,
    options: JointOptions | None = None,
    private: Sequence[PrivatePart] | None = None,
) -> JointResult:
    """Train adapter k on the records of `tokens` whose places are in `subsets[k]`, all adapters at once.

    Each becomes what `train` would make of it with `seed=adapters.seeds[k]`, to rounding: its own batches, rate, clip
    and number of steps; where the base has dropout, another draw of it. With `private`, each is trained by DP-SGD on
    its own plan, secret and units. `folder` (made private) keeps a checkpoint every `config.checkpoint_every` steps
    and at the end, and a training that was interrupted goes on from it: bit for bit as without the interruption on a
    CPU with the same number of threads. There is no validation.

    Raises `ConfigError` for keys that only a single training has, `TrainingError` where an adapter has nothing to
    train on or a loss is no number, `RunError` where `folder` has the checkpoint of another training.
    """
    check_joint(adapters, tokens, subsets, config, private)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    claim(folder, fingerprint(adapters, tokens, subsets, config, private))
    torch.manual_seed(adapters.seeds[0])
    trainer = _Trainer(folder, adapters, tokens, subsets, config, options or JointOptions())
    trainer.prepare(private)
    progress = trainer.resume()
    last = max(trainer.steps)
    if progress.step < last:
        trainer.find_trunk()
    with trainer.ready(), explained(trainer.limit):
        started = time.monotonic() - progress.seconds
        for number in range(progress.step, last):
            losses, read = trainer.step(number)
            progress = replace(
                progress, step=number + 1, loss=float(np.mean(losses)), tokens=progress.tokens + read,
                seconds=time.monotonic() - started,
            )  # fmt: skip
            progress = trainer.write_losses(progress, losses)
            monitor(progress, last)
            if progress.step % config.checkpoint_every == 0 or progress.step == last:
                save_checkpoint(folder / "last", trainer.rows, trainer.optimizer, progress)
    return JointResult(progress=progress, steps=tuple(trainer.steps), notices=tuple(trainer.notices))
