"""A module to be patched, and its parameters put aside while it computes."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sordino.dp.tape import Tape

__all__ = ["Site", "substituted"]


@dataclass(frozen=True, eq=False)
class Site:
    """A module, its name in the model, its forward as it was, and where captures go."""

    name: str
    module: nn.Module
    original: Callable[..., Any]
    tape: Tape

    def trainable(self) -> dict[str, nn.Parameter]:
        """The module's trainable parameters, those of its parts too; shared ones once."""
        return {name: p for name, p in self.module.named_parameters() if p.requires_grad}

    def detached(self, name: str) -> Tensor | None:
        """The parameter `name`, as a constant."""
        found = getattr(self.module, name)
        return None if found is None else found.detach()


@contextmanager
def substituted(module: nn.Module, values: Mapping[str, Tensor]) -> Iterator[None]:
    """`values` stand in place of the parameters of those names, of `module` and its parts, as long as this is open."""
    places = [(module.get_submodule(name.rpartition(".")[0])._parameters, name.rpartition(".")[2]) for name in values]
    before = [own[leaf] for own, leaf in places]
    try:
        for (own, leaf), value in zip(places, values.values(), strict=True):
            own[leaf] = value  # type: ignore[assignment]
        yield
    finally:
        for (own, leaf), parameter in zip(places, before, strict=True):
            own[leaf] = parameter
