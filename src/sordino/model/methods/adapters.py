"""Bottleneck adapters after both sub-layers of every block (Houlsby et al. 2019, arXiv:1902.00751)."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.functional import gelu

from sordino.model.methods.head import parameters_of
from sordino.model.methods.layout import blocks, conv1d
from sordino.model.methods.replaced import Replaced

__all__ = ["Bottlenecks", "attach_adapters"]


class _Bottleneck(nn.Module):
    """x + up(gelu(down(x))), at first exactly x."""

    def __init__(self, width: int, inner: int, like: torch.Tensor) -> None:
        super().__init__()
        self.on = True
        self.down = nn.Linear(width, inner, device=like.device, dtype=like.dtype)
        self.up = nn.Linear(inner, width, device=like.device, dtype=like.dtype)
        nn.init.normal_(self.down.weight, std=1e-2)
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The same shape as `x` (..., width)."""
        change: torch.Tensor = self.up(gelu(self.down(x)))
        return x + change

    def after(self, module: nn.Module, args: Any, output: torch.Tensor) -> torch.Tensor:
        """As a hook behind the module whose output is adapted."""
        return self(output) if self.on else output


class Bottlenecks(nn.Module):
    """The adapters of a model, and of a classifier its head."""

    def __init__(self, model: nn.Module, places: list[str], inner: int, whole: Sequence[str] = ()) -> None:
        """Hang one adapter of `inner` units behind each of the linear modules `places` of `model`.

        The parameters called `whole` are tuned along with them.
        """
        super().__init__()
        self.head = Replaced(model, whole)
        self.at = nn.ModuleList()
        for place in places:
            before: Any = model.get_submodule(place)
            width = before.weight.shape[1 if isinstance(before, conv1d()) else 0]
            adapter = _Bottleneck(width, inner, before.weight)
            before.register_forward_hook(adapter.after)
            self.at.append(adapter)

    def tensors(self, model: nn.Module) -> dict[str, torch.Tensor]:
        """What is tuned, by its name among the adapters, or in `model`."""
        return {**dict(self.named_parameters()), **self.head.tensors(model)}

    @contextmanager
    def off(self, model: nn.Module) -> Iterator[None]:
        """No adapter does anything as long as this is open."""
        adapters: Any = list(self.at)
        before = [adapter.on for adapter in adapters]
        for adapter in adapters:
            adapter.on = False
        try:
            with self.head.off(model):
                yield
        finally:
            for adapter, on in zip(adapters, before, strict=True):
                adapter.on = on


def attach_adapters(module: Any, inner: int, heads: Sequence[str] | None = None) -> Bottlenecks:
    """Adapters behind attention and feed-forward, before what they add to is added.

    The paper tunes layer norms and the head along with them; here they stay as they are, but for
    `heads`, the modules above a classifier's trunk.
    """
    found = blocks(module, "adapters")
    places = [f"{b.place}.{name}" for b in found for name in (b.attention_out, b.feedforward_out)]
    return Bottlenecks(module, places, inner, parameters_of(module, heads or ()))
