"""Settings as they are given, in YAML, in the environment and as flags: nested mappings, not yet judged."""

import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sordino.errors import ConfigError

__all__ = ["from_environment", "merge", "parse_flags", "read_yaml"]

_ENVIRONMENT = "SORDINO__"
_EXPONENT = re.compile(r"[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+")


def _parse_yaml(text: str) -> Any:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            keys = [key.value for key, _ in node.value]
            twice = next((key for key in keys if keys.count(key) > 1), None)
            if twice is not None:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key '{twice}' is there twice", node.start_mark
                )
            return super().construct_mapping(node, deep)

    # YAML 1.1 reads 2e-4 as text; people who write it mean a number.
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789"))
    return yaml.load(text, Loader=Loader)


def read_yaml(path: Path) -> Mapping[str, Any]:
    """The keys of a YAML file; raises `ConfigError` where there is none, or it is damaged or holds something else."""
    import yaml

    if not path.is_file():
        raise ConfigError(f"There is no configuration file {path}.", "`sordino init DATA` writes one.")
    try:
        content = _parse_yaml(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        text = " ".join(str(error).split())
        raise ConfigError(f"{path} is not valid YAML: {text}.", "Correct that line.") from error
    if content is None:
        return {}
    if not isinstance(content, Mapping):
        raise ConfigError(f"{path} holds a {type(content).__name__}, not keys.", "See `sordino init`.")
    return content


def merge(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """Nested mappings as one, the values of `above` winning."""
    merged = dict(below)
    for key, value in above.items():
        old = merged.get(key)
        both = isinstance(old, Mapping) and isinstance(value, Mapping)
        merged[key] = merge(old, value) if both else value  # type: ignore[arg-type]
    return merged


def _nest(dotted: str, text: str) -> dict[str, Any]:
    import yaml

    try:
        value: Any = _parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"The value of {dotted} cannot be read: {text!r}.", "Quote it.") from error
    for key in reversed(dotted.split(".")):
        value = {key.replace("-", "_"): value}
    return typing.cast(dict[str, Any], value)


def parse_flags(flags: Sequence[str]) -> dict[str, Any]:
    """`["--train.epochs", "3", "--seed=1"]` as a nested mapping."""
    merged: dict[str, Any] = {}
    rest = list(flags)
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            message = f"{word!r} is neither a known option nor a configuration key."
            raise ConfigError(message, "Write keys as `--section.key VALUE`.")
        name, equals, value = word[2:].partition("=")
        if not equals:
            if not rest:
                raise ConfigError(f"{word} has no value.", f"Write `{word} VALUE`.")
            value = rest.pop(0)
        merged = merge(merged, _nest(name, value))
    return merged


def from_environment(environment: Mapping[str, str]) -> dict[str, Any]:
    """The variables of `environment` like `SORDINO__TRAIN__EPOCHS=3` as a nested mapping."""
    merged: dict[str, Any] = {}
    for name, value in environment.items():
        if name.startswith(_ENVIRONMENT):
            dotted = name.removeprefix(_ENVIRONMENT).lower().replace("__", ".")
            merged = merge(merged, _nest(dotted, value))
    return merged
