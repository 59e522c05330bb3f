"""PII inference: which of some known values stood at a place in a training record?"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sordino.attacks.base import extraction
from sordino.attacks.in_place import By, Ranked, in_place, rank
from sordino.attacks.mentions import Question
from sordino.serialize import Serializer

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["pii_inference"]


@extraction(
    paper="Lukas et al. 2023, arXiv:2302.00539",
    access="log-probabilities",
    cost="a record for each candidate of each entity asked about (audit.personal)",
    suite="full",
    on="model",
)
def pii_inference(
    model: "Model",
    questions: Sequence[Question],
    serializer: Serializer,
    *,
    by: By = "perplexity",
    tick: Callable[[int], None] = lambda done: None,
) -> list[Ranked]:
    """Rank the candidates of each question by the perplexity of the whole record with each of them in place.

    The adversary knows the record but for one entity: what stands before it, and what follows, which counts as well.
    By chance the true value comes first once in as many times as there are candidates. Other personal data in the
    record is left as it is, where the paper masks it.
    """
    found = []
    for question in questions:
        made = in_place(model, question.mention, question.values, serializer)
        count = len(question.values)
        if made is None:
            found.append(Ranked(rank=None, candidates=count, queries=0, tried=False))
        else:
            place = rank(made.scores(by), question.answer)
            found.append(Ranked(rank=place, candidates=count, queries=count))
        tick(1)
    return found
