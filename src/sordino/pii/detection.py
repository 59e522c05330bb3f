"""Finding personal data in texts: several detectors, one list of spans that do not overlap."""

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sordino.errors import DataError, SordinoError
from sordino.pii.national import NationalIds
from sordino.pii.patterns import credit_cards, dates, email_addresses, ibans, ip_addresses, urls, us_ssns
from sordino.pii.phones import PhoneNumbers
from sordino.pii.spans import Span, resolve

__all__ = ["Detector", "Lexicon", "default_detectors", "detect", "detect_all"]

Detector = Callable[[str], Iterable[Span]]
"""From a text to the spans found in it, which may overlap."""


def default_detectors(
    *, regions: tuple[str, ...] = ("US",), countries: tuple[str, ...] | None = None
) -> tuple[Detector, ...]:
    """All that need no language model: telephone numbers of `regions`, identity numbers of `countries` (None: all)."""
    forms = (email_addresses, urls, ip_addresses, credit_cards, ibans, us_ssns, dates)
    return (*forms, PhoneNumbers(regions), NationalIds(countries))


def detect(text: str, detectors: Sequence[Detector] | None = None) -> list[Span]:
    """What `detectors` (default: `default_detectors()`) find in `text`, overlaps resolved, in the order of the text.

    Raises `DataError` where a detector finds something beyond the text's end.
    """
    found = []
    for detector in _DEFAULT if detectors is None else detectors:
        for span in detector(text):
            if span.stop > len(text):
                message = f"A detector found {span.kind} from {span.start} to {span.stop} in {len(text)} characters."
                raise DataError(message, f"Does {_name(detector)} change the text it reads?")
            found.append(span)
    return resolve(found)


def detect_all(
    texts: Iterable[str],
    detectors: Sequence[Detector] | None = None,
    *,
    tick: Callable[[int], None] = lambda done: None,
) -> Iterator[list[Span]]:
    """`detect` of one text after the other; `tick` is told of each. An error says which text (from 0) it was in."""
    for number, text in enumerate(texts):
        try:
            yield detect(text, detectors)
        except SordinoError as error:
            raise type(error)(f"In text {number}: {error.message}", error.hint) from error
        tick(1)


def _name(detector: Detector) -> str:
    return getattr(detector, "__name__", type(detector).__name__)


_DEFAULT = default_detectors()
_WORD = re.compile(r"\w+")


@dataclass(frozen=True)
class Lexicon:
    """A detector of known `values` (value -> kind) as they are written, standing on their own.

    For names and places where no language model finds them. What it finds says nothing of values it does not know:
    there is no precision of a kind that a lexicon alone detects.
    """

    values: Mapping[str, str]

    @cached_property
    def _by_word(self) -> dict[str, list[tuple[int, str, str]]]:
        """Of each first word: how far before it a value begins, the value and its kind; the longest first."""
        table: dict[str, list[tuple[int, str, str]]] = {}
        for value, kind in self.values.items():
            first = _WORD.search(value)
            if first is not None:
                table.setdefault(first[0], []).append((first.start(), value, kind))
        for entries in table.values():
            entries.sort(key=lambda entry: (-len(entry[1]), entry[1]))
        return table

    def __call__(self, text: str) -> Iterator[Span]:
        """The longest value at each word of `text` that one begins with."""
        for word in _WORD.finditer(text):
            for before, value, kind in self._by_word.get(word[0], ()):
                start = word.start() - before
                stop = start + len(value)
                if start >= 0 and text.startswith(value, start) and _apart(text, start, stop):
                    yield Span(start, stop, kind, 0.6)
                    break


def _apart(text: str, start: int, stop: int) -> bool:
    """Whether no letter or digit goes on at either end of a value that ends in one."""
    before = start > 0 and text[start - 1].isalnum() and text[start].isalnum()
    after = stop < len(text) and text[stop].isalnum() and text[stop - 1].isalnum()
    return not before and not after
