"""Extraction attacks that ask the models themselves: one file an attack, named as it is.

A file has two functions. `lacking(context)` says in words what is missing to carry the attack out, "" where nothing is,
and computes nothing. `carry_out(context, attack, pair, judge)` returns its `Attempt`; what costs time it keeps in
private/ by a key of all that it depends on, so that a second audit finds it.
"""

import importlib
import pkgutil
from typing import Any

from sordino.attacks.base import Attack
from sordino.audit.inputs import Context, Pair
from sordino.audit.judging import Judge
from sordino.results import Attempt

__all__ = ["carry_out", "lacking", "names"]


def names() -> tuple[str, ...]:
    """Every attack that is made here."""
    return tuple(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


def _module(name: str) -> Any:
    return importlib.import_module(f"{__name__}.{name}")


def lacking(name: str, context: Context) -> str:
    """What is missing to carry out the attack `name`, in words; "" where nothing is."""
    words: str = _module(name).lacking(context)
    return words


def carry_out(context: Context, attack: Attack, pair: Pair, judge: Judge) -> Attempt:
    """Carry out `attack` on the tuned model and the untuned one."""
    made: Attempt = _module(attack.name).carry_out(context, attack, pair, judge)
    return made
