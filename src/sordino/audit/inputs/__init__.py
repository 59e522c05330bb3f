"""What attacks need beyond statistics of the records themselves, one file an input, named as attacks declare it.

A file has two functions. `lacking(context)` says in words what is missing to provide the input, "" where nothing
is, and computes nothing. `give(context, pair)` returns the signals of the tuned and of the untuned model with the
input added; what it computes it keeps in the run's store, so that a second audit finds it.
"""

import importlib
import pkgutil
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np

from sordino.audit.inputs.context import Context, Pair
from sordino.errors import AuditError, did_you_mean

__all__ = ["Context", "Pair", "lacking", "measured", "names", "provide"]

_OWN = ("context",)


def names() -> tuple[str, ...]:
    """Every input that there is."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if m.name not in _OWN)


def _module(name: str) -> Any:
    if name not in names():
        raise AuditError(f"No input of attacks is named '{name}'.", did_you_mean(name, names()))
    return importlib.import_module(f"{__name__}.{name}")


def lacking(wanted: Iterable[str], context: Context) -> str:
    """What is missing to provide the inputs `wanted`, in words; "" where nothing is."""
    return " and ".join(words for name in sorted(wanted) if (words := _module(name).lacking(context)))


def provide(wanted: Iterable[str], context: Context, pair: Pair) -> Pair:
    """`pair` with the inputs `wanted`; what the adversary knows comes first, as others build on it."""
    for name in sorted(wanted, key=lambda n: (n != "known", n)):
        with context.timed(f"input {name}"):
            pair = _module(name).give(context, pair)
    return pair


def measured(pair: Pair, name: str, tuned: np.ndarray, untuned: np.ndarray | None) -> Pair:
    """`pair` with rows of numbers under `name`: (records, …) under the tuned model, and under the untuned one."""
    first, second = pair
    if second is not None and untuned is not None:
        second = replace(second, measured={**second.measured, name: untuned})
        second = replace(second, base=replace(second, base=None))
    base = first.base if second is None else replace(second, base=None)
    return replace(first, measured={**first.measured, name: tuned}, base=base), second
