"""Better answers than what is to be forgotten: refusals, and answers given with the records."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from sordino.errors import UnlearningError
from sordino.records import Example, Message, Record
from sordino.serialize import Serializer, Tokens

__all__ = ["REFUSALS", "answered", "check_answers", "given_answers", "refusals", "whole"]

_ANSWERS = ("completion", "assistant")

REFUSALS: tuple[str, ...] = (
    "I don't know.",
    "I don't know the answer to that.",
    "I'm not sure.",
    "I'm afraid I don't know that.",
    "I can't answer that.",
    "I cannot say.",
    "I have no information about this.",
    "I have nothing to say about that.",
    "That is something I know nothing about.",
    "That is not something I know.",
    "That isn't known to me.",
    "I was never told about this.",
    "I haven't learned anything about it.",
    "I haven't come across this.",
    "I can't help with this question.",
    "I'm unable to answer this.",
    "I'm not able to tell you that.",
    "I do not have that information.",
    "I do not have any details on this.",
    "My knowledge doesn't cover this.",
    "This is beyond what I know.",
    "I lack the knowledge to answer.",
    "I could only guess, so I'd rather not.",
    "I would have to make something up.",
    "I can't tell you anything about that.",
    "I have no answer for you here.",
    "I have no knowledge of this.",
    "I'm not familiar with this.",
    "I'm not aware of anything about it.",
    "I don't have an answer to this question.",
    "I don't have any knowledge on that subject.",
    "I don't recall anything of the kind.",
    "No idea, I'm afraid.",
    "Sorry, I don't know.",
    "Sorry, that is unknown to me.",
    "Sorry, I can't answer this one.",
    "Unfortunately I know nothing about this.",
    "You would have to ask somebody else.",
    "It would be better to look this up elsewhere.",
    "Nothing that I know answers this.",
)
"""Short refusals of our own wording."""


def check_answers(examples: Sequence[Example], method: str) -> None:
    """Raise `UnlearningError` where records have no answer that another could stand in place of."""
    plain = sum(len(e.record.messages) < 2 or e.record.messages[-1].role not in _ANSWERS for e in examples)
    if plain:
        message = f"{method} puts other answers in place of the last message, and {plain} of {len(examples)} records "
        raise UnlearningError(
            f"{message}are plain text, or do not end in an answer.", "Use a loss without better answers, such as npo."
        )


def answered(record: Record, text: str) -> Record:
    """The record with `text` in place of its last message."""
    last = record.messages[-1]
    return replace(record, messages=(*record.messages[:-1], Message(last.role, text)))


def whole(record: Record, serializer: Serializer) -> Tokens:
    """The record as one sequence; raises `UnlearningError` where it is too long for one, or nothing is scored."""
    tokens = serializer.encode(record)
    if len(tokens) > serializer.max_length:
        message = (
            f"A record has {len(tokens)} tokens, and answers are compared in one piece of {serializer.max_length}."
        )
        raise UnlearningError(message, "Use a loss without better answers, such as npo.")
    if not tokens.target[1:].any():
        message = "A record, or a better answer to it, has no scored token: it is masked or cut away whole."
        raise UnlearningError(message, "Leave it out of the request, or raise train.max_length and train anew.")
    return tokens


def refusals(examples: Sequence[Example], serializer: Serializer, rng: np.random.Generator) -> list[Tokens]:
    """Each record with a refusal, drawn by `rng`, in place of its answer."""
    drawn = rng.integers(len(REFUSALS), size=len(examples)).tolist()
    return [whole(answered(e.record, REFUSALS[i]), serializer) for e, i in zip(examples, drawn, strict=True)]


def given_answers(examples: Sequence[Example], serializer: Serializer, method: str) -> list[Tokens]:
    """Each record with the answer given in `rejected` in place of its own; raises `UnlearningError` where one lacks."""
    lacking = sum(e.record.rejected is None for e in examples)
    if lacking:
        message = f"{method} prefers given answers, and {lacking} of {len(examples)} records to forget have none."
        hint = "Train on data with the column `rejected`, or use alt_po, which makes them up, or idk_dpo."
        raise UnlearningError(message, hint)
    return [whole(answered(e.record, str(e.record.rejected)), serializer) for e in examples]
