"""Personal data in texts: detectors, labelled spans, what may be shown of a value, and how well detection works."""

from sordino.pii.detection import Detector, Lexicon, default_detectors, detect, detect_all
from sordino.pii.national import NATIONAL_IDS, NationalId, NationalIds
from sordino.pii.phones import PhoneNumbers
from sordino.pii.presidio import Presidio
from sordino.pii.scoring import Agreement, agreement
from sordino.pii.spans import ALIASES, KINDS, Span, kind_of, overlap, resolve
from sordino.pii.values import canonical, mask

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
