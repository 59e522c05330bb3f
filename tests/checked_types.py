"""Types and shapes checked at run time, sparingly where a function is made again and again."""

from collections import Counter
from collections.abc import Callable
from types import CodeType
from typing import Any

import jaxtyping
from jaxtyping import install_import_hook, jaxtyped

__all__ = ["install", "sparing"]


def sparing() -> Callable[..., Any]:
    """`jaxtyped` as the import hook uses it, for which a function inside a function is a new one at each call.

    To make the checks of one takes a millisecond, which is more than what most of them do: so of those that are
    made of the same code, the first, the second, the fourth, the eighth... are checked, and the rest are as in
    production. All other functions are checked at every call.
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
            return check(target)

        return decorate

    return decorator


def install(modules: list[str], typechecker: str) -> None:
    """Check `modules`, which are not imported yet, by `typechecker`."""
    # The hook writes `@jaxtyping.jaxtyped(...)` over every function.
    jaxtyping.jaxtyped = sparing()
    install_import_hook(modules, typechecker)
