"""From a column of labelled spans to the spans of a record, each checked against the text it speaks of."""

from collections.abc import Mapping, Sequence
from typing import Any

from sordino.errors import DataError
from sordino.pii import Span, kind_of
from sordino.records.record import Message
from sordino.records.shapes import column_value
from sordino.records.tables import Row
from sordino.records.tables import kind_of as type_of

__all__ = ["spans_of"]

# The names that Presidio's corpora, its analyzer and we give to the ends of a span.
_STARTS, _STOPS = ("start", "start_position"), ("end", "end_position", "stop")
_HINT = "Write a list of {entity_type, start, end}, in characters from 0, the end exclusive."


def spans_of(row: Row, column: str, messages: Sequence[Message], source: str, name: str) -> tuple[Span, ...]:
    """The spans in `column`: a list of {entity_type, start, end}, or null; sorted, each once.

    Keys may be start_position and end_position, and `score` and `message` may be there; where an entity_value is, it
    must be what stands at its place. Offsets count characters of the message as it is in the data. Raises `DataError`
    with the id `name` of the record and the positions, never with what stands there.
    """
    value = column_value(row, column, source)
    where = f"{source}, {row.place}: column '{column}' of record '{name}'"
    if value is None:
        return ()
    if not isinstance(value, list):
        raise DataError(f"{where} is {type_of(value)}, not a list of spans.", _HINT)
    found = {_span(item, messages, f"{where}, span {number}") for number, item in enumerate(value, 1)}
    return tuple(sorted(found, key=lambda s: (s.message, s.start, s.stop, s.kind)))


def _span(item: object, messages: Sequence[Message], where: str) -> Span:
    if not isinstance(item, dict):
        raise DataError(f"{where} is {type_of(item)}, not an object.", _HINT)
    start, stop = _whole(item, _STARTS, where), _whole(item, _STOPS, where)
    number, score = _message(item, messages, where), item.get("score")
    if not isinstance(item.get("entity_type"), str):
        raise DataError(f"{where} has no entity_type.", _HINT)
    if score is not None and (isinstance(score, bool) or not isinstance(score, int | float)):
        raise DataError(f"{where} has a score that is {type_of(score)}.", "Scores are between 0 and 1.")
    try:
        span = Span(start, stop, kind_of(item["entity_type"]), 1.0 if score is None else float(score), number)
    except DataError as error:
        raise DataError(f"{where}: {error.message}", error.hint) from error
    text = messages[number].content
    if stop > len(text):
        message = f"{where} is from {start} to {stop}, outside the text of {len(text)} characters."
        raise DataError(message, "Do the offsets count characters, and of this text?")
    told = item.get("entity_value")
    if told is not None and told != span.of(text):
        message = f"{where} is from {start} to {stop}, where its entity_value does not stand."
        raise DataError(message, "Do the offsets count characters, not bytes, and of this text?")
    return span


def _whole(item: Mapping[str, Any], names: Sequence[str], where: str) -> int:
    given = [item[name] for name in names if item.get(name) is not None]
    if len(given) != 1 or isinstance(given[0], bool) or not isinstance(given[0], int):
        what = "no" if not given else "more than one" if len(given) > 1 else f"{type_of(given[0])} as"
        raise DataError(f"{where} has {what} {names[0]}.", _HINT)
    return int(given[0])


def _message(item: Mapping[str, Any], messages: Sequence[Message], where: str) -> int:
    """The number of the message that a span is of: a text has one, all others must say."""
    given = item.get("message")
    if given is None and len(messages) == 1:
        return 0
    if isinstance(given, bool) or not isinstance(given, int) or not 0 <= given < len(messages):
        what = "does not say in which message it stands" if given is None else f"has the message {given!r}"
        hint = f"This record has {len(messages)}: give each span its message, counted from 0."
        raise DataError(f"{where} {what}.", hint)
    return given
