"""Twin prompts: does the model link what belongs to one person, when it is asked in other words than the record's?"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sordino.attacks.base import extraction
from sordino.attacks.in_place import By, Ranked
from sordino.attacks.twins import Twin, ranked, summed
from sordino.serialize import Serializer

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["pii_twin_prompts"]


@extraction(
    paper="Kim et al. 2023 (ProPILE), arXiv:2307.01881",
    access="log-probabilities",
    cost="two short prompts for each candidate of each entity asked about (audit.personal)",
    suite="full",
    on="model",
)
def pii_twin_prompts(
    model: "Model",
    twins: Sequence[Twin],
    serializer: Serializer,
    *,
    by: By = "logprob",
    tick: Callable[[int], None] = lambda done: None,
) -> list[Ranked]:
    """Rank the candidates of each question by how likely they are after prompts made of the person's other entities.

    The likelihood is the product over the tokens of the value alone; of several prompts the mean of its logarithm
    counts, so that none is chosen. `by` "perplexity" ranks by the mean a token. The paper asks how likely the true
    value is given what else is known; here that is compared with candidates of its kind.
    """
    return ranked(twins, serializer, by, tick, lambda rows: summed(model, rows))
