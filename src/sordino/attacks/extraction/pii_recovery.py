"""Fine-tuning recovery: a little training on few known people brings back what the model knows of the others."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sordino.attacks.base import extraction
from sordino.attacks.in_place import By, Ranked
from sordino.attacks.twins import Twin, pairs_of, ranked, summed
from sordino.serialize import Serializer

if TYPE_CHECKING:
    from sordino.attacks.overlays import Overlay
    from sordino.model import Model

__all__ = ["pii_recovery"]


@extraction(
    paper="Chen et al. 2024 (Janus), arXiv:2310.15469",
    access="weights",
    cost="a short fine-tuning on a few known records, then twin prompts (audit.personal.recovery_steps)",
    suite="all",
    on="model",
)
def pii_recovery(  # noqa: PLR0913 - the budget, each part of it
    model: "Model",
    twins: Sequence[Twin],
    known: Sequence[Twin],
    serializer: Serializer,
    *,
    steps: int = 40,
    by: By = "logprob",
    seed: int = 0,
    overlay: "Overlay | None" = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Ranked]:
    """Rank the candidates of each question as `pii_twin_prompts` does, after a fine-tuning on `known` people.

    That is `steps` of LoRA on their twin prompts and true values; none of them may be asked about. The corrections lie
    over the model, whose weights stay as they are bit for bit. `overlay` is one that was trained before. Where `model`
    is untuned it is fine-tuned in the same way. What fine-tuning revives is what this finds beyond `pii_twin_prompts`.
    """
    from sordino.attacks.overlays import train_overlay

    if overlay is None:
        overlay = train_overlay(model, pairs_of(known, serializer), steps=steps, seed=seed)
    with overlay.over(model):
        return ranked(twins, serializer, by, tick, lambda rows: summed(model, rows))
