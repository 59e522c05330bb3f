"""The loss on records that are not trained on."""

from collections.abc import Sequence

from torch.nn.functional import cross_entropy

from sordino.model import Model
from sordino.serialize import Tokens
from sordino.train.collate import collate
from sordino.train.objective import Objective

__all__ = ["validation", "validation_loss"]


def validation_loss(
    model: Model, tokens: Sequence[Tokens], batch_size: int, objective: Objective | None = None
) -> float | None:
    """The mean NLL a token (of a classifier: a record), in nats, over `tokens`; None where there are none."""
    found = validation(model, tokens, batch_size, objective or Objective(model))
    return None if found is None else found[0]


def validation(
    model: Model, tokens: Sequence[Tokens], batch_size: int, objective: Objective
) -> tuple[float, float | None] | None:
    """The mean loss over `tokens` and, of a classifier, its accuracy; None where there are none."""
    order = sorted(range(len(tokens)), key=lambda i: len(tokens[i]))
    total, count, right = 0.0, 0, 0
    with model.active():
        for start in range(0, len(order), batch_size):
            chosen = [tokens[i] for i in order[start : start + batch_size]]
            batch = collate(chosen, model.tokenizer.pad_token_id, model.device)
            scores = objective.scores(batch)
            total += float(cross_entropy(scores, batch.wanted, reduction="sum"))
            count += batch.targets
            if model.classes is not None:
                right += int((scores.argmax(dim=-1) == batch.wanted).sum())
    if not count:
        return None
    return total / count, None if model.classes is None else right / count
