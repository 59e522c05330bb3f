"""Records in two halves: what a model is given, and how it would truly go on; and what asking costs."""

from collections.abc import Sequence
from dataclasses import dataclass

from sordino.attacks.words import first, halve, words
from sordino.audit.settings import ExternalConfig
from sordino.errors import DataError
from sordino.records import Example
from sordino.results import Notice
from sordino.serialize import Serializer, render_plain

__all__ = ["LONGEST", "Half", "allowance", "cost", "half_of", "halves"]

LONGEST = 256
"""Words of a record that are used, where `max_length` does not say."""


@dataclass(frozen=True, kw_only=True)
class Half:
    """The `prompt`, how the record goes on (`remainder`; "": nothing to try), and its target `text`."""

    prompt: str
    remainder: str
    text: str


def halves(
    config: ExternalConfig, examples: Sequence[Example], serializer: Serializer | None
) -> tuple[list[Half], list[Notice]]:
    """Each record up to the middle of its last target, and the rest; with notices that count.

    Conversations are written by the chat template of `serializer` where there is one, else plainly. Of records
    longer than `max_length` words the end is cut off, unless `too_long` is `split`. Raises `DataError`
    for such records where it is `refuse`.
    """
    most, found, cut = config.max_length or LONGEST, [], 0
    for example in examples:
        whole, spans = (
            render_plain(example.record.messages) if serializer is None else serializer.render(example.record)
        )
        length = len(words(whole))
        if length > most and config.too_long == "refuse":
            message = f"Record {example.record.id} has {length} words; the limit is {most}."
            raise DataError(message, "Set too_long to truncate or split, or raise max_length.")
        kept = whole if config.too_long == "split" else first(whole, most)
        cut += len(kept) < len(whole.rstrip())
        found.append(half_of(kept, spans))
    return found, _notices(examples, found, cut, most, serializer)


def half_of(kept: str, spans: Sequence[tuple[int, int]]) -> Half:
    """A text, whose end may be cut off, up to the middle of the last of its target `spans`, and the rest."""
    start, stop = spans[-1]
    before, rest = halve(kept[start:stop])
    prompt = kept[:start] + before
    usable = bool(prompt.strip()) and bool(rest.strip())
    text = "\n".join(kept[a:b] for a, b in spans)
    return Half(prompt=prompt, remainder=rest if usable else "", text=text)


def _notices(
    examples: Sequence[Example], found: Sequence[Half], cut: int, most: int, serializer: Serializer | None
) -> list[Notice]:
    notices = []
    if cut:
        message = f"{cut} records are longer than {most} words and were cut; too_long: split keeps them whole."
        notices.append(Notice(kind="truncated", count=cut, message=message))
    empty = [e.record.id for e, half in zip(examples, found, strict=True) if not half.remainder]
    if empty:
        message = f"{len(empty)} records are too short to be cut in halves, e.g. {empty[0]}."
        notices.append(Notice(kind="no-target", count=len(empty), message=message))
    chats = [e for e in examples if e.record.messages[0].role not in ("text", "prompt", "completion")]
    plain = [e for e in chats if serializer is None or not serializer.templated(e.record)]
    if plain:
        message = (
            f"{len(plain)} conversations are sent as plain text: the model's chat template is not known here. "
            "With --tokenizer they are sent as the model was tuned on them."
        )
        notices.append(Notice(kind="plain-chat", count=len(plain), message=message))
    return notices


def allowance(remainder: str) -> int:
    """Tokens enough for the words of `remainder` in most languages and vocabularies: one for 3 bytes, and 8."""
    return len(remainder.encode()) // 3 + 8


def cost(config: ExternalConfig, found: Sequence[Half]) -> str:
    """Requests and tokens, about, of asking for all continuations; a token counts as 4 bytes of a prompt."""
    tried, sides = [half for half in found if half.remainder], 2 if config.base_served else 1
    each = sides * (config.samples + 1)
    tokens = sum(len(half.prompt.encode()) // 4 + allowance(half.remainder) for half in tried)
    return f"about {each * len(tried):,} requests of {each * tokens:,} tokens in all"
