"""Two ways of writing one value: what is compared, and what may be shown."""

import re
import unicodedata
from urllib.parse import urlsplit

from sordino.pii.spans import NATIONAL

__all__ = ["canonical", "mask"]

_NUMBERS = {"PHONE_NUMBER", "CREDIT_CARD", "IBAN_CODE", "US_DRIVER_LICENSE", *NATIONAL}
_NAMED = ("PERSON", "LOCATION", "ADDRESS", "ORGANIZATION", "TITLE", "NRP")
_WORD = re.compile(r"[^\W_]+")


def canonical(value: str, kind: str) -> str:
    """What two mentions of one value have in common: letters folded, blanks as one; of numbers, no separators.

    A telephone number with its country's code and one without are two values.
    """
    folded = unicodedata.normalize("NFKC", value).casefold()
    if kind in _NUMBERS:
        return "".join(character for character in folded if character.isalnum())
    plain = " ".join(folded.split())
    return plain.rstrip("/") if kind == "URL" else plain


def mask(value: str, kind: str) -> str:
    """`value` as a report may show it.

    Of names, places and organisations: the first letter of each word of two or more letters, and how long words
    are (`J*** D**`). Of telephone, card, account and identity numbers: at most the last four letters or digits, a
    quarter of them if there are fewer than 16. Of e-mail addresses and URLs: the first letter of each part, and the
    last part (`j***@e***.com`). Of an IP address: the first group. Of all else, dates and your own kinds among them:
    where letters and digits stand, and none of them.
    """
    if kind in _NUMBERS:
        return _tail(value)
    if kind in _NAMED:
        return _WORD.sub(_initial, value)
    if kind == "EMAIL_ADDRESS" and value.count("@") == 1:
        local, _, host = value.partition("@")
        return f"{_first(local)}@{_host(host)}"
    if kind == "URL":
        return _url(value)
    if kind == "IP_ADDRESS" and re.match(r"[0-9A-Fa-f]+[.:]", value):
        head = re.split(r"[.:]", value)[0]
        return head + _starred(value[len(head) :])
    return _starred(value)


def _starred(value: str) -> str:
    return _WORD.sub(lambda word: "*" * len(word[0]), value)


def _initial(word: re.Match[str]) -> str:
    text = word[0]
    shown = len(text) > 1 and text[0].isalpha() and not any(character.isdigit() for character in text)
    return text[0] + "*" * (len(text) - 1) if shown else "*" * len(text)


def _tail(value: str) -> str:
    places = [at for at, character in enumerate(value) if character.isalnum()]
    kept = set(places[len(places) - min(4, len(places) // 4) :])
    return "".join("*" if c.isalnum() and at not in kept else c for at, c in enumerate(value))


def _first(part: str) -> str:
    """The first letter of a part of an address, and three stars however long it is."""
    return f"{part[0]}***" if len(part) > 1 and part[0].isalnum() else "***"


def _host(host: str) -> str:
    labels = host.split(".")
    last = labels[-1] if len(labels) > 1 and labels[-1].isalpha() else "***"
    return ".".join([*map(_first, labels[:-1]), last])


def _url(value: str) -> str:
    try:
        parts = urlsplit(value if "://" in value else f"//{value}")
        host = parts.hostname or ""
    except ValueError:
        return _starred(value)
    if parts.scheme not in ("", "http", "https", "ftp") or not host:
        return _starred(value)
    rest = "/***" if parts.path.strip("/") or parts.query or parts.fragment else parts.path
    return f"{parts.scheme}{'://' if parts.scheme else ''}{_host(host)}{rest}"
