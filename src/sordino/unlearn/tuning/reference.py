"""The model as it was: a frozen copy of what is tuned on the shared base, and what it said of sequences, once."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from jaxtyping import Float64
from torch import nn

from sordino.model import Model
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.objective import Objective

__all__ = ["Frozen", "token_logprobs"]


class Frozen:
    """A copy of the tuned parameters of a module, which can be put in their place for a while.

    For adapters that is a second adapter on the same base; for full fine-tuning, a second copy of the weights.
    """

    def __init__(self, module: nn.Module) -> None:
        """Copy what is tuned in `module` now."""
        self.module = module
        copies: dict[int, nn.Parameter] = {}
        self.places: list[tuple[nn.Module, str, nn.Parameter]] = []
        for owner in module.modules():
            for name, parameter in owner.named_parameters(recurse=False, remove_duplicate=False):
                if parameter.requires_grad:
                    copy = nn.Parameter(parameter.detach().clone(), requires_grad=False)
                    # Tied weights stay tied.
                    self.places.append((owner, name, copies.setdefault(id(parameter), copy)))

    @contextmanager
    def active(self) -> Iterator[nn.Module]:
        """The module as it was, in evaluation mode and without gradients, as long as this is open."""
        tuned = [getattr(owner, name) for owner, name, _ in self.places]
        was_training = self.module.training
        self.module.eval()
        for owner, name, frozen in self.places:
            owner._parameters[name] = frozen
        try:
            with torch.no_grad():
                yield self.module
        finally:
            for (owner, name, _), parameter in zip(self.places, tuned, strict=True):
                owner._parameters[name] = parameter
            self.module.train(was_training)


def token_logprobs(
    model: Model, tokens: Sequence[Tokens], objective: Objective, batch_size: int
) -> list[Float64[np.ndarray, " K"]]:
    """The ln p of each scored token of each of `tokens`."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    found: list[np.ndarray] = [np.zeros(0)] * len(tokens)
    with model.active():
        for start in range(0, len(order), batch_size):
            part = order[start : start + batch_size]
            batch = collate([tokens[i] for i in part], model.tokenizer.pad_token_id, model.device)
            scores = objective.scores(batch).log_softmax(dim=-1)
            values = scores.gather(1, batch.wanted[:, None])[:, 0].double().cpu().numpy()
            counts = [int(tokens[i].target[1:].sum()) for i in part]
            for i, own in zip(part, np.split(values, np.cumsum(counts)[:-1]), strict=True):
                found[i] = own
    return found
