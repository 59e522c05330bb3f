"""What a training reads: the classes and the serializer of a run, and the sequences of its records."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from sordino.config import RunConfig
from sordino.errors import ConfigError
from sordino.records import Example, Record
from sordino.results import Notice
from sordino.serialize import Serializer, Tokens, encode_all
from sordino.train.goldfish import goldfish

if TYPE_CHECKING:
    from sordino.classifier import Classes

__all__ = ["TOKEN_NOTICES", "Otherwise", "classes_of", "serializer_for", "training_tokens"]

# What is noticed while tokens are made, and what a dry run calls it.
TOKEN_NOTICES = {
    "truncated": "records truncated", "split": "records split", "no-target": "records with nothing to predict",
    "goldfish": "targets left out",
}  # fmt: skip

Otherwise = Mapping[str, Callable[[Record], Tokens]]
_AS_RECORDS: Otherwise = {}


def classes_of(config: RunConfig, labels: Sequence[str]) -> "Classes | None":
    """What the model of a run decides between: `labels` for a classifier, nothing for a language model."""
    from sordino.classifier import Classes

    return None if config.task == "causal-lm" else Classes(labels=tuple(labels), seed=config.seed)


def serializer_for(config: RunConfig, tokenizer: Any, context: int, labels: Sequence[str] = ()) -> Serializer:
    """The serializer of a run: at most `train.max_length` tokens, by default the context up to 1,024.

    `labels` are the classes of a classifier.
    """
    length = config.train.max_length or min(context, 1024)
    if length > context:
        message = f"train.max_length is {length}, but the model's context is {context} tokens."
        raise ConfigError(message, f"Set it to {context} or less.")
    return Serializer(tokenizer, length, config.train.too_long, tuple(labels))


def training_tokens(
    examples: Sequence[Example], serializer: Serializer, k: int = 0, otherwise: Otherwise = _AS_RECORDS
) -> tuple[list[Tokens], list[int], list[Notice]]:
    """The sequences to train on (k > 0: by the goldfish loss), whose example each is of, and what was noticed.

    `otherwise` has, by the id of a record, what makes its tokens where the serializer alone does not.
    """
    repetitions: list[int] = []
    made: dict[int, Tokens] = {}

    def records() -> Iterator[Record]:
        for place, example in enumerate(examples):
            repetitions.append(example.repetitions)
            if example.record.id in otherwise:
                made[place] = otherwise[example.record.id](example.record)
            yield example.record

    encoded, notices = encode_all(records(), serializer, texts=False)
    encoded = [made.get(place, tokens) for place, tokens in enumerate(encoded)]
    if k:
        encoded, more = goldfish(encoded, k)
        notices += more
    found = [
        (piece, owner)
        for owner, (times, whole) in enumerate(zip(repetitions, encoded, strict=True))
        for piece in whole.pieces(serializer.max_length)
        for _ in range(times)
        if piece.target.any()
    ]
    return [piece for piece, _ in found], [owner for _, owner in found], notices
