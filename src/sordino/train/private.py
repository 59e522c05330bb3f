"""The steps of private training: units sampled by the mechanism, and no gradient but the one it releases."""

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from sordino.config import TrainConfig
from sordino.dp.mechanism import Mechanism
from sordino.model import Model
from sordino.model.methods.extra_rows import EXTRA
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.objective import Objective

__all__ = ["PrivateSteps"]


class PrivateSteps:
    """Batches and gradients under differential privacy.

    `members[u]` are the places in `training` of unit u's sequences. A unit's loss is the mean NLL, in
    nats, over all targets of the sequences that stand for it in a step (of a classifier: over its
    records), so that long texts and large units weigh as much as short ones before they are clipped; or their
    sum, where `dp.loss` says so.
    """

    def __init__(
        self, model: Model, training: Sequence[Tokens], members: Sequence[Sequence[int]], mechanism: Mechanism
    ) -> None:
        self.model, self.training, self.members, self.mechanism = model, training, members, mechanism

    @property
    def steps(self) -> int:
        """How many steps the plan has."""
        return self.mechanism.plan.steps

    @property
    def clip_norm(self) -> float | None:
        """The norm that adaptive clipping has come to; None of any other."""
        return None if self.mechanism.adaptive is None else self.mechanism.clip_norm

    def resume(self, clip_norm: float | None) -> None:
        """Go on with the clip norm that goes with the weights, where one was saved."""
        if clip_norm is not None:
            self.mechanism.restore(clip_norm)

    def check(self, objective: Objective) -> None:
        """Test the mechanism on this model before it sees a record; raises `DPError` where it would break its word."""
        more = getattr(self.model.module, EXTRA, None)

        def losses_of(ids: Tensor, mask: Tensor) -> Tensor:
            rows = [
                row[: int(n)].copy()
                for row, n in zip(ids.cpu().numpy().astype(np.int32), mask.sum(dim=1).tolist(), strict=True)
            ]
            if more is not None:  # canaries end in tokens whose rows are tuned too
                for row in rows:
                    row[-1] = more.first + int(row[-1]) % more.rows.out_features
            label = 0 if objective.classifies else None
            made = [Tokens(ids=row, target=np.arange(len(row)) > 0, text="", label=label) for row in rows]
            return objective.rows(collate(made, self.model.tokenizer.pad_token_id, self.model.device))

        self.mechanism.check(losses_of, int(self.model.module.config.get_text_config().vocab_size))

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, but none that was begun before, each with its units; spent as they come."""
        # What a crash left unfinished is spent and stays unfinished: drawing it again would cost twice.
        for step in range(max(start, self.mechanism.journal.started), self.steps):
            yield step, self.mechanism.sample(step).tolist()

    def gradients(self, step: int, units: list[int], objective: Objective, config: TrainConfig) -> tuple[float, int]:
        """Put the private gradient of `units` into `.grad`; returns their mean loss (nan for none) and the targets."""
        chosen = {u: [self.members[u][i] for i in self.mechanism.rows(step, u, len(self.members[u]))] for u in units}
        order = sorted(units, key=lambda u: (len(chosen[u]), max(len(self.training[i]) for i in chosen[u])))
        # One by one, a unit whose gradient is no number would take those of its part along.
        alone = self.mechanism.clipper.mode == "one-by-one"
        size = 1 if alone else math.ceil(self.mechanism.plan.batch / config.accumulation)
        total, targets = 0.0, 0
        for start in range(0, len(order), size):
            part = [chosen[u] for u in order[start : start + size]]
            loss, read = self._part(part, objective)
            total, targets = total + loss, targets + read
        self.mechanism.release()
        return (total / len(units) if units else math.nan), targets

    def _part(self, part: Sequence[Sequence[int]], objective: Objective) -> tuple[float, int]:
        rows = max(map(len, part))
        # Units of fewer sequences are filled up with their first, which then counts nothing.
        places = [i for unit in part for i in (*unit, *[unit[0]] * (rows - len(unit)))]
        counted = np.array([[j < len(unit) for j in range(rows)] for unit in part])
        sequences = [self.training[i] for i in places]
        number = np.array([objective.targets_of(t) for t in sequences]).reshape(counted.shape)
        shares = counted.astype(np.float64)
        if self.mechanism.plan.settings.loss == "mean":
            shares /= np.maximum(1, (number * counted).sum(axis=1, keepdims=True))
        batch = collate(sequences, self.model.tokenizer.pad_token_id, self.model.device)
        # Not in float64, which Apple GPUs do not have.
        weights = torch.from_numpy(shares.ravel().astype(np.float32)).to(self.model.device)
        seen: list[Tensor] = []

        def losses() -> Tensor:
            values = objective.rows(batch)
            values = values * weights.to(values.dtype)
            seen.append(values.detach())
            return values

        self.mechanism.clip(losses, units=len(part))
        return float(seen[0].sum()), int((number * counted).sum())
