"""Where a record's answer begins, and what the model writes there: ROUGE-L of it is how much is still told."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from sordino.audit.continuations import text_after
from sordino.records import Record
from sordino.serialize import TARGETS, Serializer
from sordino.similarity import Rouge, rouge_l

__all__ = ["LONGEST", "Beginning", "answer_start", "beginning", "overlap", "written"]

LONGEST = 128
"""Tokens of an answer at most."""

Tick = Callable[[int], None]


class Start(NamedTuple):
    """The tokens `ids` of a whole record, and the place `at` where its last answer begins."""

    ids: np.ndarray
    at: int


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """The tokens `prefix` that a model reads, how many it may write (`length`), and what is `true` after them.

    With `end`, it stops at the end token.
    """

    prefix: np.ndarray
    length: int
    true: str
    end: bool


def answer_start(record: Record, serializer: Serializer) -> Start:
    """The tokens of `record`, and the first that belongs to its last answer: as it was trained on, tokenised whole."""
    text, spans = serializer.render(record)
    ids, offsets = serializer.tokenize(text, template=serializer.templated(record))
    begin = spans[-1][0] if spans else len(text)
    at = next((number for number, (_, stop) in enumerate(offsets) if stop > begin), len(ids))
    leading = serializer.leading(ids)
    first = [serializer.tokenizer.bos_token_id] if leading else []
    return Start(np.array([*first, *ids], dtype=np.int32), at + leading)


def beginning(record: Record, serializer: Serializer, context: int) -> Beginning:
    """What is asked of a record: its last answer after all before it; of a plain text the second half after the first.

    Answers have at most `LONGEST` tokens and what a model of `context` tokens has room for.
    """
    ids, at = answer_start(record, serializer)
    if record.messages[-1].role == "text":
        if serializer.too_long == "truncate":
            ids = ids[: serializer.max_length]
        half = max(1, (len(ids) + 1) // 2)
        length = max(1, min(len(ids) - half, LONGEST))
        true = text_after(serializer.tokenizer, ids[:half], ids[half : half + length])
        return Beginning(prefix=_last(ids[:half], context - length), length=length, true=true, end=False)
    true = next((m.content for m in reversed(record.messages) if m.role in TARGETS), "")
    # A prompt that leaves no room loses its beginning rather than the answer.
    room = min(LONGEST, context - min(at, context // 2))
    end = serializer.tokenizer.eos_token_id is not None
    return Beginning(prefix=_last(ids[:at], context - room), length=room, true=true, end=end)


def _last(ids: np.ndarray, count: int) -> np.ndarray:
    return ids[-count:] if len(ids) > count else ids


def written(model: Any, beginnings: Sequence[Beginning], tick: Tick = lambda done: None) -> list[str]:
    """What `model` writes after each beginning, decoding greedily."""
    from sordino.generate import Request, generate

    requests = [Request(prefix=b.prefix, length=b.length, end=b.end) for b in beginnings]
    return [made.text for made in generate(model, requests, tick=tick)]


def overlap(model: Any, beginnings: Sequence[Beginning], tick: Tick = lambda done: None) -> Rouge:
    """ROUGE-L of what `model` writes after each beginning with what is true."""
    return rouge_l(written(model, beginnings, tick), [b.true for b in beginnings])
