"""Names and places by Presidio's analyzer, where it is installed with a language model."""

from collections.abc import Iterator, Sequence
from typing import Any

from sordino.errors import ConfigError, first_line
from sordino.pii.spans import Span, kind_of

__all__ = ["Presidio"]

_HINT = "pip install 'sordino[pii]', then a model for it: python -m spacy download en_core_web_lg."


class Presidio:
    """A detector that asks an analyzer of Presidio; `kinds` are what it is asked for (default: names and places).

    `analyzer` is anything with Presidio's `analyze(text, entities, language)`, by default an `AnalyzerEngine`, which
    takes the extra `pii` and a language model of spaCy that the package index does not have. Findings below `least`
    are left out. Raises `ConfigError` where it is not installed or its model is missing.
    """

    def __init__(
        self,
        analyzer: Any = None,
        *,
        kinds: Sequence[str] = ("PERSON", "LOCATION", "NRP", "ORGANIZATION"),
        language: str = "en",
        least: float = 0.5,
    ) -> None:
        """See the class."""
        self.analyzer = _engine() if analyzer is None else analyzer
        self.kinds, self.language, self.least = tuple(kinds), language, least

    def __call__(self, text: str) -> Iterator[Span]:
        """What the analyzer finds in `text`."""
        for found in self.analyzer.analyze(text=text, entities=list(self.kinds), language=self.language):
            if found.score >= self.least and found.start < found.end:
                yield Span(found.start, found.end, kind_of(found.entity_type), min(1.0, float(found.score)))


def _engine() -> Any:
    try:
        from presidio_analyzer import AnalyzerEngine
    except ImportError as error:
        raise ConfigError("Presidio is not installed.", _HINT) from error
    # Where no model of spaCy is there, the engine tries to download one, and leaves with SystemExit where it cannot.
    try:
        return AnalyzerEngine()
    except (Exception, SystemExit) as error:
        raise ConfigError(f"Presidio's analyzer cannot be made: {first_line(error)}.", _HINT) from error
