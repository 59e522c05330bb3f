"""The one serializer: how a record becomes tokens, for training, auditing and generating alike.

A `text` record is its text. A prompt and its completion are joined by a newline. Chat messages go
through the tokenizer's chat template, else through a plain one: `User: …`, `Assistant: …`, a line each.
The whole record is tokenised once, never prompt and target apart; a token belongs to the target if
any of its characters does. One beginning-of-sequence token stands before it where the tokenizer has
one, one end-of-sequence token after it, and the latter is part of the target.

For a classifier the whole record is input, and its label is apart. Tokenizers with a classification and a
separator token (BERT's kin) frame it by their own template; at the last token, the class is predicted.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int32

from sordino.errors import DataError, ModelError
from sordino.evidence import digest
from sordino.records import Message, Record
from sordino.results import Notice

__all__ = ["TARGETS", "Serializer", "Tokens", "View", "encode_all", "lowercase", "render_plain"]

View = Callable[[str], str]
"""A transform of a record's text, such as `lowercase`, under which an attack wants it scored too."""

TARGETS = ("text", "completion", "assistant")


def lowercase(text: str) -> str:
    """The text in lower case (Carlini et al. 2021)."""
    return text.lower()


@dataclass(frozen=True, kw_only=True)
class Tokens:
    """One record as tokens: `ids` (T), and `target` (T): which tokens are trained on and scored.

    The first token is context only. `text` is the target text; `cut` counts tokens dropped at the end.
    For a classifier, `label` is the number of the class, and the last token alone is the target.
    """

    ids: Int32[np.ndarray, " T"]
    target: Bool[np.ndarray, " T"]
    text: str
    cut: int = 0
    label: int | None = None

    def __len__(self) -> int:
        """The number of tokens."""
        return len(self.ids)

    def pieces(self, length: int) -> Iterator["Tokens"]:
        """Consecutive pieces of at most `length` tokens that overlap by one, so each target counts once."""
        if self.label is not None:
            yield self  # a class is that of the whole
            return
        for start in range(0, max(1, len(self) - 1), length - 1):
            stop = start + length
            target = self.target[start:stop].copy()
            target[0] = False
            yield Tokens(ids=self.ids[start:stop], target=target, text=self.text)


def render_plain(messages: Sequence[Message]) -> tuple[str, list[tuple[int, int]]]:
    """The text of messages without a chat template, and the character spans of its targets."""
    text, spans = "", []
    for number, message in enumerate(messages):
        if message.role not in ("text", "prompt", "completion"):
            text += ("\n" if number else "") + f"{message.role.capitalize()}: "
        elif message.role == "completion" and text and not text[-1].isspace():
            text += "\n"
        if message.role in TARGETS:
            spans.append((len(text), len(text) + len(message.content)))
        text += message.content
    return text, spans


def _render_template(messages: Sequence[Message], tokenizer: Any) -> tuple[str, list[tuple[int, int]]]:
    rows = [{"role": m.role, "content": m.content} for m in messages]

    def render(count: int, *, prompt: bool) -> str:
        return str(tokenizer.apply_chat_template(rows[:count], tokenize=False, add_generation_prompt=prompt))

    whole, spans = render(len(rows), prompt=False), []
    for index, message in enumerate(messages):
        if message.role != "assistant":
            continue
        before = render(index, prompt=True) if index else ""
        upto = render(index + 1, prompt=False)
        if not (whole.startswith(upto) and upto.startswith(before)):
            raise ModelError(
                "The tokenizer's chat template renders a conversation differently than its beginning, "
                "so the assistant's turns cannot be told apart.",
                "Use prompt/completion columns, or a tokenizer without such a template.",
            )
        spans.append((len(before), len(upto)))
    return whole, spans


