"""The objective of training: the summed loss of a batch, its arithmetic, and what it can leave out."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sordino.classifier import class_logits
from sordino.errors import ConfigError
from sordino.model import Model, head_of
from sordino.model.methods import virtual_tokens
from sordino.serialize import Tokens
from sordino.train.collate import Batch

__all__ = ["Objective", "autocast", "check_precision", "loss_scaler", "private_scale", "recomputed"]

_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def check_precision(precision: str, device: torch.device) -> None:
    """Raise `ConfigError` where `device` cannot train in `precision`."""
    if precision == "fp16" and device.type != "cuda":
        message = f"train.precision is fp16, which needs CUDA, and model.device is {device.type}."
        raise ConfigError(message, "Use bf16, which needs no loss scaling, or fp32.")


def autocast(precision: str, device: torch.device) -> AbstractContextManager[Any]:
    """Matrix products in `precision`, sums and weights in float32 (Micikevicius et al. 2018, section 3.1)."""
    return nullcontext() if precision == "fp32" else torch.autocast(device.type, dtype=_TYPES[precision])


def private_scale(precision: str) -> float:
    """What losses of private training are multiplied by: always the same, since a search for it would read the data.

    A unit whose gradients overflow even so adds nothing. `torch.amp.GradScaler` begins with 65,536 for the mean of a
    batch; these are losses of single units, whose gradients are as much larger as the batch has units.
    """
    return 1024.0 if precision == "fp16" else 1.0


def loss_scaler(precision: str, device: torch.device) -> torch.amp.GradScaler:
    """Scales the loss so that float16 gradients do not vanish (ibid., section 3.2); else passes it on as it is."""
    return torch.amp.GradScaler(device.type, enabled=precision == "fp16")


@contextmanager
def recomputed(module: Any, *, on: bool) -> Iterator[None]:
    """While it lasts, layers keep their inputs only and compute the rest again (Chen et al. 2016).

    Raises `ConfigError` where the architecture cannot.
    """
    if not on:
        yield
        return
    try:
        # Non-reentrant: it replays dropout and autocast, and does not depend on inputs that require gradients.
        module.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    except (AttributeError, ValueError) as error:
        message = f"train.gradient_checkpointing is true, and {module.config.model_type} does not support it."
        raise ConfigError(message, "Set it to false; more train.accumulation saves memory too.") from error
    try:
        yield
    finally:
        module.activation_checkpointing_disable()
        # Switched on along with it where weights are frozen, and not always switched off.
        module.disable_input_require_grads()


class Objective:
    """The NLL, in nats, summed over the targets of a batch.

    Padding and prompts need no logits: a hook hands the head the scored positions only. Padding on the
    right needs no mask where attention is causal. Both are tried on a few tokens first; where they
    would change anything, whole logits and the mask are used.
    """

    def __init__(self, model: Model, precision: str = "fp32", *, picks: bool = True) -> None:
        """Try the shortcuts on `model`; a batch is then computed in `precision`.

        Without `picks` the head keeps the rows of a batch apart, as gradients of single rows need it.
        """
        self.module, self.precision, self.device = model.module, precision, model.device
        self.classifies, self.causal, self.picks = model.classes is not None, False, False
        if self.classifies:
            return
        self.head = head_of(model.module)
        with model.active():
            self.causal = self._is_causal()
            # Where tokens of a method's own stand before a text, its logits are cut to the text's length.
            self.picks = picks and not virtual_tokens(model.method) and self._can_pick()

    def __call__(self, batch: Batch) -> Tensor:
        """The loss of `batch`, summed, not averaged: parts have different numbers of targets and weigh accordingly."""
        return cross_entropy(self.scores(batch), batch.wanted, reduction="sum")

    def rows(self, batch: Batch) -> Tensor:
        """The loss of each row of `batch` (B), summed over its targets."""
        losses = cross_entropy(self.scores(batch), batch.wanted, reduction="none")
        if self.classifies:
            return losses
        owner = batch.positions // batch.input_ids.shape[1]
        return losses.new_zeros(len(batch.input_ids)).index_add(0, owner, losses)

    def targets_of(self, tokens: Tokens) -> int:
        """How many targets a sequence has."""
        return 1 if self.classifies else int(tokens.target[1:].sum())

    def scores(self, batch: Batch) -> Tensor:
        """Logits of what is scored, in float32 or more: (N, V), or of a classifier (B, C)."""
        mask = batch.attention_mask if batch.padded and not self.causal else None
        with autocast(self.precision, self.device):
            if self.classifies:
                logits = class_logits(self.module, batch.input_ids, batch.attention_mask)
            else:
                logits = self._logits(batch.input_ids, mask, batch.positions)
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def _logits(self, ids: Tensor, mask: Tensor | None, positions: Tensor) -> Tensor:
        """Logits (N, V) at `positions` of the flattened batch."""
        if not self.picks:
            return _chosen(self._forward(ids, mask), ids, positions)

        def pick(_: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (_chosen(arguments[0], ids, positions)[None], *arguments[1:])

        handle = self.head.register_forward_pre_hook(pick)
        try:
            return self._forward(ids, mask)[0]
        finally:
            handle.remove()

    def _forward(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        logits: Tensor = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        return logits

    def _probe(self) -> Tensor:
        vocabulary = int(self.module.config.get_text_config().vocab_size)
        return torch.arange(8, device=self.device)[None] % vocabulary

    def _is_causal(self) -> bool:
        ids = self._probe()
        try:
            return _close(self._forward(ids, None)[:, :5], self._forward(ids[:, :5], None))
        except (RuntimeError, TypeError, ValueError, AttributeError):
            return False

    def _can_pick(self) -> bool:
        ids, positions = self._probe(), torch.tensor([1, 4, 6], device=self.device)
        whole = _chosen(self._forward(ids, torch.ones_like(ids)), ids, positions)
        self.picks = True
        try:
            return _close(self._logits(ids, torch.ones_like(ids), positions), whole)
        except (IndexError, RuntimeError, TypeError, ValueError):
            return False


def _chosen(values: Tensor, ids: Tensor, positions: Tensor) -> Tensor:
    """Rows of `values` (B, ≥T, d) at `positions` of the flattened (B, T); what stands before T is virtual tokens."""
    return values[:, values.shape[1] - ids.shape[1] :].flatten(0, 1).index_select(0, positions)


def _close(found: Tensor, wanted: Tensor) -> bool:
    # Relative to the largest logit: a freshly initialised model has small ones.
    return found.shape == wanted.shape and bool((found - wanted).abs().max() <= 1e-4 * wanted.abs().max())
