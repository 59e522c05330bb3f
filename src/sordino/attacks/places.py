"""The place of a secret in a record: the tokens before it, and the tokens of whatever else could stand there.

A candidate is tokenised at the end of what stands before the secret, as the serializer would tokenise it. The
tokens before are the context, and have to be the same for all; a token that begins before the secret
and reaches into it is part of the candidate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from jaxtyping import Int

from sordino.errors import AuditError
from sordino.records import Record
from sordino.serialize import Serializer

__all__ = ["Place", "find_place"]

Split = Callable[[str], tuple[list[int], list[tuple[int, int]]]]
"""Text to token ids and their character spans."""

# Text before the secret that goes with every candidate: the whole of it, or so much and a bit more.
_TAIL = 160
# How many tokens before the secret candidates may change.
_BACK = 3


@dataclass(frozen=True, kw_only=True)
class Place:
    """`context` (P) tokens and then a candidate, which begins with the text `lead`, the rest of a token.

    `following` is the token after the secret in the record, None where it is the last one. `tail` is the text
    before the secret that candidates are tokenised with, `shared` its tokens that are part of the context.
    """

    serializer: Serializer
    template: bool
    context: Int[np.ndarray, " P"]
    following: int | None
    lead: str
    tail: str
    shared: tuple[int, ...]

    def rows(self, candidates: Sequence[str]) -> list[list[int] | None]:
        """The tokens of each candidate after the context; None where it changes the tokens of the context."""
        shared, count = list(self.shared), len(self.shared)
        return [ids[count:] if ids[:count] == shared else None for ids in self._encode(candidates)]

    def unreadable(self, candidates: Sequence[str]) -> list[str]:
        """The characters of `candidates`, blanks aside, that the tokenizer drops or reads as unknown."""
        chars = sorted({char for text in candidates for char in text if not char.isspace()})
        [nothing], unknown = self._encode([""]), self.serializer.tokenizer.unk_token_id
        found = zip(chars, self._encode(chars), strict=True)
        return [char for char, ids in found if ids == nothing or unknown in ids[len(self.shared) :]]

    def _encode(self, candidates: Sequence[str]) -> list[list[int]]:
        encoded = self.serializer.tokenizer(
            [self.tail + candidate for candidate in candidates],
            add_special_tokens=False,
            split_special_tokens=not self.template,
            return_attention_mask=False,
            verbose=False,
        )
        return [list(ids) for ids in encoded["input_ids"]]


def find_place(record: Record, span: tuple[int, int], serializer: Serializer, probes: Sequence[str]) -> Place:
    """The place of the characters `span` of the text that the serializer renders of `record`.

    `probes` are candidates for which the tokens of the context must be the same. Raises `AuditError`, which
    never says what the secret is, where the tokenizer does not allow that.
    """
    text, _ = serializer.render(record)
    start, stop = span
    where = f"characters {start} to {stop} of record {record.id}"
    whole, template = serializer.encode(record).ids, serializer.templated(record)
    split = partial(serializer.tokenize, template=template)
    ids, spans = split(text[:stop])
    begin = serializer.leading(ids)
    end = begin + len(ids)
    if end > min(len(whole), serializer.max_length):
        message = f"The secret at {where} ends {end} tokens into it; the limit is {serializer.max_length}."
        raise AuditError(message, "Raise train.max_length.")
    if whole[begin:end].tolist() != ids:
        message = f"The tokenizer splits {where} differently when the text after them follows."
        raise AuditError(message, "Widen the span and the format up to the next space or punctuation mark.")
    following = int(whole[end]) if end < len(whole) else None
    first = sum(stop_ <= start for _, stop_ in spans)
    for shared in range(first, max(-1, first - _BACK - 1), -1):
        if begin + shared < 1:
            break
        before = spans[shared - 1][1] if shared else 0
        tail, same = _tail(split, text[:stop], start, ids, spans, shared)
        place = Place(
            serializer=serializer, template=template, context=whole[: begin + shared], following=following,
            lead=text[before:start], tail=tail, shared=same,
        )  # fmt: skip
        if None not in place.rows(probes):
            return place
    if begin + first < 1:
        message = f"Nothing stands before {where}, so the model has nothing to go on from."
        raise AuditError(message, "Ask about a secret further on in a record.")
    message = f"What stands at {where} changes how the tokenizer splits the text before."
    raise AuditError(message, "Widen the span and the format to begin after a space.")


def _tail(
    split: Split, upto: str, start: int, ids: list[int], spans: list[tuple[int, int]], shared: int
) -> tuple[str, tuple[int, ...]]:
    """The end of the text before the secret that is enough to tokenise it, and its first tokens."""
    own = ids[shared:]
    for first in range(shared - 1, 0, -1):
        begin = spans[first][0]
        if start - begin < _TAIL or not (upto[begin].isspace() or upto[begin - 1].isspace()):
            continue
        found, _ = split(upto[begin:])
        shorter = found[: len(found) - len(own)]
        # Tokens at the cut may be others; those next to the secret may not.
        if found[len(shorter) :] == own and shorter[-8:] == ids[max(0, shared - 8) : shared]:
            return upto[begin:start], tuple(shorter)
        break
    return upto[:start], tuple(ids[:shared])
