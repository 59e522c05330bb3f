"""From a row to messages: a text, a prompt with its completion, or a chat."""

import unicodedata
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sordino.errors import ConfigError, DataError, did_you_mean
from sordino.records.record import DataConfig, Message
from sordino.records.tables import Row, kind_of

__all__ = [
    "CHAT_ROLES",
    "Shape",
    "column_value",
    "count_extra_keys",
    "find_shape",
    "label_of",
    "rejected_of",
    "to_messages",
]

CHAT_ROLES = ("system", "user", "assistant", "tool")
PAIRS = (
    ("prompt", "completion"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
)
CONTEXT = ("input", "context")  # beside an instruction: part of what the model must see


@dataclass(frozen=True, kw_only=True)
class Shape:
    """How a row becomes messages: its `kind`, the `columns` to read, and whether they were `named`."""

    kind: Literal["text", "pair", "messages"]
    columns: tuple[str, ...]
    named: bool

    def __str__(self) -> str:
        """The shape in words: "prompt 'question' and completion 'answer'"."""
        if self.kind == "pair":
            return f"prompt '{self.columns[0]}' and completion '{self.columns[1]}'"
        return f"{self.kind} '{self.columns[0]}'"


def find_shape(config: DataConfig, columns: Sequence[str], source: str) -> Shape:
    """The shape that `config` names, else the one shape that the usual column names allow.

    Raises `ConfigError` when the config names none completely or more than one, `DataError` when the
    columns allow none or more than one.
    """
    return _named_shape(config) or _usual_shape(columns, source)


def _named_shape(config: DataConfig) -> Shape | None:
    pair = (config.prompt, config.completion)
    given = [
        name
        for name, value in (
            ("text", config.text),
            ("prompt and completion", any(pair)),
            ("messages", config.messages),
        )
        if value
    ]
    if len(given) > 1:
        hint = "Name one of: text; prompt and completion; messages."
        raise ConfigError(f"data names {' as well as '.join(given)}.", hint)
    if config.text:
        return Shape(kind="text", columns=(config.text,), named=True)
    if config.messages:
        return Shape(kind="messages", columns=(config.messages,), named=True)
    if config.prompt and config.completion:
        return Shape(kind="pair", columns=(config.prompt, config.completion), named=True)
    if any(pair):
        has, lacks = ("prompt", "completion") if config.prompt else ("completion", "prompt")
        hint = f"Set data.{lacks} too; or data.text, to train on whole texts."
        raise ConfigError(f"data.{has} is set, but data.{lacks} is not.", hint)
    return None


def _usual_shape(columns: Sequence[str], source: str) -> Shape:
    listed = ", ".join(f"'{name}'" for name in columns)
    ways = [Shape(kind="text", columns=("text",), named=False)] if "text" in columns else []
    pairs = [pair for pair in PAIRS if set(pair) <= set(columns)]
    ways += [Shape(kind="pair", columns=pair, named=False) for pair in pairs]
    ways += [Shape(kind="messages", columns=("messages",), named=False)] if "messages" in columns else []
    if not ways:
        hint = "Name the columns: data.text; data.prompt and data.completion; or data.messages."
        raise DataError(f"{source} has no column with a usual name; its columns are {listed}.", hint)
    if len(ways) > 1:
        hint = "Say which: set data.text; data.prompt and data.completion; or data.messages."
        found = "; ".join(map(str, ways))
        raise DataError(f"{source} can be read in {len(ways)} ways: {found}.", hint)
    context = [name for name in CONTEXT if name in columns]
    if context and ways[0].columns[0] == "instruction":
        message = f"{source} has a column '{context[0]}' beside 'instruction', which would be left out."
        raise DataError(message, "Join both into one column, or name data.prompt and data.completion.")
    return ways[0]


def to_messages(shape: Shape, row: Row, source: str) -> tuple[Message, ...] | None:
    """The messages of `row`, or None when it is empty: nothing in it that a model would learn to write.

    Raises `DataError`, with the place, for a column that is missing or of another type.
    """
    if shape.kind == "messages":
        turns = _chat(row, shape.columns[0], source)
        learned = [turn.content for turn in turns if turn.role == "assistant"]
    else:
        roles = ("text",) if shape.kind == "text" else ("prompt", "completion")
        named = zip(roles, shape.columns, strict=True)
        turns = tuple(Message(role, _text(row, column, source)) for role, column in named)
        learned = [turns[-1].content]
    return turns if any(content.strip() for content in learned) else None


def column_value(row: Row, column: str, source: str) -> object:
    """The value of `row` in `column`; raises `DataError` with the place when there is none."""
    if column not in row.values:
        known = ", ".join(f"'{name}'" for name in row.values)
        message = f"{source}, {row.place}: no column '{column}'; there are {known}."
        raise DataError(message, did_you_mean(column, row.values))
    return row.values[column]


def label_of(row: Row, column: str, source: str) -> str:
    """The class in `column`, as text without blanks around it; true and false are "true" and "false".

    Raises `DataError`, with the place, where it is missing, blank, or no text, whole number or boolean.
    """
    value = column_value(row, column, source)
    where = f"{source}, {row.place}: column '{column}'"
    hint = "Every record of a classifier needs its label: a text, a whole number, or true or false."
    if not isinstance(value, str | int):
        raise DataError(f"{where} is {kind_of(value)}{f' ({value})' if isinstance(value, float) else ''}.", hint)
    text = str(value).lower() if isinstance(value, bool) else str(value)
    label = unicodedata.normalize("NFC", _checked(text, row, column, source)).strip()
    if not label:
        raise DataError(f"{where} is blank.", hint)
    return label


def rejected_of(row: Row, column: str, messages: Sequence[Message], source: str) -> str:
    """The answer in `column` that was liked less than the last of `messages`: a text, or a chat that ends with it.

    Raises `DataError`, with the place, where it is missing or blank, or a chat that does not begin as `messages` do.
    """
    where = f"{source}, {row.place}: column '{column}'"
    if isinstance(column_value(row, column, source), list):
        turns = _chat(row, column, source)
        before = tuple(messages[:-1])
        # Some data sets have the question in the chat, others the answer alone.
        if turns[:-1] not in (before, ()) or not turns or turns[-1].role != messages[-1].role:
            hint = "Both must be answers to the same: the messages before the last one, and its role, are compared."
            raise DataError(f"{where} does not differ from the record in its last message alone.", hint)
        text = turns[-1].content
    else:
        text = _text(row, column, source)
    if not text.strip():
        raise DataError(f"{where} is blank.", "Every record of preferences needs its rejected answer.")
    return text


def _text(row: Row, column: str, source: str) -> str:
    value = column_value(row, column, source)
    if not isinstance(value, str):
        texts = [name for name, other in row.values.items() if isinstance(other, str)]
        hint = f"Columns with text: {', '.join(texts)}." if texts else "No column of it holds text."
        raise DataError(f"{source}, {row.place}: column '{column}' is {kind_of(value)}, not a text.", hint)
    return _checked(value, row, column, source)


def _checked(text: str, row: Row, column: str, source: str) -> str:
    if "\0" in text:
        message = f"{source}, {row.place}: column '{column}' holds a NUL character."
        raise DataError(message, "Remove it: no tokenizer expects one.")
    return text


def _chat(row: Row, column: str, source: str) -> tuple[Message, ...]:
    value = column_value(row, column, source)
    where = f"{source}, {row.place}: column '{column}'"
    if not isinstance(value, list):
        hint = "Write a list of {role, content}."
        raise DataError(f"{where} is {kind_of(value)}, not a list of messages.", hint)
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, dict) or not {"role", "content"} <= turn.keys():
            found = f"has the keys {', '.join(map(repr, turn))}" if isinstance(turn, dict) else f"is {kind_of(turn)}"
            raise DataError(f"{where}: message {number} {found}.", "Each message needs a role and a content.")
        role, content = turn["role"], turn["content"]
        if role not in CHAT_ROLES:
            hint = did_you_mean(role, CHAT_ROLES) if isinstance(role, str) else ""
            raise DataError(f"{where}: message {number} has the role {role!r}.", hint or "A role is a text.")
        if not isinstance(content, str):
            hint = "Write the content of every message as one text; tool calls too."
            raise DataError(f"{where}: the content of message {number} is {kind_of(content)}, not a text.", hint)
        turns.append(Message(role, _checked(content, row, column, source)))
    if turns and not any(turn.role == "assistant" for turn in turns):
        hint = "A model learns to write the assistant's turns: each chat needs one."
        raise DataError(f"{where} has no message of the role 'assistant'.", hint)
    return tuple(turns)


def count_extra_keys(shape: Shape, row: Row, counts: Counter[str]) -> None:
    """Add to `counts` how many messages of `row` carry each key beside role and content, which is not read."""
    turns = row.values[shape.columns[0]] if shape.kind == "messages" else None
    for turn in turns if isinstance(turns, list) else []:
        counts.update(key for key in turn.keys() - {"role", "content"} if turn[key] is not None)
