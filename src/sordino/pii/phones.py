"""Telephone numbers, by the numbering plans of the world."""

from collections.abc import Iterator
from dataclasses import dataclass

import phonenumbers

from sordino.errors import ConfigError
from sordino.pii.spans import Span

__all__ = ["PhoneNumbers"]


@dataclass(frozen=True)
class PhoneNumbers:
    """A detector of telephone numbers that exist in a numbering plan: with +, or as written within `regions`.

    `regions` are codes of ISO 3166 ("US", "GB"); each costs a pass over the text, and the more there are, the more
    other numbers are taken for telephones. With `possible`, the right number of digits is enough: more is found, and
    more that is no telephone. Raises `ConfigError` for a code that no plan has.
    """

    regions: tuple[str, ...] = ("US",)
    possible: bool = False

    def __post_init__(self) -> None:
        """Refuse regions that no numbering plan knows."""
        for region in self.regions:
            if region not in phonenumbers.SUPPORTED_REGIONS:
                raise ConfigError(f"No numbering plan is known for the region '{region}'.", "Write it as in US or GB.")

    def __call__(self, text: str) -> Iterator[Span]:
        """The telephone numbers in `text`; those with their country's code are surer."""
        if sum(character.isdigit() for character in text) < 6:
            return
        seen: set[tuple[int, int]] = set()
        leniency = phonenumbers.Leniency.POSSIBLE if self.possible else phonenumbers.Leniency.VALID
        # "ZZ" stands for no region: numbers with + alone.
        for region in self.regions or ("ZZ",):
            for found in phonenumbers.PhoneNumberMatcher(text, region, leniency):
                # A bracket around the whole is taken for one that belongs to it.
                where = (found.start + found.raw_string.startswith("(") * (")" not in found.raw_string), found.end)
                if where not in seen:
                    seen.add(where)
                    yield Span(*where, "PHONE_NUMBER", 0.9 if "+" in found.raw_string else 0.75)
