"""How likely a record is with one value or another in the place of an entity: what stands before it is read once."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from jaxtyping import Float64, Int64

from sordino.attacks.mentions import Mention
from sordino.errors import ConfigError
from sordino.serialize import Serializer, Tokens
from sordino.signals import Statistics

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["By", "InPlace", "Ranked", "before", "in_place", "rank"]

By = Literal["perplexity", "logprob"]
"""The mean ln p of all tokens of the record, or its sum: the first favours long candidates, the second short ones."""

# Stand-ins that have nothing in common: what all their records begin with is what stands before the entity.
_STAND_INS = ("0", "Q", "(")


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Where the true value came among `candidates`: `rank` 1 is the best, and tied ones share their mean rank.

    None: it was not among them. `queries` counts the texts that the model was asked for or about. Not `tried` is what
    the model never saw: an entity behind the longest record's end.
    """

    rank: float | None
    candidates: int
    queries: int
    tried: bool = True


@dataclass(frozen=True, kw_only=True)
class InPlace:
    """Of n candidates: the summed ln p, in nats, of the whole record with each in place, and the tokens it is of."""

    logprob: Float64[np.ndarray, " n"]
    tokens: Int64[np.ndarray, " n"]

    def scores(self, by: str) -> Float64[np.ndarray, " n"]:
        """What candidates are ranked by; higher is better."""
        if by not in ("perplexity", "logprob"):
            raise ConfigError(f"by is {by!r}.", "Rank by 'perplexity' or 'logprob'.")
        return self.logprob / np.maximum(self.tokens, 1) if by == "perplexity" else self.logprob


def _shared(rows: Sequence[np.ndarray]) -> int:
    """With how many tokens all `rows` begin."""
    count = min(map(len, rows))
    differ = np.zeros(count, dtype=bool)
    for row in rows[1:]:
        differ |= row[:count] != rows[0][:count]
    return int(np.argmax(differ)) if differ.any() else count


def before(mention: Mention, serializer: Serializer) -> np.ndarray | None:
    """The tokens before a mention; None where it stands behind the longest record's end.

    The record is tokenised as a whole with different things in its place, so a blank that a tokenizer joins to the
    entity is part of the entity.
    """
    rows = [serializer.encode(mention.with_value(v)).ids for v in (*_STAND_INS, mention.value)]
    shared = _shared(rows)
    return None if all(len(row) == shared for row in rows) else rows[0][:shared]


def in_place(model: "Model", mention: Mention, values: Sequence[str], serializer: Serializer) -> InPlace | None:
    """The likelihood of the record with each of `values` in place; None where that makes no difference to its tokens.

    All tokens count but the first, also those that training does not score: they are the adversary's to ask about.
    Each record is tokenised as a whole; keys and values of the tokens that all begin with are computed once.
    """
    from sordino.collect import collect  # here, so that listing attacks does not load torch

    rows = [serializer.encode(mention.with_value(value)).ids for value in values]
    shared = _shared(rows)
    if all(len(row) == shared for row in rows):
        return None
    front = max(0, shared - 1)
    rest = [_tokens(row[front:]) for row in rows]
    if front and max(map(len, rest)) <= model.context - front:
        own = collect(model, [_tokens(rows[0][:shared])]).logprob
        sums = float(np.sum(own, dtype=np.float64)) + _sums(collect(model, rest, after=rows[0][:front]))
    else:
        sums = _sums(collect(model, [_tokens(row) for row in rows]))
    return InPlace(logprob=sums, tokens=np.array([len(row) - 1 for row in rows], dtype=np.int64))


def _tokens(ids: np.ndarray) -> Tokens:
    target = np.ones(len(ids), dtype=bool)
    target[:1] = False
    return Tokens(ids=ids, target=target, text="")


def _sums(statistics: Statistics) -> np.ndarray:
    running = np.concatenate([[0.0], np.cumsum(statistics.logprob, dtype=np.float64)])
    sums: np.ndarray = running[statistics.offsets[1:]] - running[statistics.offsets[:-1]]
    return sums


def rank(scores: Float64[np.ndarray, " n"], answer: int) -> float:
    """The place of number `answer` from the highest of `scores`, 1 to n; of tied ones the mean."""
    own = scores[answer]
    return 1.0 + float((scores > own).sum()) + 0.5 * float((scores == own).sum() - 1)
