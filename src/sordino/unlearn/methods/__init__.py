"""Methods, one file each, found by their names; every forget loss is one too, and installed packages may add more."""

import importlib
import pkgutil
from collections.abc import Mapping
from importlib.metadata import entry_points

from sordino.errors import UnlearningError, did_you_mean
from sordino.unlearn.base import Method

__all__ = ["GROUP", "discover", "named"]

GROUP = "sordino.unlearners"
_LOSSES = "losses"


def discover() -> dict[str, Method]:
    """All methods by name: ours and those that installed packages add.

    Raises `UnlearningError` where two have one name, or a module holds no method of its own name.
    """
    found: dict[str, Method] = {}
    for info in pkgutil.iter_modules(__path__):
        module = importlib.import_module(f"{__name__}.{info.name}")
        if info.name == _LOSSES:
            found |= module.METHODS
            continue
        method = getattr(module, info.name, None)
        if not isinstance(method, Method):
            message = f"{module.__name__} holds no method named '{info.name}'."
            raise UnlearningError(message, "File name, function name and method name are one.")
        found[method.name] = method
    for entry in entry_points(group=GROUP):
        method = entry.load()
        if isinstance(method, Method):
            if method.name in found:
                message = f"Two methods of unlearning are named '{method.name}'; one comes from {entry.value}."
                raise UnlearningError(message, "Uninstall or rename one.")
            found[method.name] = method
    return dict(sorted(found.items()))


def named(name: str, methods: Mapping[str, Method] | None = None) -> Method:
    """The method called `name`; raises `UnlearningError`, with a suggestion, where there is none."""
    known = discover() if methods is None else methods
    if name not in known:
        raise UnlearningError(f"There is no method of unlearning '{name}'.", did_you_mean(name, known))
    return known[name]
