"""Detectors of what has a form, or a check that chance seldom passes: addresses, accounts, numbers and dates."""

import ipaddress
import re
from collections.abc import Iterator
from datetime import date

from stdnum import iban, luhn
from stdnum.us import ssn

from sordino.pii.spans import Span

__all__ = ["credit_cards", "dates", "email_addresses", "ibans", "ip_addresses", "urls", "us_ssns"]

_LABEL = r"[^\W_](?:[\w-]{0,61}[^\W_])?"
_LOCAL = r"[\w!#$%&'*+/=?^`{|}~-]"
# At most 64 characters before the @ (RFC 5321); the look-behind starts only where such a run does.
_EMAIL = re.compile(
    rf"(?<![\w.!#$%&*+/=?^`{{|}}~-]){_LOCAL}(?:[.]?{_LOCAL}){{0,63}}@(?:{_LABEL}\.)+[^\W\d_]{{2,63}}(?![\w-])"
)
_URL = re.compile(r"(?<![\w@.])(?:(?:https?|ftp)://|www\.)[^\s<>\"“”„]{2,2000}", re.IGNORECASE)
_CLOSING = {")": "(", "]": "[", "}": "{"}
_IPV4 = re.compile(r"(?<![\w.])(?:\d{1,3}\.){3}\d{1,3}(?![\w]|\.\d)")
_IPV6 = re.compile(r"(?<![\w.:])[0-9A-Fa-f]{0,4}(?::[0-9A-Fa-f]{0,4}){2,7}(?:\d{1,3}(?:\.\d{1,3}){3})?(?![\w:])")
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){11,18}(?![\w]|[.-]\d)")
_IBAN = re.compile(r"(?<![^\W_])[A-Za-z]{2}\d{2}(?:[ -]?[A-Za-z0-9]){11,30}")
_SSN = re.compile(r"(?<![\w-])\d{3}([- ])\d{2}\1\d{4}(?![\w-])")

# The first digits of a card's number and how many it has, by issuer: as cards are issued, from the lists that are
# public, since ISO/IEC 7812 names no ranges. (first, last, lengths)
_ISSUERS = (
    ("4", "4", (13, 16, 19)),  # Visa
    ("51", "55", (16,)),  # Mastercard
    ("2221", "2720", (16,)),
    ("34", "34", (15,)),  # American Express
    ("37", "37", (15,)),
    ("6011", "6011", (16, 19)),  # Discover
    ("644", "659", (16, 19)),
    ("62", "62", (16, 17, 18, 19)),  # UnionPay
    ("3528", "3589", (16, 17, 18, 19)),  # JCB
    ("1800", "1800", (15,)),
    ("2131", "2131", (15,)),
    ("300", "305", (14, 16, 19)),  # Diners Club
    ("3095", "3095", (14, 16, 19)),
    ("36", "36", (14, 16, 19)),
    ("38", "39", (14, 16, 19)),
    ("2200", "2204", (16, 17, 18, 19)),  # Mir
    ("50", "50", (12, 13, 14, 15, 16, 17, 18, 19)),  # Maestro
    ("56", "58", (12, 13, 14, 15, 16, 17, 18, 19)),
    ("60", "69", (12, 13, 14, 15, 16, 17, 18, 19)),
)

_SHORT = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_REST = ("uary", "ruary", "ch", "il", "", "e", "y", "ust", "tember", "ober", "ember", "ember")
_MONTH = "|".join(f"{short}(?:{rest})?" if rest else short for short, rest in zip(_SHORT, _REST, strict=True)) + "|sept"
_CLOCK = r"(?:[T ,]+(?:at )?\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?(?: ?[ap]\.?m\.?)?(?:Z|[+-]\d{2}:?\d{2})?)?"
_ISO = re.compile(
    rf"(?<![\w.-])(?P<y>\d{{4}})(?P<s>[-/.])(?P<m>\d{{1,2}})(?P=s)(?P<d>\d{{1,2}}){_CLOCK}(?![\w]|[-/.]\d)", re.I
)
_PLAIN = re.compile(
    rf"(?<![\w.-])(?P<a>\d{{1,2}})(?P<s>[-/.])(?P<b>\d{{1,2}})(?P=s)(?P<y>\d{{4}}|\d{{2}}){_CLOCK}(?![\w]|[-/.]\d)",
    re.I,
)
_WORDS = re.compile(
    rf"(?<!\w)(?:(?P<d1>\d{{1,2}})(?:st|nd|rd|th)?(?: of)?[ -](?P<m1>{_MONTH})\.?|"
    rf"(?P<m2>{_MONTH})\.? (?P<d2>\d{{1,2}})(?:st|nd|rd|th)?)(?:,? |-)(?P<y>\d{{4}}){_CLOCK}(?!\w)",
    re.I,
)


