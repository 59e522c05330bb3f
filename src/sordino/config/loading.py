"""A configuration from YAML, then environment, then flags; and from a run card.

Unknown keys and mistyped values are errors that name the key, the value and what to do.
"""

import dataclasses
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from sordino.config.checks import check_values
from sordino.config.schema import RunConfig
from sordino.errors import ConfigError, RunError, did_you_mean
from sordino.inputs import from_environment, merge, parse_flags, read_yaml

__all__ = ["convert", "load", "recorded", "recorded_as"]

T = TypeVar("T")


def load(
    path: Path | str | None = None,
    *,
    values: Mapping[str, Any] | None = None,
    environment: Mapping[str, str] | None = None,
    flags: Sequence[str] = (),
) -> RunConfig:
    """A checked `RunConfig` from a YAML file, a mapping, the environment and flags, later ones winning.

    `environment` holds `SORDINO__TRAIN__EPOCHS=3`-like variables, `flags` words such as
    `--train.epochs 3`. Raises `ConfigError` for unknown keys, wrong types and values out of range.
    """
    merged: dict[str, Any] = dict(read_yaml(Path(path)) if path is not None else {})
    for layer in (
        values or {},
        from_environment(os.environ if environment is None else environment),
        parse_flags(flags),
    ):
        merged = merge(merged, layer)
    _check_keys(merged, RunConfig, "")
    if "data" not in merged:
        raise ConfigError("No data is configured.", "Set `data.path` to your file of records.")
    config = convert(merged, RunConfig)
    check_values(config)
    return config


def convert(values: Mapping[str, Any], kind: type[T]) -> T:
    """`values` as the configuration `kind`; raises `ConfigError` for unknown keys and wrong types."""
    _check_keys(values, kind, "")
    try:
        return _complete(msgspec.convert(values, kind))
    except msgspec.ValidationError as error:
        raise _mistyped(error, values, kind) from error


def recorded(values: Mapping[str, Any], source: str) -> RunConfig:
    """The configuration of a training that a run card holds; raises `RunError` where it was damaged."""
    return recorded_as(RunConfig, values, source)


def recorded_as(kind: type[T], values: Mapping[str, Any], source: str) -> T:
    """The configuration `kind` that a run card holds; raises `RunError` where it was damaged."""
    try:
        return _complete(msgspec.convert(values, kind))
    except msgspec.ValidationError as error:
        raise RunError(f"The configuration in {source} is damaged: {error}.", "Restore the file.") from error


def _complete(value: T) -> T:
    # msgspec leaves defaults on the class, so a converted value would be written without them.
    if not dataclasses.is_dataclass(value) or isinstance(value, type):
        return value
    fields = {f.name: _complete(getattr(value, f.name)) for f in dataclasses.fields(value)}
    return type(value)(**fields)


def _mistyped(error: msgspec.ValidationError, merged: Mapping[str, Any], kind: Any) -> ConfigError:
    what, _, place = str(error).partition(" - at `$.")
    key = place.rstrip("`").split("[")[0]
    value: Any = merged
    for name in key.split(".") if key else ():
        kind = typing.get_type_hints(_section(kind) or object).get(name)
        value = value.get(name) if isinstance(value, Mapping) else None
    choices = typing.get_args(kind) if typing.get_origin(kind) is Literal else ()
    hint = did_you_mean(str(value), choices) if choices else "See `sordino init` for every key and its default."
    return ConfigError(f"{key or 'The configuration'} is {value!r}: {what.replace('`', '').lower()}.", hint)


def _section(annotation: Any) -> type | None:
    candidates = typing.get_args(annotation) if isinstance(annotation, types.UnionType) else (annotation,)
    return next((c for c in candidates if dataclasses.is_dataclass(c) and isinstance(c, type)), None)


def _check_size(name: str, value: Any) -> None:
    """A run could be written with such a number, and never be read again."""
    for one in value if isinstance(value, list | tuple) else (value,):
        if isinstance(one, int) and not -(2**63) <= one < 2**64:
            raise ConfigError(f"{name} is {one}.", "Whole numbers are below 2^64.")


def _entries(annotation: Any, value: Any) -> list[tuple[type, Mapping[str, Any]]]:
    """The mappings in a list of sections, such as audit.sampling.decodings, each with its kind."""
    kind = next(iter(typing.get_args(annotation)), None) if typing.get_origin(annotation) is tuple else None
    section = _section(kind)
    if section is None or not isinstance(value, list | tuple):
        return []
    return [(section, inner) for inner in value if isinstance(inner, Mapping)]


def _check_keys(values: Mapping[str, Any], kind: type, prefix: str) -> None:
    hints = typing.get_type_hints(kind)
    known = [field.name for field in dataclasses.fields(kind)]
    for key, value in values.items():
        if key not in known:
            message = f"Unknown configuration key '{prefix}{key}'."
            raise ConfigError(message, _whereabouts(str(key), hints) or did_you_mean(str(key), known))
        _check_size(f"{prefix}{key}", value)
        for place, (kind_inside, inner) in enumerate(_entries(hints[key], value)):
            _check_keys(inner, kind_inside, f"{prefix}{key}[{place}].")
        section = _section(hints[key])
        if section is None or (value is None and type(None) in typing.get_args(hints[key])):
            continue
        if not isinstance(value, Mapping):
            inside = ", ".join(field.name for field in dataclasses.fields(section))
            message = f"'{prefix}{key}' is a section, but its value is {value!r}."
            raise ConfigError(message, f"Write its keys below it: {inside}.")
        _check_keys(value, section, f"{prefix}{key}.")


def _whereabouts(key: str, hints: Mapping[str, Any]) -> str:
    """A hint where a section below has the `key` that was given without it."""
    sections = {name: found for name, hint in hints.items() if (found := _section(hint)) is not None}
    owners = [n for n, kind in sections.items() if key in (f.name for f in dataclasses.fields(kind))]
    return f"Did you mean '{owners[0]}.{key}'?" if len(owners) == 1 else ""