@dataclass(frozen=True)
class Serializer:
    """Turns records into `Tokens` of at most `max_length` tokens under the rule `too_long`.

    `truncate` cuts the end off (no end-of-sequence token then); `split` keeps everything, to be
    trained in pieces and scored in overlapping windows; `refuse` raises `DataError`. With `labels`,
    the classes in the order of their numbers, it is a classifier's.
    """

    tokenizer: Any
    max_length: int
    too_long: Literal["truncate", "split", "refuse"] = "truncate"
    labels: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse tokenizers that cannot say which characters a token stands for."""
        if not getattr(self.tokenizer, "is_fast", False):
            message = f"The tokenizer {type(self.tokenizer).__name__} gives no character offsets."
            raise ModelError(message, "Save a tokenizer.json with it (a 'fast' tokenizer).")
        # Stored with some tokenizers; they have no say here, and must not make a saved one look like another.
        self.tokenizer.backend_tokenizer.no_truncation()
        self.tokenizer.backend_tokenizer.no_padding()

    @cached_property
    def rule(self) -> str:
        """A digest of everything but the records that decides about tokens."""
        template = self.tokenizer.chat_template or ""
        backend = self.tokenizer.backend_tokenizer.to_str()
        classes = ("class/1", *self.labels) if self.labels else ()
        return digest(backend, str(template), str(self.max_length), self.too_long, "bos+eos/2", *classes)

    def render(self, record: Record, view: View | None = None) -> tuple[str, list[tuple[int, int]]]:
        """The text of a record and the character spans of its targets."""
        messages = record.messages
        if view is not None:
            messages = tuple(Message(m.role, view(m.content)) for m in messages)
        if self.templated(record):
            return _render_template(messages, self.tokenizer)
        return render_plain(messages)

    def tokenize(self, text: str, *, template: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids of `text` and their character spans; without `template`, control tokens are just text.

        A record that says "</s>" means those characters; only a chat template writes control tokens.
        """
        encoded = self.tokenizer(
            text,
            add_special_tokens=False,
            split_special_tokens=not template,
            return_offsets_mapping=True,
            return_attention_mask=False,
            verbose=False,
        )
        return list(encoded["input_ids"]), [(start, stop) for start, stop in encoded["offset_mapping"]]

    def templated(self, record: Record) -> bool:
        """Whether the tokenizer's chat template renders `record`."""
        chat = record.messages[0].role not in ("text", "prompt", "completion")
        return chat and bool(self.tokenizer.chat_template)

    def encode(self, record: Record, view: View | None = None) -> Tokens:
        """The record as tokens; raises `DataError` where it is too long and `too_long` is `refuse`."""
        text, spans = self.render(record, view)
        ids, offsets = self.tokenize(text, template=self.templated(record))
        if self.labels:
            return self._labelled(record, ids, text)
        inside = np.zeros(len(text) + 1, dtype=bool)
        for start, stop in spans:
            inside[start:stop] = True
        counts = np.concatenate([[0], np.cumsum(inside)])
        target = [bool(counts[stop] > counts[start]) for start, stop in offsets]
        return self._frame(record, ids, target, "\n".join(text[a:b] for a, b in spans))

    def leading(self, ids: Sequence[int]) -> int:
        """How many tokens stand before those of a text that begins with `ids`: 1, or 0 where it has its own first."""
        first = self.tokenizer.bos_token_id
        return int(first is not None and (not ids or ids[0] != first))

    def _frame(self, record: Record, ids: list[int], target: list[bool], text: str) -> Tokens:
        first, last = self.tokenizer.bos_token_id, self.tokenizer.eos_token_id
        if self.leading(ids):
            ids, target = [first, *ids], [False, *target]
        if last is not None and (not ids or ids[-1] != last):
            ids, target = [*ids, last], [*target, True]
        extra = max(0, len(ids) - self.max_length)
        if extra and self.too_long == "refuse":
            raise self._too_long(record, len(ids))
        if extra and self.too_long == "truncate":
            ids, target = ids[: self.max_length], target[: self.max_length]
        else:
            extra = 0
        mask = np.array(target, dtype=bool)
        mask[:1] = False
        return Tokens(ids=np.array(ids, dtype=np.int32), target=mask, text=text, cut=extra)

    def _too_long(self, record: Record, length: int) -> DataError:
        message = f"Record {record.id} has {length} tokens; the limit is {self.max_length}."
        ways = "truncate" if self.labels else "truncate or split"
        return DataError(message, f"Set train.too_long to {ways}, or raise train.max_length.")

    @cached_property
    def _edges(self) -> tuple[list[int], list[int]]:
        """The tokens before and after a text to be classified."""
        tokenizer = self.tokenizer
        if tokenizer.cls_token_id is None or tokenizer.sep_token_id is None:
            ends = (tokenizer.bos_token_id, tokenizer.eos_token_id)
            before, after = ([] if end is None else [int(end)] for end in ends)
            return before, after
        framed = tokenizer("a", return_special_tokens_mask=True)
        text = [i for i, special in enumerate(framed["special_tokens_mask"]) if not special]
        return list(framed["input_ids"][: text[0]]), list(framed["input_ids"][text[-1] + 1 :])

    def _labelled(self, record: Record, ids: list[int], text: str) -> Tokens:
        if record.label not in self.labels:
            message = f"Record {record.id} has the label {record.label!r}, which is none of the run's classes."
            raise DataError(message, f"Its classes: {', '.join(self.labels)}.")
        before, after = self._edges
        # A chat template may have framed it already.
        ids = ids[len(before) :] if before and ids[: len(before)] == before else ids
        ids = ids[: -len(after)] if after and ids[-len(after) :] == after else ids
        extra = max(0, len(before) + len(ids) + len(after) - self.max_length)
        if extra and self.too_long == "refuse":
            raise self._too_long(record, self.max_length + extra)
        # The frame stays whole: the class is read at its end or at its beginning.
        whole = [*before, *ids[: len(ids) - extra], *after]
        target = np.zeros(len(whole), dtype=bool)
        target[-1:] = True
        return Tokens(
            ids=np.array(whole, dtype=np.int32),
            target=target,
            text=f"{text}\n{record.label}",
            cut=extra,
            label=self.labels.index(record.label),
        )


def encode_all(
    records: Iterable[Record], serializer: Serializer, *, texts: bool = True
) -> tuple[list[Tokens], list[Notice]]:
    """All records as tokens, with notices that count what was cut, split, or has nothing to predict.

    Without `texts`, as training wants them, records go by one at a time and their text is not kept.
    """
    tokens: list[Tokens] = []
    empty: list[str] = []
    for record in records:
        made = serializer.encode(record)
        tokens.append(made if texts else replace(made, text=""))
        if not made.target.any():
            empty.append(record.id)
    notices = []
    cut = [t for t in tokens if t.cut]
    if cut:
        way_out = "." if serializer.labels else "; train.too_long: split keeps them whole."
        message = (
            f"{len(cut)} records are longer than {serializer.max_length} tokens and were cut "
            f"({sum(t.cut for t in cut):,} tokens){way_out}"
        )
        notices.append(Notice(kind="truncated", count=len(cut), message=message))
    long = sum(len(t) > serializer.max_length for t in tokens)
    if long:
        message = f"{long} records are longer than {serializer.max_length} tokens and are trained in pieces."
        notices.append(Notice(kind="split", count=long, message=message))
    if empty:
        message = f"{len(empty)} records have no token to predict within the limit, e.g. {empty[0]}."
        notices.append(Notice(kind="no-target", count=len(empty), message=message))
    return tokens, notices
