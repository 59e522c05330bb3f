"""Both kinds of canaries planted in a data set that has been split, and how many there was no room for."""

from dataclasses import dataclass

from sordino.canaries import AuditCanary, Canary, Source, plant, plant_audit
from sordino.config import RunConfig
from sordino.records import Dataset, Example, Split
from sordino.records.placed import where
from sordino.results import Notice

__all__ = ["Planting", "plant_all"]


@dataclass(frozen=True, kw_only=True)
class Planting:
    """The examples to add to a split, the manifests of both kinds of canaries, and what was noticed."""

    examples: tuple[Example, ...] = ()
    canaries: tuple[Canary, ...] = ()
    audit_canaries: tuple[AuditCanary, ...] = ()
    notices: tuple[Notice, ...] = ()


def plant_all(dataset: Dataset, placed: Split, config: RunConfig) -> Planting:
    """Canaries for exposure and audit canaries, as `config.canaries` asks for them."""
    examples: tuple[Example, ...] = ()
    canaries: tuple[Canary, ...] = ()
    coins: tuple[AuditCanary, ...] = ()
    settings, records, notices = config.canaries, len(dataset.records), []
    if settings.per_level:
        examples, canaries = plant(dataset, settings, config.seed)
        notices += _fewer("canaries", len(canaries), settings.per_level * len(settings.levels), records)
    if settings.audit.count:
        more, coins = plant_audit(_source(dataset, placed, config), settings, config.seed)
        examples = (*examples, *more)
        notices += _fewer("audit canaries", len(coins), settings.audit.count, records)
    return Planting(examples=examples, canaries=canaries, audit_canaries=coins, notices=tuple(notices))


def _fewer(what: str, planted: int, wanted: int, records: int) -> list[Notice]:
    if planted >= wanted:
        return []
    message = f"{planted} of {wanted} {what} were planted: more would crowd out {records} records."
    return [Notice(kind=what.replace(" ", "-"), count=wanted - planted, message=message)]


def _source(dataset: Dataset, placed: Split, config: RunConfig) -> Source:
    """What audit canaries are made from; the tokenizer is loaded only where the design asks for it."""
    from sordino.model import load_tokenizer

    reads = config.canaries.audit.design in ("high-perplexity", "bigram")
    return Source(
        dataset=dataset,
        always=where(placed.examples, "train", True),
        tokenizer=load_tokenizer(config.model) if reads else None,
        private=config.dp is not None,
    )
