"""Representation misdirection: hidden states of what is to be forgotten are steered to a random vector."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.errors import UnlearningError
from sordino.model import Model, unwrapped
from sordino.results import Cost
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.objective import Objective, autocast
from sordino.unlearn.base import Child, Deletion, unlearner
from sordino.unlearn.losses import control_distance
from sordino.unlearn.tuning.opening import Streams, count_targets, pieces, seeded
from sordino.unlearn.tuning.reference import Frozen
from sordino.unlearn.tuning.retaining import Retained
from sordino.unlearn.tuning.settings import STEPPING, all_given
from sordino.unlearn.tuning.steps import HINT, Epochs, Limit
from sordino.unlearn.tuning.working import begin, tune

__all__ = ["rmu"]

# The published layer is 7 of 32.
_DEPTH = 7 / 32


class _Enough(Exception):
    """What is wanted of a forward pass was computed."""


@unlearner(
    tier="approximate",
    defaults={**STEPPING, "learning_rate": 5e-5, "gamma": 1.0, "alpha": 1200.0, "steering": 2.0, "layer": None},
    paper="arXiv:2403.03218",
    passes=lambda settings: settings["epochs"] * (bool(settings["gamma"]) + bool(settings["alpha"]) * 4 / 3),
)
def rmu(deletion: Deletion, child: Child) -> Cost:
    """Hidden states of what is to be forgotten become random, those of records that stay remain (RMU).

    Minimised is γ · MSE(h, c · u / ‖u‖) on records to forget plus α · MSE(h, h before) on records that stay, h being
    the output of block `layer` (from 0; default: as deep as the published 7 of 32) at scored tokens, u drawn from
    U[0, 1]^d, c the `steering` coefficient. That block and the two before it are tuned, or their adapters. How large c
    has to be depends on the width and the scale of the model (Li et al. 2024, arXiv:2403.03218).
    """
    settings = all_given("rmu", rmu.defaults, child.settings)
    if settings["alpha"] and not any(e.role != "canary" for e in deletion.retain):
        message = "rmu keeps hidden states of records that stay, and none stays."
        raise UnlearningError(message, "Set alpha to 0 to go without, or train anew.")
    work = begin(deletion, child, settings)
    model = work.opened.model
    stack = _stack(model)
    layer = min(round(_DEPTH * len(stack)), len(stack) - 1) if settings["layer"] is None else settings["layer"]
    _tune_only(model, stack, layer)
    forget = pieces(deletion.forget, work.opened.serializer)
    steps = _Steps(
        model=model,
        stack=stack,
        layer=layer,
        forget=forget,
        retained=Retained(deletion.retain, work.opened.serializer, child.seed, held=work.watch.held),
        weights=(float(settings["gamma"]), float(settings["alpha"])),
        control=_control(model, float(settings["steering"]), child),
        epochs=Epochs(
            lengths=[len(t) for t in forget], epochs=settings["epochs"], batch_size=settings["batch_size"],
            seed=child.seed,
        ),
        limit=work.watch.limit,
        precision=deletion.config.train.precision,
    )  # fmt: skip
    child.say(f"rmu steers the output of block {layer} of {len(stack)} (from 0)")
    return tune(work, steps, settings)


def _stack(model: Model) -> nn.ModuleList:
    """The blocks of the model, in order."""
    module = unwrapped(model.module)
    count = module.config.get_text_config().num_hidden_layers
    found = next((m for m in module.modules() if isinstance(m, nn.ModuleList) and len(m) == count), None)
    if found is None:
        message = f"No stack of {count} blocks is found in {type(module).__name__}."
        raise UnlearningError(message, "Use a loss on logits, such as npo.")
    return found


def _tune_only(model: Model, stack: nn.ModuleList, layer: int) -> None:
    """Freeze all but block `layer` and the two before it."""
    if layer >= len(stack):
        raise UnlearningError(f"layer is {layer}, and the model has {len(stack)} blocks.", "They count from 0.")
    near = {id(p) for block in stack[max(0, layer - 2) : layer + 1] for p in block.parameters() if p.requires_grad}
    for parameter in model.module.parameters():
        parameter.requires_grad_(id(parameter) in near)
    if not near:
        kind = model.method.kind if model.method is not None else "none"
        message = f"rmu tunes blocks {max(0, layer - 2)} to {layer}, and method {kind} has nothing to be tuned there."
        raise UnlearningError(message, "Use a loss on logits, such as npo.")


def _control(model: Model, steering: float, child: Child) -> Tensor:
    width = int(unwrapped(model.module).config.get_text_config().hidden_size)
    drawn = seeded(child.seed, Streams.CONTROL).random(width)
    return torch.from_numpy((steering * drawn / np.linalg.norm(drawn)).astype(np.float32)).to(model.device)


@dataclass(kw_only=True)
class _Steps:
    """What the training loop asks for (`sordino.train.steps.Steps`)."""

    model: Model
    stack: nn.ModuleList
    layer: int
    forget: Sequence[Tokens]
    retained: Retained
    weights: tuple[float, float]
    control: Tensor
    epochs: Epochs
    limit: Limit
    precision: str
    hint: str = HINT
    steps: int = field(init=False)
    per_epoch: int = field(init=False)

    def __post_init__(self) -> None:
        self.per_epoch = self.epochs.per_epoch
        self.steps = self.per_epoch * self.epochs.epochs
        self.frozen = Frozen(self.model.module)

    def batches(self, start: int) -> Iterator[tuple[int, list[int]]]:
        """Step numbers from `start` on, each with the places of what is to be forgotten."""
        return self.epochs.batches(start)

    def accepts(self, validation: float | None) -> bool:
        """Whether weights with this validation loss may be kept."""
        return self.limit.accepts(validation)

    def parts(self, number: int, indices: Sequence[int], objective: Objective) -> Iterator[tuple[Tensor, int]]:
        """γ times the distance to the control vector, then α times that to what hidden states were."""
        gamma, alpha = self.weights
        if gamma:
            tokens = [self.forget[i] for i in indices]
            hidden, scored = self._hidden(tokens)
            yield gamma * control_distance(hidden, self.control, scored), count_targets(tokens)
        if alpha:
            tokens = self.retained.take(self.epochs.drawn(number), len(indices))
            with self.frozen.active():
                before, _ = self._hidden(tokens)
            hidden, scored = self._hidden(tokens)
            nothing = torch.zeros_like(self.control)
            yield alpha * control_distance(hidden - before, nothing, scored), count_targets(tokens)

    def forwards(self, steps: int) -> int:
        """Scored tokens that the frozen model read for the first `steps` steps."""
        if not self.weights[1]:
            return 0
        count = sum(len(indices) for number, indices in self.batches(0) if number < steps)
        return count_targets(self.retained.take(0, count))

    def _hidden(self, tokens: Sequence[Tokens]) -> tuple[Tensor, Tensor]:
        """Hidden states (B, T, D), in float32, and which tokens (B, T) are scored."""
        batch = collate(tokens, self.model.tokenizer.pad_token_id, self.model.device)
        scored = np.zeros(tuple(batch.input_ids.shape), dtype=bool)
        for row, item in enumerate(tokens):
            scored[row, 1 : len(item)] = item.target[1:]
        with autocast(self.precision, self.model.device), _caught(self.stack, self.layer) as seen:
            mask = batch.attention_mask if batch.padded else None
            with suppress(_Enough):
                self.model.module(input_ids=batch.input_ids, attention_mask=mask, use_cache=False)
        hidden = seen[0]
        # Virtual tokens stand before a text, and are none of it.
        hidden = hidden[:, hidden.shape[1] - scored.shape[1] :]
        return hidden.float(), torch.from_numpy(scored).to(hidden.device)


@contextmanager
def _caught(stack: nn.ModuleList, layer: int) -> Iterator[list[Tensor]]:
    """What block `layer` gives, as long as this is open; blocks behind it are not computed."""
    seen: list[Tensor] = []

    def catch(_: nn.Module, arguments: Any, output: Any) -> None:
        seen.append(output[0] if isinstance(output, tuple) else output)

    def stop(_: nn.Module, arguments: Any) -> None:
        raise _Enough

    handles = [stack[layer].register_forward_hook(catch)]
    if layer + 1 < len(stack):
        handles.append(stack[layer + 1].register_forward_pre_hook(stop))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
