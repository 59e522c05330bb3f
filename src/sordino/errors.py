"""Every failure Sordino expects, as one tree.

    SordinoError                 what happened, the value, what to do; the CLI exits with 2
    ├── DataError (ValueError)   records that cannot be read or used
    ├── ConfigError (ValueError) a run configuration or an argument that cannot be meant
    ├── ModelError (ValueError)  a model or tokenizer that cannot be loaded or supported
    ├── RunError (OSError)       a run folder that is missing, damaged, or of another version
    ├── TrainingError (RuntimeError)  training cannot go on: NaN loss, memory, disk
    ├── DPError (RuntimeError)        a guarantee of differential privacy that cannot be given
    ├── AccountingError (ValueError)  a privacy claim that no accountant can prove
    ├── AuditError (RuntimeError)     an audit that cannot be carried out as asked
    └── UnlearningError (RuntimeError)  a deletion that cannot be carried out, verified or certified as asked

Anything else that reaches a user as a traceback is a bug in Sordino.
"""

import difflib
from collections.abc import Iterable

__all__ = [
    "AccountingError",
    "AuditError",
    "ConfigError",
    "DPError",
    "DataError",
    "ModelError",
    "RunError",
    "SordinoError",
    "TrainingError",
    "UnlearningError",
    "did_you_mean",
    "first_line",
]


class SordinoError(Exception):
    """An expected failure: `message` says what happened and the value, `hint` what to do."""

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        """Message and hint as one text."""
        return f"{self.message} {self.hint}".strip()


class DataError(SordinoError, ValueError):
    """Records that cannot be read or used."""


class ConfigError(SordinoError, ValueError):
    """A run configuration or an argument that cannot be meant."""


class ModelError(SordinoError, ValueError):
    """A model or tokenizer that cannot be loaded or supported."""


class RunError(SordinoError, OSError):
    """A run folder that is missing, damaged, or of another version."""


class TrainingError(SordinoError, RuntimeError):
    """Training cannot go on."""


class AccountingError(SordinoError, ValueError):
    """A privacy claim that no accountant can prove, or on which two accountants disagree."""


class AuditError(SordinoError, RuntimeError):
    """An audit that cannot be carried out as asked."""


class UnlearningError(SordinoError, RuntimeError):
    """A deletion that cannot be carried out, verified or certified as asked."""


class DPError(SordinoError, RuntimeError):
    """A guarantee of differential privacy that cannot be given."""


def first_line(error: BaseException) -> str:
    """The first line of what another library's `error` says, without its full stop; else the error's name."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".: ")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelled `name`: the nearest of `known`, else all of them."""
    choices = sorted(known)
    near = difflib.get_close_matches(name, choices, n=1, cutoff=0.6)
    if near:
        return f"Did you mean '{near[0]}'?"
    return f"Known: {', '.join(choices)}." if choices else ""
