"""The steps of unlearning by a loss: batches to forget, as many records that stay, and γ · forget + α · retain."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from sordino.model import Model
from sordino.serialize import Tokens
from sordino.train.collate import Batch, collate, epoch_batches
from sordino.train.objective import Objective
from sordino.unlearn.losses import IGNORED, Logits
from sordino.unlearn.tuning.opening import count_targets
from sordino.unlearn.tuning.reference import Frozen, token_logprobs
from sordino.unlearn.tuning.retaining import Retained

__all__ = ["Epochs", "Item", "Limit", "LossSteps", "Total", "packed"]

HINT = "Lower learning_rate, or raise beta where the loss has one; nothing was changed."


@dataclass(frozen=True, kw_only=True)
class Item:
    """A sequence to forget, and the answers that are wanted in its place: one each epoch, by turns."""

    tokens: Tokens
    better: tuple[Tokens, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Limit:
    """The utility stop: the validation loss `before`, in nats a token, may grow by a share of `tolerance`.

    Without a tolerance any finite loss may be kept.
    """

    before: float | None = None
    tolerance: float | None = None

    def accepts(self, loss: float | None) -> bool:
        """Whether weights with this validation loss may be kept."""
        if self.tolerance is None:
            return loss is None or math.isfinite(loss)
        return None not in (loss, self.before) and float(loss or 0) <= (1 + self.tolerance) * float(self.before or 0)


@dataclass(frozen=True, kw_only=True)
class Epochs:
    """`epochs` times all of `lengths` in batches that the `seed` shuffles; records that stay go along, one for one."""

    lengths: Sequence[int]
    epochs: int
    batch_size: int
    seed: int

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return math.ceil(len(self.lengths) / self.batch_size)

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, each with its places."""
        for epoch in range(start // self.per_epoch, self.epochs):
            for number, batch in enumerate(epoch_batches(self.lengths, self.batch_size, self.seed, epoch)):
                step = epoch * self.per_epoch + number
                if step >= start:
                    yield step, batch

    def drawn(self, step: int) -> int:
        """How many records were forgotten, and as many drawn of those that stay, before `step`."""
        epoch, number = divmod(step, self.per_epoch)
        before = epoch_batches(self.lengths, self.batch_size, self.seed, epoch)[:number]
        return epoch * len(self.lengths) + sum(map(len, before))


@dataclass(frozen=True, kw_only=True)
class Total:
    """γ · forget + α · retain, and what each asks for.

    `once`: the reference's ln p of tokens to forget, read once; `forget_frozen` and `retain_frozen`: its logits in each
    step; `retain_better`: another answer to records that stay, as a function of their places.
    """

    forget: Callable[[Logits], Tensor]
    retain: Callable[[Logits], Tensor]
    gamma: float
    alpha: float
    once: bool = False
    forget_frozen: bool = False
    retain_frozen: bool = False
    retain_better: Callable[[Sequence[int]], Sequence[Tokens]] | None = None


@dataclass(kw_only=True)
class LossSteps:
    """What the training loop asks for (`sordino.train.steps.Steps`), of a loss on `forget` and one on `retained`.

    It is made before the first step: the reference is the model as it is then.
    """

    model: Model
    forget: Sequence[Item]
    retained: Retained
    total: Total
    epochs: Epochs
    limit: Limit
    precision: str = "fp32"
    hint: str = HINT
    steps: int = field(init=False)
    per_epoch: int = field(init=False)
    read_once: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        """Ask the reference what is asked once, and copy it where it is asked again."""
        self.per_epoch = self.epochs.per_epoch
        self.steps = self.per_epoch * self.epochs.epochs
        frozen = (self.total.gamma and self.total.forget_frozen) or (self.total.alpha and self.total.retain_frozen)
        self.frozen = Frozen(self.model.module) if frozen else None
        self.known: dict[tuple[int, int], np.ndarray] = {}
        if self.total.once and self.total.gamma:
            self._ask_once()

    def _ask_once(self) -> None:
        # The true answer has the number −1, better ones count from 0.
        asked = [
            ((i, k), t) for i, item in enumerate(self.forget) for k, t in enumerate((item.tokens, *item.better), -1)
        ]
        sequences = [t for _, t in asked]
        found = token_logprobs(self.model, sequences, Objective(self.model, self.precision), self.epochs.batch_size)
        self.known = {key: values for (key, _), values in zip(asked, found, strict=True)}
        self.read_once = count_targets(sequences)

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, each with the places of what is to be forgotten."""
        return self.epochs.batches(start)

    def accepts(self, validation: float | None) -> bool:
        """Whether weights with this validation loss may be kept."""
        return self.limit.accepts(validation)

    def parts(self, number: int, indices: Sequence[int], objective: Objective) -> Iterator[tuple[Tensor, int]]:
        """γ · forget, then α · retain; a part with a weight of 0 is not computed."""
        if self.total.gamma:
            turn = number // self.per_epoch
            tokens = [self.forget[i].tokens for i in indices]
            better = [self._better(i, turn) for i in indices] if self.forget[indices[0]].better else None
            batch = self._told(tokens, objective, self.total.forget_frozen, [(i, -1) for i in indices])
            if better is not None:
                keys = [(i, turn % len(self.forget[i].better)) for i in indices]
                batch = _with(batch, self._told(better, objective, self.total.forget_frozen, keys))
            yield self.total.gamma * self.total.forget(batch), count_targets([*tokens, *(better or ())])
        if self.total.alpha:
            start = self.epochs.drawn(number)
            tokens = self.retained.take(start, len(indices))
            kept = self._told(tokens, objective, self.total.retain_frozen)
            if self.total.retain_better is not None:
                refused = self.total.retain_better(self.retained.owners(start, len(indices)))
                kept = _with(kept, self._told(refused, objective, frozen=False))
                tokens = [*tokens, *refused]
            yield self.total.alpha * self.total.retain(kept), count_targets(tokens)

    def forwards(self, steps: int) -> int:
        """Scored tokens that the reference read for the first `steps` steps."""
        total = self.read_once
        for number, indices in self.batches(0):
            if number >= steps:
                break
            if self.total.gamma and self.total.forget_frozen:
                total += count_targets([self.forget[i].tokens for i in indices])
            if self.total.alpha and self.total.retain_frozen:
                total += count_targets(self.retained.take(self.epochs.drawn(number), len(indices)))
        return total

    def _better(self, i: int, turn: int) -> Tokens:
        answers = self.forget[i].better
        return answers[turn % len(answers)]

    def _told(
        self,
        tokens: Sequence[Tokens],
        objective: Objective,
        frozen: bool,
        keys: Sequence[tuple[int, int]] = (),
    ) -> Logits:
        batch = collate(tokens, self.model.tokenizer.pad_token_id, self.model.device)
        reference = None
        if frozen and self.frozen is not None:
            with self.frozen.active():
                reference = objective.scores(batch)
        made = packed(objective.scores(batch), batch, reference)
        if not self.known or not keys:
            return made
        width = made.labels.shape[1] - 1
        known = np.zeros((len(keys), width), dtype=np.float64)
        for row, key in enumerate(keys):
            known[row, : len(self.known[key])] = self.known[key]
        return _with(made, reference_logprob=torch.from_numpy(known).to(made.logits.dtype).to(made.logits.device))


def packed(scores: Tensor, batch: Batch, reference: Tensor | None = None) -> Logits:
    """The logits `scores` (N, V) at the scored positions of `batch`, row by row, as if nothing stood between them.

    No loss looks at other positions, which then need not be computed.
    """
    rows, width = batch.input_ids.shape
    owner = batch.positions // width
    counts = torch.bincount(owner, minlength=rows)
    place = torch.arange(len(owner), device=owner.device) - (counts.cumsum(0) - counts)[owner]
    shape = (rows, int(counts.max()) + 1)
    labels = torch.full(shape, IGNORED, dtype=torch.long, device=owner.device)
    labels[owner, place + 1] = batch.wanted

    def laid(values: Tensor) -> Tensor:
        return values.new_zeros(*shape, values.shape[1]).index_put((owner, place), values)

    return Logits(laid(scores), labels, None if reference is None else laid(reference))


def _with(batch: Logits, better: Logits | None = None, reference_logprob: Tensor | None = None) -> Logits:
    return Logits(
        batch.logits,
        batch.labels,
        batch.reference,
        better if better is not None else batch.better,
        reference_logprob if reference_logprob is not None else batch.reference_logprob,
    )
