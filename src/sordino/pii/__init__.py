"""Personal data in texts: detectors, labelled spans, what may be shown of a value, and how well detection works."""

import importlib
from typing import TYPE_CHECKING, Any

from sordino.pii.spans import ALIASES, KINDS, Span, kind_of, overlap, resolve

if TYPE_CHECKING:
    from sordino.pii.detection import Detector as Detector
    from sordino.pii.detection import Lexicon as Lexicon
    from sordino.pii.detection import default_detectors as default_detectors
    from sordino.pii.detection import detect as detect
    from sordino.pii.detection import detect_all as detect_all
    from sordino.pii.national import NATIONAL_IDS as NATIONAL_IDS
    from sordino.pii.national import NationalId as NationalId
    from sordino.pii.national import NationalIds as NationalIds
    from sordino.pii.phones import PhoneNumbers as PhoneNumbers
    from sordino.pii.presidio import Presidio as Presidio
    from sordino.pii.scoring import Agreement as Agreement
    from sordino.pii.scoring import agreement as agreement
    from sordino.pii.values import canonical as canonical
    from sordino.pii.values import mask as mask

_WHERE = {
    "Agreement": "scoring",
    "Detector": "detection",
    "Lexicon": "detection",
    "NATIONAL_IDS": "national",
    "NationalId": "national",
    "NationalIds": "national",
    "PhoneNumbers": "phones",
    "Presidio": "presidio",
    "agreement": "scoring",
    "canonical": "values",
    "default_detectors": "detection",
    "detect": "detection",
    "detect_all": "detection",
    "mask": "values",
}

__all__ = [
    "ALIASES",
    "KINDS",
    "NATIONAL_IDS",
    "Agreement",
    "Detector",
    "Lexicon",
    "NationalId",
    "NationalIds",
    "PhoneNumbers",
    "Presidio",
    "Span",
    "agreement",
    "canonical",
    "default_detectors",
    "detect",
    "detect_all",
    "kind_of",
    "mask",
    "overlap",
    "resolve",
]


def __getattr__(name: str) -> Any:
    # Imported when used: records have spans, and reading them must not cost what numbering plans and SciPy cost.
    if name not in _WHERE:
        raise AttributeError(f"module 'sordino.pii' has no attribute {name!r}")
    return getattr(importlib.import_module(f"sordino.pii.{_WHERE[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
