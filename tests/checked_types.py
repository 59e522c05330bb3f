"""Types and shapes checked at run time, sparingly where a function is made again and again."""

from collections import Counter
from collections.abc import Callable
from types import CodeType, FunctionType
from typing import Any

import jaxtyping
from beartype import BeartypeConf, beartype
from jaxtyping import TypeCheckError, install_import_hook, jaxtyped

__all__ = ["checker", "install", "sparing"]

# As for mypy, an int is a float (PEP 484).
checker = beartype(conf=BeartypeConf(is_pep484_tower=True, violation_type=TypeCheckError))


def sparing() -> Callable[..., Any]:
    """`jaxtyped` as the import hook uses it, for which a function inside a function is a new one at each call.

    To make the checks of one takes a millisecond, which is more than what most of them do: so of those that are
    made of the same code, the first, the second, the fourth, the eighth... are checked, and the rest are as in
    production. All other functions are checked at every call, those without a shape in their signature by the
    type checker alone: a scope for names of dimensions takes ten times as long as such a check, and none is needed.
    """
    made: Counter[CodeType] = Counter()

    def decorator(*, typechecker: Any) -> Callable[[Any], Any]:
        check = jaxtyped(typechecker=typechecker)

        def decorate(target: Any) -> Any:
            code = getattr(target, "__code__", None)
            if code is not None and "<locals>" in target.__qualname__:
                made[code] += 1
                if made[code] & (made[code] - 1):
                    return target
            elif isinstance(target, FunctionType) and not _shaped(target):
                return typechecker(target)
            return check(target)

        return decorate

    return decorator


def _shaped(function: FunctionType) -> bool:
    """Whether a signature may name a dimension: it has a type of jaxtyping in it, or one that is not known yet."""
    hints = function.__annotations__.values()
    texts = [hint.__module__ if isinstance(hint, type) else repr(hint) for hint in hints]
    # Names in quotes, alone or in another type, are looked up later.
    return any("jaxtyping" in text or "'" in text for text in texts)


def install(modules: list[str], typechecker: str) -> None:
    """Check `modules`, which are not imported yet, by `typechecker`."""
    # The hook writes `@jaxtyping.jaxtyped(...)` over every function.
    jaxtyping.jaxtyped = sparing()
    install_import_hook(modules, typechecker)
