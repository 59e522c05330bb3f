"""Audit canaries: many records of one design, each planted once or not at all, whose coins one run bounds ε by.

Source: Steinke, Nasr and Jagielski 2023 (coins and guesses); Panda et al. 2025, "Privacy Auditing of Large Language
Models", arXiv:2503.06808 (designs: new tokens, and tokens that an n-gram model does not expect).
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sordino.canaries.exposure import CanaryConfig, check_templates
from sordino.canaries.keyed import Design, shape, uniform
from sordino.errors import ConfigError
from sordino.records import Dataset, Example, Message, Record

__all__ = ["FROM_DATA", "AuditCanary", "Design", "Source", "plant_audit"]

FROM_DATA = ("in-distribution", "bigram")
"""Designs that hold words of the data: under differential privacy those would count twice."""

_TARGETS = ("text", "completion", "assistant")
# Tokens of a canary of random tokens: at least, at most, and where the data may not say.
_SHORTEST, _LONGEST, _FIXED = 8, 64, 32
# Records that bigrams are counted in, and tokens tried for one secret.
_COUNTED, _TRIES = 20_000, 200


@dataclass(frozen=True, kw_only=True)
class AuditCanary:
    """One canary of `design`; `before` + `secret` is the text up to the end of what is scored.

    An empty secret of another design than `new-token` means that the whole record is scored. `number` counts the
    canaries from 0; of design `new-token`, the secret is the new token of that number, which no text can hold.
    """

    id: str
    design: Design
    number: int
    before: str
    secret: str
    included: bool


@dataclass(frozen=True, kw_only=True)
class Source:
    """What canaries are made from: the data for its shape, records that train whatever the coins, the tokenizer.

    With `private`, nothing of a canary may depend on what a record says.
    """

    dataset: Dataset
    always: Sequence[Example]
    tokenizer: Any = None
    private: bool = False


Made = tuple[tuple[Message, ...], str, str]


def plant_audit(source: Source, config: CanaryConfig, seed: int) -> tuple[tuple[Example, ...], tuple[AuditCanary, ...]]:
    """Up to `config.audit.count` canaries with their coins: the examples to add, and the manifest.

    Coins and contents are keyed hashes of `seed`, apart from each other. Fewer are planted where those that are
    expected in would be more than `config.share` of the records. Raises `ConfigError` where the design cannot be
    made from this data or this tokenizer.
    """
    audit = config.audit
    if audit.count < 0:
        raise ConfigError(f"canaries.audit.count is {audit.count}.", "Use 0 (none) or more.")
    check_templates(config)
    if source.private and audit.design in FROM_DATA:
        message = (
            f"canaries.audit.design is {audit.design}: under differential privacy, it would plant words of records."
        )
        raise ConfigError(message, "Use new-token, secret or high-perplexity.")
    room = int(2 * config.share * len(source.dataset.records))
    makers: dict[str, Callable[[Source, CanaryConfig, int], Callable[[str], Made]]]
    makers = {"in-distribution": _Spliced, "high-perplexity": _Random, "bigram": _Unheard}
    make = makers.get(audit.design, _Templated)(source, config, seed)
    examples, canaries = [], []
    for number in range(min(audit.count, room)):
        name = f"audit-canary-{number}"
        messages, before, secret = make(name)
        included = uniform(seed, "coin", name) % 2 == 1
        record = Record(id=name, unit=name, messages=messages)
        examples.append(Example(record=record, role="canary", included=included, group=name))
        canaries.append(
            AuditCanary(id=name, design=audit.design, number=number, before=before, secret=secret, included=included)
        )
    return tuple(examples), tuple(canaries)


class _Templated:
    """Sentences with a secret of random digits; of design new-token they break off where its token will stand."""

    def __init__(self, source: Source, config: CanaryConfig, seed: int) -> None:
        from faker import Faker

        self.source, self.config, self.seed = source, config, seed
        self.faker = Faker("en_US")
        self.faker.seed_instance(uniform(seed, "audit names") % 2**32)

    def __call__(self, name: str) -> Made:
        templates, digits = self.config.templates, self.config.digits
        person = f"{self.faker.first_name()} {self.faker.last_name()}"
        template = templates[uniform(self.seed, "template", name) % len(templates)]
        before, after = template.replace("{name}", person).split("{secret}")
        if self.config.audit.design == "new-token":
            before = before.rstrip() or person  # a template may begin with its secret
            return shape(self.source.dataset, before, person), before, ""
        secret = f"{uniform(self.seed, 'secret', name) % 10**digits:0{digits}d}"
        return shape(self.source.dataset, before + secret + after, person), before, secret


class _FromRecords:
    """Canaries that take something from records that always train."""

    def __init__(self, source: Source, config: CanaryConfig, seed: int) -> None:
        self.source, self.seed = source, seed
        if len(source.always) < 2:
            message = f"canaries.audit.design is {config.audit.design}, and {len(source.always)} records always train."
            raise ConfigError(message, "Lower split.candidates or split.validation, or use design: new-token.")

    def draw(self, *names: str | int) -> int:
        """The number of a record that always trains."""
        return uniform(self.seed, *names) % len(self.source.always)

    def record(self, number: int) -> tuple[tuple[Message, ...], int]:
        """Its messages, and which of them is the last that is trained on."""
        messages = self.source.always[number].record.messages
        places = [i for i, m in enumerate(messages) if m.role in _TARGETS]
        return messages, places[-1] if places else len(messages) - 1


class _Spliced(_FromRecords):
    """The first half of one record's text and the second half of another's."""

    def __call__(self, name: str) -> Made:
        first = self.draw("first", name)
        other = self.draw("second", name)
        other = other if other != first else (first + 1) % len(self.source.always)
        messages, place = self.record(first)
        more, where = self.record(other)
        text = _halves(messages[place].content)[0] + _halves(more[where].content)[1]
        return _with(messages[: place + 1], place, text), "", ""


class _Random:
    """Tokens drawn uniformly from the vocabulary, as many as a record has."""

    def __init__(self, source: Source, config: CanaryConfig, seed: int) -> None:
        self.source, self.seed = source, seed
        self.pool = [t for t, word in _ordinary(source.tokenizer) if any(c.isalnum() for c in word)]
        if len(self.pool) < 2:
            message = "canaries.audit.design is high-perplexity, and the tokenizer has no tokens of plain text."
            raise ConfigError(message, "Use design: secret or new-token.")

    def __call__(self, name: str) -> Made:
        ids = [self.pool[uniform(self.seed, "token", name, i) % len(self.pool)] for i in range(self._length(name))]
        text = self.source.tokenizer.decode(ids).strip()
        return shape(self.source.dataset, text, "this"), "", ""

    def _length(self, name: str) -> int:
        if self.source.private or not self.source.always:
            return _FIXED
        like = self.source.always[uniform(self.seed, "length", name) % len(self.source.always)].record.messages
        ids = self.source.tokenizer(like[-1].content, add_special_tokens=False, verbose=False)["input_ids"]
        return min(_LONGEST, max(_SHORTEST, len(ids)))


class _Unheard(_FromRecords):
    """The beginning of a record, and a token that followed its last one in no record."""

    def __init__(self, source: Source, config: CanaryConfig, seed: int) -> None:
        super().__init__(source, config, seed)
        words = ((t, word.strip()) for t, word in _ordinary(source.tokenizer))
        self.pool = [(t, word) for t, word in words if len(word) > 1 and word.isalpha()]
        self.heard = _bigrams(source)

    def __call__(self, name: str) -> Made:
        messages, place = self.record(self.draw("context", name))
        before = _halves(messages[place].content)[0].rstrip() + " "
        context = self._ids(before.rstrip())
        for attempt in range(_TRIES if self.pool and context else 0):
            token, word = self.pool[uniform(self.seed, "token", name, attempt) % len(self.pool)]
            if self._ids(before + word) == [*context, token] and not self._was_heard(context[-1], token):
                return _with(messages[: place + 1], place, before + word), before, word
        message = f"canaries.audit.design is bigram, and for {name} no unheard token was found in {_TRIES} tries."
        raise ConfigError(message, "Use design: new-token, which works with every tokenizer.")

    def _ids(self, text: str) -> list[int]:
        return list(self.source.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def _was_heard(self, first: int, second: int) -> bool:
        pair = _pair(np.int64(first), np.int64(second))
        place = int(np.searchsorted(self.heard, pair))
        return place < len(self.heard) and bool(self.heard[place] == pair)


def _bigrams(source: Source) -> np.ndarray:
    """Every pair of neighbouring tokens in the records that always train (or 20,000 of them), sorted."""
    step = -(-len(source.always) // _COUNTED)
    found = [np.empty(0, dtype=np.int64)]
    for number in range(0, len(source.always), step):
        for message in source.always[number].record.messages:
            ids = source.tokenizer(message.content, add_special_tokens=False, verbose=False)["input_ids"]
            row = np.array(ids, dtype=np.int64)
            found.append(_pair(row[:-1], row[1:]))
        if len(found) > 1000:
            found = [np.unique(np.concatenate(found))]
    return np.unique(np.concatenate(found))


def _pair(first: Any, second: Any) -> Any:
    return (first << 32) | second


def _ordinary(tokenizer: Any) -> list[tuple[int, str]]:
    """Tokens, with their text, that are neither control tokens nor parts of a character."""
    left_out = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    pairs = ((t, tokenizer.decode([t])) for t in sorted(tokenizer.get_vocab().values()) if t not in left_out)
    return [(t, word) for t, word in pairs if word.strip() and "\ufffd" not in word and word.strip().isprintable()]


def _halves(text: str) -> tuple[str, str]:
    """`text` cut at the blank nearest to its middle; whole and nothing where it has none."""
    blanks = [found.start() for found in re.finditer(r"\s+", text.strip())]
    if not blanks:
        return text, ""
    cut = min(blanks, key=lambda place: abs(place - len(text) // 2))
    stripped = text.strip()
    return stripped[:cut], stripped[cut:]


def _with(messages: tuple[Message, ...], place: int, content: str) -> tuple[Message, ...]:
    return (*messages[:place], replace(messages[place], content=content), *messages[place + 1 :])
