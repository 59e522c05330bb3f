"""Where personal data stands in a text: spans, the kinds there are, and which of overlapping spans stay."""

import re
from bisect import bisect_left, insort
from collections.abc import Iterable
from dataclasses import dataclass

from sordino.errors import DataError

__all__ = ["ALIASES", "KINDS", "NATIONAL", "Span", "kind_of", "overlap", "resolve"]

NATIONAL = (
    "US_SSN",
    "US_ITIN",
    "UK_NHS",
    "CA_SIN",
    "AU_TFN",
    "IN_AADHAAR",
    "SG_NRIC_FIN",
    "ES_NIF",
    "ES_NIE",
    "IT_FISCAL_CODE",
    "FR_NIR",
    "DE_TAX_ID",
    "NL_BSN",
    "BE_NN",
    "CH_AHV",
    "PL_PESEL",
    "CZ_RC",
    "RO_CNP",
    "BG_EGN",
    "EE_IK",
    "FI_PERSONAL_IDENTITY_CODE",
    "SE_PERSONNUMMER",
    "DK_CPR",
    "NO_FODSELSNUMMER",
    "PT_NIF",
    "HR_OIB",
    "TR_KIMLIK",
    "ZA_ID",
    "BR_CPF",
    "KR_RRN",
)
"""National identity numbers: the kinds of them."""

KINDS = (
    "PERSON",
    "EMAIL_ADDRESS",
    "PHONE_NUMBER",
    "CREDIT_CARD",
    "IBAN_CODE",
    "IP_ADDRESS",
    "URL",
    "DATE_TIME",
    "LOCATION",
    "ADDRESS",
    "ZIP_CODE",
    "ORGANIZATION",
    "AGE",
    "TITLE",
    "NRP",
    "US_DRIVER_LICENSE",
    *NATIONAL,
)
"""The kinds of entity, by Presidio's names where it has one; any other label of your own is a kind too."""

ALIASES = {
    "PER": "PERSON",
    "NAME": "PERSON",
    "FIRST_NAME": "PERSON",
    "LAST_NAME": "PERSON",
    "EMAIL": "EMAIL_ADDRESS",
    "PHONE": "PHONE_NUMBER",
    "IBAN": "IBAN_CODE",
    "CREDIT_CARD_NUMBER": "CREDIT_CARD",
    "IP": "IP_ADDRESS",
    "DOMAIN_NAME": "URL",
    "DATE": "DATE_TIME",
    "TIME": "DATE_TIME",
    "SSN": "US_SSN",
    "GPE": "LOCATION",
    "LOC": "LOCATION",
    "CITY": "LOCATION",
    "COUNTRY": "LOCATION",
    "STREET_ADDRESS": "ADDRESS",
    "ORG": "ORGANIZATION",
    "ORGANISATION": "ORGANIZATION",
    "NORP": "NRP",
    "ZIP": "ZIP_CODE",
    "POSTCODE": "ZIP_CODE",
    "PREFIX": "TITLE",
}
"""Labels that other tools and corpora give to a kind."""

_LABEL = re.compile(r"[^\W\d][\w]*")


@dataclass(frozen=True)
class Span:
    """Characters `start` to `stop` (exclusive) of a text are an entity of `kind`; `score` is how sure that is, 0 to 1.

    In a record, the text is the content of its message number `message`, counted from 0.
    """

    start: int
    stop: int
    kind: str
    score: float = 1.0
    message: int = 0

    def __post_init__(self) -> None:
        """Raise `DataError` where no text has such a span."""
        if not 0 <= self.start < self.stop or self.message < 0:
            message = f"A span of {self.kind} is from {self.start} to {self.stop} in message {self.message}."
            raise DataError(message, "It starts at 0 or later, and ends after it starts.")
        if not 0 <= self.score <= 1:
            raise DataError(f"A span of {self.kind} has the score {self.score}.", "Scores are between 0 and 1.")

    def __len__(self) -> int:
        """The number of characters."""
        return self.stop - self.start

    def of(self, text: str) -> str:
        """What stands there in `text`."""
        return text[self.start : self.stop]


def kind_of(label: str) -> str:
    """The kind that `label` names: in capitals, by `ALIASES`; raises `DataError` where it is no name at all."""
    plain = label.strip().upper().replace(" ", "_").replace("-", "_")
    if not _LABEL.fullmatch(plain):
        raise DataError(f"{label!r} is no kind of entity.", f"Usual ones: {', '.join(KINDS[:9])}.")
    return ALIASES.get(plain, plain)


def overlap(first: Span, second: Span) -> int:
    """How many characters two spans share."""
    if first.message != second.message:
        return 0
    return max(0, min(first.stop, second.stop) - max(first.start, second.start))


def _order(span: Span) -> tuple[int, float, int, int, str]:
    return (-len(span), -span.score, span.message, span.start, span.kind)


def resolve(spans: Iterable[Span]) -> list[Span]:
    """Those of `spans` that stay where some overlap: the longest, of equally long ones the surest, then the first.

    So a card's number is no telephone number, and an e-mail address in a URL is part of the URL. What is left is in
    the order of the text and does not depend on the order given.
    """
    kept: list[tuple[int, int, int]] = []
    chosen = []
    for span in sorted(set(spans), key=_order):
        at = bisect_left(kept, (span.message, span.start, span.stop))
        beside = kept[max(0, at - 1) : at + 1]
        if all(m != span.message or stop <= span.start or start >= span.stop for m, start, stop in beside):
            insort(kept, (span.message, span.start, span.stop))
            chosen.append(span)
    return sorted(chosen, key=lambda s: (s.message, s.start))
