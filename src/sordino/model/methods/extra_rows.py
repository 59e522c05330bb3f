"""Rows for tokens that a model does not have, hung behind its head for as long as they are needed.

Such a token is the last of its record: nothing is predicted from it, so a row of its own in the embedding would never
have a gradient, and there is none. Where its id stands among the inputs, the model reads its own last token; whether
head and embedding are tied makes no difference.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sordino.errors import ModelError
from sordino.model.methods import head_of, unwrapped

__all__ = ["EXTRA", "ExtraRows", "extra_rows", "first_new", "hang", "initial_rows", "width_of"]

EXTRA = "sordino_rows"


class ExtraRows(nn.Module):
    """`rows` (m, d) are the rows of m more tokens in a head of width d; `first` is the id of the first of them.

    `last` is the last id that the embedding has a row for.
    """

    def __init__(self, initial: Tensor, first: int, last: int) -> None:
        super().__init__()
        self.first, self.last = first, last
        self.rows = nn.Linear(initial.shape[1], initial.shape[0], bias=False, device=initial.device)
        self.rows.weight = nn.Parameter(initial.detach().clone())

    def known(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As a hook before the embedding: ids it has no row for become its last."""
        clamped = {k: v.clamp(max=self.last) if k in ("input", "input_ids") else v for k, v in kwargs.items()}
        return tuple(a.clamp(max=self.last) if n == 0 else a for n, a in enumerate(args)), clamped

    def append(self, module: nn.Module, args: tuple[Any, ...], logits: Tensor) -> Tensor:
        """As a hook behind the head: its logits (..., V), then those of the new tokens (..., m)."""
        more: Tensor = self.rows(args[0])
        return torch.cat([logits, more.to(logits.dtype)], dim=-1)


def initial_rows(module: Any, count: int) -> Tensor:
    """Rows (count, d), all of them the mean of the rows of the model's head.

    All new tokens are alike to begin with, so that what tells them apart later was trained.
    """
    weight = _weight(module).detach()
    return weight.float().mean(0).to(weight.dtype).repeat(count, 1)


def hang(module: Any, initial: Tensor) -> tuple[ExtraRows, list[RemovableHandle]]:
    """The rows `initial` (m, d) behind the head of `module`, and the hooks that put them there."""
    embedding, head = unwrapped(module).get_input_embeddings(), head_of(module)
    made = ExtraRows(initial, _weight(module).shape[0], embedding.weight.shape[0] - 1)
    hooks = [
        embedding.register_forward_pre_hook(made.known, with_kwargs=True),
        head.register_forward_hook(made.append),
    ]
    module.add_module(EXTRA, made)
    return made, hooks


@contextmanager
def extra_rows(module: Any, initial: Tensor) -> Iterator[ExtraRows]:
    """The rows `initial` (m, d) behind the head of `module`, trainable, as long as this is open; then no trace of them.

    Raises `ModelError` where the head is no module of the usual kind.
    """
    made, hooks = hang(module, initial)
    try:
        yield made
    finally:
        for hook in hooks:
            hook.remove()
        delattr(module, EXTRA)


def first_new(module: Any) -> int:
    """The id of the first token that the head of `module` has no row for."""
    return int(_weight(module).shape[0])


def width_of(module: Any) -> int:
    """The width d of the head of `module`."""
    return int(_weight(module).shape[1])


def _weight(module: Any) -> Tensor:
    """The weight (V, d) of the head; its base's where an adapter lies on it."""
    head: Any = head_of(module)
    weight = getattr(getattr(head, "base_layer", head), "weight", None)
    if not isinstance(weight, Tensor) or weight.dim() != 2 or not weight.is_floating_point():
        message = f"The head is {type(head).__name__}, of which new tokens' rows cannot be made."
        raise ModelError(message, "Use another canaries.audit.design.")
    return weight
