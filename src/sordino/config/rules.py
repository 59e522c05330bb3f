"""Rules about single values, and the one error that tells of a broken one."""

from collections.abc import Iterable
from typing import Any

from sordino.errors import ConfigError

__all__ = ["Rule", "check_rules"]

Rule = tuple[str, Any, bool, str]
"""A key, its value, whether that is allowed, and in words what is."""


def check_rules(rules: Iterable[Rule], prefix: str = "") -> None:
    """Raise `ConfigError` for the first of `rules` that is broken; keys are told with the `prefix`."""
    for key, value, good, allowed in rules:
        if not good:
            raise ConfigError(f"{prefix}{key} is {value!r}.", f"Allowed: {allowed}.")
