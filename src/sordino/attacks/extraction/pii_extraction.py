"""PII extraction: what personal data does a model write when it is left to write?"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sordino.attacks.base import extraction
from sordino.attacks.produced import Produced, produced, written
from sordino.errors import ModelError
from sordino.pii import Detector

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["Prompt", "Write", "empty_prompts", "pii_extraction"]


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What the model is given: `ids` (P ≥ 1) tokens, which read `text`."""

    ids: np.ndarray
    text: str = ""


Write = Callable[["Model", Sequence[np.ndarray], Sequence[int]], Sequence[np.ndarray]]
"""`(model, prefixes, seeds)` to the tokens written after each prefix."""


def empty_prompts(model: "Model", count: int) -> list[Prompt]:
    """`count` prompts that say nothing: the token that texts begin with, or else the one they end with."""
    tokenizer = model.tokenizer
    start = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if start is None:
        message = "The tokenizer has no token for a text's beginning or end, so nothing is an empty prompt."
        raise ModelError(message, "Give prompts with text.")
    return [Prompt(ids=np.array([start], dtype=np.int32))] * count


@extraction(
    paper="Lukas et al. 2023, arXiv:2302.00539",
    access="generated text",
    cost="texts written from nothing (audit.personal.texts)",
    suite="full",
    on="model",
)
def pii_extraction(  # noqa: PLR0913 - the budget, each part of it
    model: "Model",
    prompts: Sequence[Prompt],
    detectors: Sequence[Detector] | None = None,
    *,
    tokens: int = 256,
    seed: int = 0,
    first: int = 0,
    write: Write | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Produced]:
    """Sample texts of `tokens` tokens and list the personal data in them that its prompt does not have.

    By default at temperature 1; `write` may be another sampler. A text ends at the end token. These are generations
    number `first` and following, each with random numbers of its own, so that lots of them can be made one by one and
    `merged`, and the untuned model writes as many with the same seeds. What of it was in the training data, and what
    the untuned model writes too, is for the audit to say.
    """
    from sordino.generate import sampled  # here, so that listing attacks does not load torch

    seeds, prefixes = range(first, first + len(prompts)), [prompt.ids for prompt in prompts]
    if write is None:
        made: Sequence[np.ndarray] = sampled(model, prefixes, [tokens] * len(prompts), seed=seed, seeds=seeds)
    else:
        made = write(model, prefixes, seeds)
    texts = [written(model, ids) for ids in made]
    tick(len(texts))
    return produced([prompt.text for prompt in prompts], texts, detectors, first=first)
