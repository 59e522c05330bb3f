"""All the secrets a canary could have held, as tokens that follow one context."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import ClassVar

import numpy as np
from jaxtyping import Int

from sordino.attacks.tries import RowTrie
from sordino.canaries import Canary
from sordino.errors import AuditError
from sordino.records import Record
from sordino.serialize import Serializer

__all__ = ["Space", "secret_space"]

Split = Callable[[str], tuple[list[int], list[tuple[int, int]]]]
"""Text to token ids and their character spans."""

_DIGITS = "0123456789"
_MERGED, _BYTE = re.compile("[0-9]{2}"), re.compile("<0x[0-9A-F]{2}>")
# Characters before the secret that can matter to how it is split.
_TAIL = 24


@dataclass(frozen=True, kw_only=True)
class Space:
    """`context` (P) tokens, then one of the candidates: `rows` (candidates, tokens), -1 after the end.

    `rows` is sorted; `target` is the row of the true secret.
    """

    context: Int[np.ndarray, " P"]
    rows: Int[np.ndarray, "candidates tokens"]
    target: int
    searchable: ClassVar[bool] = True

    @cached_property
    def trie(self) -> RowTrie:
        """The candidates as a trie."""
        return RowTrie(self.rows)

    @property
    def path(self) -> Int[np.ndarray, " tokens"]:
        """The tokens of the true secret."""
        row = self.rows[self.target]
        tokens: np.ndarray = row[row >= 0]
        return tokens


def secret_space(record: Record, canary: Canary, serializer: Serializer) -> Space:
    """Every digit string of the secret's length in the secret's place, tokenised as it would be there.

    Raises `AuditError` where the tokenizer's split depends on more than the text up to the secret.
    """
    text, _ = serializer.render(record)
    start = text.index(canary.before + canary.secret) + len(canary.before)
    stop = start + len(canary.secret)
    whole = serializer.encode(record)
    split = partial(serializer.tokenize, template=serializer.templated(record))
    upto = split(text[:stop])
    # Tokens that touch the secret are the candidate; those before it are the context.
    shared = sum(end <= start for _, end in upto[1])
    first = serializer.leading(upto[0])
    if whole.ids[first : first + len(upto[0])].tolist() != upto[0]:
        message = f"The tokenizer splits the secret of {canary.id} differently when text follows it."
        raise AuditError(message, "Put a space or a full stop after {secret} in canaries.templates.")
    rows = _candidates(serializer, split, text[:start], len(canary.secret), shared)
    order = np.lexsort(rows.T[::-1])
    rows = rows[order]
    mine = np.full(rows.shape[1], -1, dtype=np.int32)
    mine[: len(upto[0]) - shared] = upto[0][shared:]
    hits = np.flatnonzero((rows == mine).all(axis=1))
    if len(hits) != 1:
        message = f"The secret of {canary.id} is not one of its own candidates."
        raise AuditError(message, "Start {secret} after a space in canaries.templates.")
    return Space(context=whole.ids[: first + shared], rows=rows, target=int(hits[0]))


def _candidates(serializer: Serializer, split: Split, before: str, digits: int, shared: int) -> np.ndarray:
    fixed = None if _merges_digits(serializer) else _digit_tokens(split, before, digits, shared)
    if fixed is not None:
        return np.stack(np.meshgrid(*fixed, indexing="ij"), axis=-1).reshape(-1, digits).astype(np.int32)
    # Digits merge into longer tokens: every candidate is tokenised after the end of what stands before it.
    tail = before[-_TAIL:]
    own = len(split(before)[0]) - shared
    return _tokenise_all(serializer, tail, digits, len(split(tail)[0]) - own)


@lru_cache(maxsize=8)
def _tokenise_all(serializer: Serializer, tail: str, digits: int, skip: int) -> np.ndarray:
    texts = [f"{tail}{i:0{digits}d}" for i in range(10**digits)]
    encoded = serializer.tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    rows = np.full((len(encoded), max(map(len, encoded)) - skip), -1, dtype=np.int32)
    for row, ids in enumerate(encoded):
        rows[row, : len(ids) - skip] = ids[skip:]
    return rows


def _merges_digits(serializer: Serializer) -> bool:
    return any(_MERGED.search(token) and not _BYTE.fullmatch(token) for token in serializer.tokenizer.get_vocab())


def _digit_tokens(split: Split, before: str, digits: int, shared: int) -> list[list[int]] | None:
    """The ten tokens of each place, where the tokenizer gives every digit a token of its own."""
    places = []
    for place in range(digits):
        options = []
        for digit in _DIGITS:
            ids, _ = split(before + "0" * place + digit + "0" * (digits - place - 1))
            if len(ids) != shared + digits:
                return None
            options.append(ids[shared + place])
        places.append(options)
    return places
