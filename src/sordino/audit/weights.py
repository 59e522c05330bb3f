"""Whether, and where, a subject of an audit has weights on this machine."""

from typing import Any

from sordino.audit.endpoint import Endpoint
from sordino.audit.external import External
from sordino.audit.subjects import Subject, Trained
from sordino.audit.written import Written

__all__ = ["has_weights", "weights"]


def has_weights(subject: Subject | Written, which: str) -> bool:
    """Whether the "tuned" or the "base" model of `subject` can be run here; loads nothing."""
    if isinstance(subject, Trained):
        return True
    if isinstance(subject, External):
        return which == "tuned" or subject.has_base
    # Of a served model at most the base is here; the untuned one is what it was loaded as.
    return which == "base" and isinstance(subject, Endpoint) and subject.has_base and not subject.config.base_served


def weights(subject: Subject, which: str) -> Any:
    """The "tuned" or the "base" model, where `has_weights` says that it is here."""
    return getattr(subject, "tuned" if which == "tuned" else "untuned")