def email_addresses(text: str) -> Iterator[Span]:
    """E-mail addresses, also those with letters beyond ASCII."""
    if "@" in text:
        yield from (Span(*m.span(), "EMAIL_ADDRESS") for m in _EMAIL.finditer(text))


def urls(text: str) -> Iterator[Span]:
    """URLs with a scheme or with www, without the punctuation of the sentence after them."""
    for found in _URL.finditer(text):
        url = found[0]
        while url and (
            url[-1] in ".,;:!?'*_~’»" or (url[-1] in _CLOSING and url.count(url[-1]) > url.count(_CLOSING[url[-1]]))
        ):
            url = url[:-1]
        if "." in url:
            yield Span(found.start(), found.start() + len(url), "URL", 0.95)


def ip_addresses(text: str) -> Iterator[Span]:
    """IP addresses, version 4 and 6; of version 6 those with two groups at least, so not "::"."""
    for pattern in (_IPV4, _IPV6) if "." in text or ":" in text else ():
        for found in pattern.finditer(text):
            groups = re.findall(r"[0-9A-Fa-f]+", found[0])
            if len(groups) >= 2 and _is_address(found[0]):
                yield Span(*found.span(), "IP_ADDRESS")


def _is_address(text: str) -> bool:
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def credit_cards(text: str) -> Iterator[Span]:
    """Numbers of payment cards: 12 to 19 digits, perhaps in groups, of a known issuer and with Luhn's check digit."""
    for found in _CARD.finditer(text):
        digits = re.sub(r"\D", "", found[0])
        if len(set(digits)) > 1 and _issued(digits) and luhn.is_valid(digits):
            yield Span(*found.span(), "CREDIT_CARD")


def _issued(digits: str) -> bool:
    return any(
        first <= digits[: len(first)] <= last and len(digits) in lengths for first, last, lengths in _ISSUERS
    )  # fmt: skip


def ibans(text: str) -> Iterator[Span]:
    """Account numbers whose length and form are their country's and whose check is right (ISO 7064 mod 97-10)."""
    for found in _IBAN.finditer(text):
        # Words may follow: the country says how long it is, so at most one length is right.
        ends = [found.start() + at + 1 for at, character in enumerate(found[0]) if character.isalnum()][14:]
        for stop in ends:
            inside = stop == len(text) or not text[stop].isalnum()
            if inside and iban.is_valid(text[found.start() : stop], check_country=False):
                yield Span(found.start(), stop, "IBAN_CODE")
                break


def us_ssns(text: str) -> Iterator[Span]:
    """US social security numbers in their usual form (they have no check digit): of areas and groups that exist."""
    for found in _SSN.finditer(text):
        if ssn.is_valid(found[0].replace(" ", "-")):
            yield Span(*found.span(), "US_SSN", 0.85)


def dates(text: str) -> Iterator[Span]:
    """Dates of the calendar with day, month and year, and the time after them; years and weekdays alone are none."""
    for pattern in (_ISO, _PLAIN, _WORDS) if any(c.isdigit() for c in text) else ():
        for found in pattern.finditer(text):
            if _is_date(found):
                yield Span(*found.span(), "DATE_TIME", 0.8)


def _is_date(found: re.Match[str]) -> bool:
    parts = found.groupdict()
    year = int(parts["y"])
    if "a" in parts:
        one, two = int(parts["a"]), int(parts["b"])
        return _exists(year, two, one) or _exists(year, one, two)
    month = parts.get("m") or 1 + _SHORT.index((parts["m1"] or parts["m2"])[:3].lower())
    return _exists(year, int(month), int(parts.get("d") or parts["d1"] or parts["d2"]))


def _exists(year: int, month: int, day: int) -> bool:
    try:
        date(year if year > 99 else 2000 + year, month, day)
    except ValueError:
        return False
    return True
