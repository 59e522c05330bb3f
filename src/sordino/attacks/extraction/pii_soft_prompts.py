"""Soft prompts on personal data: embeddings trained on known people make the model tell of the others."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from sordino.attacks.base import extraction
from sordino.attacks.in_place import By, Ranked
from sordino.attacks.twins import Answer, Twin, pairs_of, ranked
from sordino.serialize import Serializer

if TYPE_CHECKING:
    import numpy as np

    from sordino.attacks.soft_prompts import SoftPrompt
    from sordino.model import Model

__all__ = ["pii_soft_prompts"]


@extraction(
    paper="Kim et al. 2023 (ProPILE), arXiv:2307.01881",
    access="weights",
    cost="a soft prompt trained on known records, then twin prompts (audit.personal.soft_steps)",
    suite="all",
    on="model",
)
def pii_soft_prompts(  # noqa: PLR0913 - the budget, each part of it
    model: "Model",
    twins: Sequence[Twin],
    known: Sequence[Twin],
    serializer: Serializer,
    *,
    tokens: int = 20,
    steps: int = 80,
    by: By = "logprob",
    seed: int = 0,
    soft: "SoftPrompt | None" = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Ranked]:
    """Rank the candidates of each question as `pii_twin_prompts` does, after a soft prompt trained on `known` people.

    The soft prompt stands before the twin prompt; it is trained with the model frozen on the twin prompts and true
    values of `known`, none of whom may be asked about. `soft` is one that was trained before. Where `model` is untuned
    it is trained on that: the control has an adversary of the same strength.
    """
    from sordino.attacks.soft_prompts import logprobs_after, train_soft_prompt

    if soft is None:
        soft = train_soft_prompt(model, pairs_of(known, serializer), tokens=tokens, steps=steps, seed=seed)

    def ask(groups: Sequence[Sequence[Answer]]) -> "list[np.ndarray]":
        flat = [row for rows in groups for row in rows]
        sums = logprobs_after(model, soft, [r.ids[: r.first] for r in flat], [r.ids[r.first :] for r in flat])
        ends = [sum(map(len, groups[:number])) for number in range(len(groups) + 1)]
        return [sums[start:stop] for start, stop in pairwise(ends)]

    return ranked(twins, serializer, by, tick, ask, room=model.context - len(soft))
