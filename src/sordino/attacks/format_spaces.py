"""All that a secret of a known format could have been, in its place in a record.

Compared are all strings of the format, tokenised in the secret's place as training would have, after the true
context. Where no string of the format is the beginning of another one, a candidate's probability is
that of its tokens (Carlini et al. 2019). Where one is ("Ann" of "Anna"), the shorter would win by ending early, so a
candidate has to end, too: the token that follows the secret in the record is part of every candidate.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from jaxtyping import Int

from sordino.attacks.formats import Format
from sordino.attacks.places import Place, find_place
from sordino.attacks.tries import RowTrie, Trie
from sordino.attacks.vocabulary import Walk, token_texts
from sordino.attacks.walks import WalkTrie
from sordino.errors import AuditError
from sordino.records import Record
from sordino.serialize import Serializer

__all__ = ["FormatSpace", "format_space"]

_DRAWS = 256
_CHUNK = 8_192
# Beyond this, a rank as a number has no exponent left.
_BITS = 1_000


@dataclass(frozen=True, kw_only=True)
class FormatSpace:
    """`context` (P) tokens, then one of the candidates of `trie`; `path` are the tokens of the true secret.

    Where it is not `searchable`, candidates can be drawn and tokenised, but not found token by token.
    """

    context: Int[np.ndarray, " P"]
    trie: Trie
    path: Int[np.ndarray, " tokens"]
    searchable: bool


def format_space(
    record: Record, span: tuple[int, int], form: Format, serializer: Serializer, *, largest: int = 1_000_000
) -> FormatSpace:
    """Every string of a format in the place of the characters `span` (start, stop) of a record's text.

    The text is what the serializer renders of the record. Where each character is a token of its own, the space
    may be of any size. Where tokens merge, up to `largest` candidates are written out as tokens (4 bytes each);
    above that, the vocabulary is walked and each way checked against the tokenizer, for formats in ASCII; other
    spaces can only be drawn from. Raises `AuditError`, which never says what the secret is.
    """
    secret = _secret(record, span, form, serializer)
    probes = [*form.covering(), *form.draw(_DRAWS, seed=0), secret]
    place = find_place(record, span, serializer, probes)
    if missing := place.unreadable(probes):
        message = f"The tokenizer has no token for {' '.join(map(repr, missing[:10]))}, which the format allows."
        raise AuditError(message, "Leave these characters out of the format, or use the model's own tokenizer.")
    probed = {text: row for text, row in zip(probes, place.rows(probes), strict=True) if row is not None}
    if any(serializer.tokenizer.unk_token_id in row for row in probed.values()):
        message = f"The tokenizer reads parts of some strings of the format {form.pattern!r} as unknown."
        raise AuditError(message, "Use the model's own tokenizer, or a format of words that it knows.")
    end = None if form.prefix_free else _end(place, record, span)
    path = np.array([*probed[secret], *([] if end is None else [end])], dtype=np.int32)
    walk = Walk(form, place.lead, token_texts(serializer.tokenizer) if form.alphabet_is_ascii else {})
    trie = WalkTrie(walk, place, end)
    walkable = all(trie.spells(row, text) for text, row in probed.items())
    if form.size <= largest and not (walkable and walk.single):
        rows = _rows(form, place, end)
        return FormatSpace(context=place.context, trie=RowTrie(rows), path=path, searchable=True)
    return FormatSpace(context=place.context, trie=trie, path=path, searchable=walkable)


def _secret(record: Record, span: tuple[int, int], form: Format, serializer: Serializer) -> str:
    text, _ = serializer.render(record)
    start, stop = span
    if not 0 <= start <= stop <= len(text):
        message = f"Record {record.id} has {len(text)} characters, not a span from {start} to {stop}."
        raise AuditError(message, "Give (start, stop) within the text that the serializer renders of it.")
    if text[start:stop] not in form:
        message = f"Characters {start} to {stop} of record {record.id} do not match the format {form.pattern!r}."
        raise AuditError(message, "Correct the span, or widen the format so that it allows the secret.")
    if form.size < 2:
        message = f"The format {form.pattern!r} allows one string only, so there is nothing to rank it among."
        raise AuditError(message, "Say what else the secret could have been.")
    if form.size.bit_length() > _BITS:
        message = f"The format {form.pattern!r} allows more than 2^{_BITS} strings; no rank among them can be written."
        raise AuditError(message, "Rank a part of the secret.")
    return text[start:stop]


def _end(place: Place, record: Record, span: tuple[int, int]) -> int:
    if place.following is None:
        message = (
            f"Nothing follows characters {span[0]} to {span[1]} of record {record.id}, "
            "so candidates of different lengths cannot be compared."
        )
        raise AuditError(message, "Use a format of one length, or a tokenizer with an end-of-sequence token.")
    return place.following


def _rows(form: Format, place: Place, end: int | None) -> np.ndarray:
    """All candidates as sorted rows of tokens, −1 after the end, tokenised a chunk at a time."""
    last = [] if end is None else [end]
    parts = []
    for texts in _chunks(iter(form), _CHUNK):
        found = place.rows(texts)
        rows = np.full((len(found), 1 + max(0 if ids is None else len(ids) for ids in found)), -1, dtype=np.int32)
        for row, ids in zip(rows, found, strict=True):
            if ids is None:
                message = f"Some strings of the format {form.pattern!r} change how the text before them is split."
                raise AuditError(message, "Widen the span and the format to begin after a space.")
            row[: len(ids) + len(last)] = [*ids, *last]
        parts.append(rows)
    table = np.full((form.size, max(part.shape[1] for part in parts)), -1, dtype=np.int32)
    at = 0
    for part in parts:
        table[at : at + len(part), : part.shape[1]] = part
        at += len(part)
    table = table[np.lexsort(table.T[::-1])]
    if (table[1:] == table[:-1]).all(axis=1).any():
        message = f"The tokenizer reads several strings of the format {form.pattern!r} as the same tokens."
        raise AuditError(message, "Write the format as the tokenizer reads it, such as in lower case only.")
    return table


def _chunks(texts: Iterator[str], count: int) -> Iterator[Sequence[str]]:
    while chunk := list(islice(texts, count)):
        yield chunk
