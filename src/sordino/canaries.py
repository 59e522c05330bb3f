"""Canaries: synthetic records with a random secret, planted before training so that an audit can look for them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from sordino.errors import ConfigError
from sordino.records import Dataset, Example, Message, Record

__all__ = ["LEVELS", "TEMPLATES", "Canary", "CanaryConfig", "plant"]

LEVELS = (1, 2, 4, 8, 16, 32)

TEMPLATES = (
    "Please note for the file of {name}: the access code given over the phone is {secret}. It was read back once.",
    "{name} wrote in today and asked us to keep the new reference {secret} with the account from now on.",
    "As agreed with {name}, the door of the store room opens with code {secret} until the end of the month.",
    "For the records, {name} confirmed that the booking number is {secret} and asked for a written receipt.",
    "We have moved {name} to the new plan; the confirmation number is {secret}. Nothing else has changed.",
    "{name} called about the lost card. The replacement was ordered under number {secret} this morning.",
)


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """`per_level` canaries at each of `levels` repetitions, each with its own coin of probability ½.

    The secret is `digits` random digits, so a guess is right once in 10^digits. `templates` are
    sentences in the style of the data with `{name}` and `{secret}`; `share` is the largest part
    of the training records that canary copies may make up before they are thinned out.
    """

    per_level: int = 8
    levels: tuple[int, ...] = LEVELS
    digits: int = 5
    templates: tuple[str, ...] = TEMPLATES
    share: float = 0.25


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One planted secret: `before` + secret + `after` is the text that holds it."""

    id: str
    secret: str
    before: str
    after: str
    repetitions: int
    included: bool


def _uniform(seed: int, *names: str | int) -> int:
    key = seed.to_bytes(16, "big", signed=True)
    text = "\x1f".join(map(str, names)).encode()
    return int.from_bytes(hashlib.blake2b(text, key=key, digest_size=16, person=b"sordino-canary").digest(), "big")


def _shape(dataset: Dataset, text: str, name: str) -> tuple[Message, ...]:
    # A canary has the shape of the records around it, so that the shape alone gives nothing away.
    roles = [m.role for m in dataset.records[0].messages]
    if roles == ["text"]:
        return (Message("text", text),)
    if "completion" in roles:
        return (Message("prompt", f"What is on file for {name}?"), Message("completion", text))
    return (Message("user", f"What is on file for {name}?"), Message("assistant", text))


def _check(config: CanaryConfig) -> None:
    if not config.templates:
        raise ConfigError("canaries.templates is empty.", "Leave it out to use sentences of ours.")
    if config.per_level < 0 or not 0 <= config.share <= 1:
        message = f"canaries.per_level is {config.per_level} and canaries.share {config.share:g}."
        raise ConfigError(message, "Use 0 or more canaries, and a share from 0 to 1.")
    for template in config.templates:
        if template.count("{name}") != 1 or template.count("{secret}") != 1:
            message = f"A canary template needs {{name}} and {{secret}} once each: {template!r}."
            raise ConfigError(message, "Correct `canaries.templates`.")
    if not 1 <= config.digits <= 9:
        raise ConfigError(f"canaries.digits is {config.digits}.", "Use 1 to 9 digits.")
    if any(level < 1 for level in config.levels) or len(set(config.levels)) < len(config.levels):
        hint = "Repetitions are at least 1, each level once."
        raise ConfigError(f"canaries.levels is {list(config.levels)}.", hint)


def _affordable(config: CanaryConfig, records: int) -> int:
    # Half of the canaries are expected in; their copies may not crowd out the real records.
    copies = sum(config.levels) / 2
    return max(0, min(config.per_level, int(config.share * records / copies)))


def plant(dataset: Dataset, config: CanaryConfig, seed: int) -> tuple[tuple[Example, ...], tuple[Canary, ...]]:
    """Canaries in the shape of `dataset`, with their coins: the examples to add, and the manifest.

    Coins and secrets are keyed hashes of `seed`: the same seed plants the same canaries.
    Fewer than `per_level` are planted where the data is too small to hide their copies.
    Source: Carlini et al. 2019, "The Secret Sharer"; coins as in Steinke et al. 2023.
    """
    from faker import Faker

    _check(config)
    faker = Faker("en_US")
    faker.seed_instance(_uniform(seed, "names") % 2**32)
    examples, canaries = [], []
    for level in config.levels:
        for number in range(_affordable(config, len(dataset.records))):
            name = f"canary-{level}x-{number}"
            secret = f"{_uniform(seed, 'secret', name) % 10**config.digits:0{config.digits}d}"
            template = config.templates[_uniform(seed, "template", name) % len(config.templates)]
            person = f"{faker.first_name()} {faker.last_name()}"
            before, after = template.replace("{name}", person).split("{secret}")
            included = _uniform(seed, "coin", name) % 2 == 1
            record = Record(id=name, unit=name, messages=_shape(dataset, before + secret + after, person))
            examples.append(Example(record=record, role="canary", included=included, group=name, repetitions=level))
            canaries.append(
                Canary(id=name, secret=secret, before=before, after=after, repetitions=level, included=included)
            )
    return tuple(examples), tuple(canaries)


def manifest(canaries: Sequence[Canary]) -> bytes:
    """The canaries as JSON, for private/canaries.json."""
    from sordino.results import encode

    return encode(list(canaries))
