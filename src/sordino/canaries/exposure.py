"""Canaries for exposure: a random secret each, planted at several repetitions."""

from collections.abc import Sequence
from dataclasses import dataclass

from sordino.canaries.keyed import LEVELS, TEMPLATES, AuditCanaries, shape, uniform
from sordino.errors import ConfigError
from sordino.records import Dataset, Example, Record

__all__ = ["Canary", "CanaryConfig", "check_templates", "manifest", "plant"]


@dataclass(frozen=True, kw_only=True)
class CanaryConfig:
    """`per_level` canaries at each of `levels` repetitions, each with its own coin of probability ½.

    The secret is `digits` random digits, so a guess is right once in 10^digits. `templates` are
    sentences in the style of the data with `{name}` and `{secret}`; `share` is the largest part
    of the training records that canary copies may make up before they are thinned out. `audit` are canaries of
    another kind, planted once each, for ε̂.
    """

    per_level: int = 8
    levels: tuple[int, ...] = LEVELS
    digits: int = 5
    templates: tuple[str, ...] = TEMPLATES
    share: float = 0.25
    audit: AuditCanaries = AuditCanaries()


@dataclass(frozen=True, kw_only=True)
class Canary:
    """One planted secret: `before` + secret + `after` is the text that holds it."""

    id: str
    secret: str
    before: str
    after: str
    repetitions: int
    included: bool


def check_templates(config: CanaryConfig) -> None:
    """Raise `ConfigError` where there are no templates, or one has no place for its name or its secret."""
    if not config.templates:
        raise ConfigError("canaries.templates is empty.", "Leave it out to use sentences of ours.")
    for template in config.templates:
        if template.count("{name}") != 1 or template.count("{secret}") != 1:
            message = f"A canary template needs {{name}} and {{secret}} once each: {template!r}."
            raise ConfigError(message, "Correct `canaries.templates`.")


def _check(config: CanaryConfig) -> None:
    check_templates(config)
    if config.per_level < 0 or not 0 <= config.share <= 1:
        message = f"canaries.per_level is {config.per_level} and canaries.share {config.share:g}."
        raise ConfigError(message, "Use 0 or more canaries, and a share from 0 to 1.")
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
    faker.seed_instance(uniform(seed, "names") % 2**32)
    examples, canaries = [], []
    for level in config.levels:
        for number in range(_affordable(config, len(dataset.records))):
            name = f"canary-{level}x-{number}"
            secret = f"{uniform(seed, 'secret', name) % 10**config.digits:0{config.digits}d}"
            template = config.templates[uniform(seed, "template", name) % len(config.templates)]
            person = f"{faker.first_name()} {faker.last_name()}"
            before, after = template.replace("{name}", person).split("{secret}")
            included = uniform(seed, "coin", name) % 2 == 1
            record = Record(id=name, unit=name, messages=shape(dataset, before + secret + after, person))
            examples.append(Example(record=record, role="canary", included=included, group=name, repetitions=level))
            canaries.append(
                Canary(id=name, secret=secret, before=before, after=after, repetitions=level, included=included)
            )
    return tuple(examples), tuple(canaries)


def manifest(canaries: Sequence[object]) -> bytes:
    """Canaries of one kind as JSON, for a file in private/."""
    from sordino.results import encode

    return encode(list(canaries))
