"""Extraction by a soft prompt: embeddings, trained on known records, before the beginning of another."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.attacks.base import extraction
from sordino.errors import AuditError

if TYPE_CHECKING:
    from sordino.attacks.soft_prompts import SoftPrompt
    from sordino.model import Model

__all__ = ["Elicited", "soft_prompt"]


@dataclass(frozen=True, kw_only=True)
class Elicited:
    """The token ids that greedy decoding puts after each prefix: behind a `soft` prompt, and `plain`, without it."""

    soft: list[np.ndarray]
    plain: list[np.ndarray]


@extraction(
    paper="Zhang et al. 2023, arXiv:2307.04401",
    access="weights",
    inputs=("known",),
    cost="one soft prompt trained a model, and two passages decoded a record asked about (audit.soft_prompt)",
    suite="all",
    on="model",
)
def soft_prompt(
    model: "Model",
    soft: "SoftPrompt",
    prefixes: Sequence[np.ndarray],
    lengths: Sequence[int],
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> Elicited:
    """Decode what a model puts after beginnings of records, with a soft prompt before them and without.

    `soft` is of `sordino.attacks.soft_prompts.train_soft_prompt`: trained, the model frozen, on beginnings and
    passages of records that the adversary knows to be members. `lengths[i]` tokens follow the token ids
    `prefixes[i]`; `tick` is told how many are done. This is Ethicist but for its second part: it samples many
    suffixes and ranks them by a calibrated confidence, where here the one greedy suffix is taken.
    Raises `AuditError` for an empty prefix, and as `continue_after` does.
    """
    from sordino.attacks.soft_prompts import continue_after
    from sordino.generate import greedy

    empty = sum(not len(prefix) for prefix in prefixes)
    if empty:
        message = f"{empty} of {len(prefixes)} prefixes are empty: without a soft prompt nothing is asked there."
        raise AuditError(message, "Give prefixes of one token or more.")
    made = continue_after(model, soft, prefixes, lengths, tick=tick)
    return Elicited(soft=made, plain=greedy(model, prefixes, lengths))
