"""Which ways of reading on give the logits that a model has when it reads the whole text: found by trying."""

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.generate.aligned import Reading
from sordino.generate.slots import Prefilled, Slots, last_only, prefill
from sordino.model import unwrapped

__all__ = ["Probe"]

# What architectures answer with whose cache cannot be used in the way that is tried.
_REFUSALS = (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError)
# Settings after which keys are hidden that a mask of our own would show.
_WINDOWS = ("sliding_window", "attention_chunk_size")


class Probe:
    """A text as long as the longest that will be read, and what the model says when it reads it whole."""

    def __init__(self, module: nn.Module, longest: int, vocabulary: int, device: torch.device) -> None:
        self.module, self.size = module, max(longest, 4)
        self.ids = np.arange(self.size, dtype=np.int64) * 7 % vocabulary
        self.given = torch.from_numpy(self.ids)[None].to(device)
        self.logits: Tensor = module(input_ids=self.given, use_cache=False).logits[0]

    def slots(self, *, common: bool) -> Prefilled | None:
        """The text but for its last token as `Slots` holds it, and half of it; None where these give other logits.

        With `common`, both stand after a beginning that was read apart.
        """
        try:
            sizes = [self.size - 1, self.size // 2]
            beginning = self._beginning() if common else None
            made = prefill(self.module, [self.ids[:size] for size in sizes], beginning, int(common))
            longest = int(made.lengths[0]) + 1
            return made if self._within(longest) and self._steps(made, sizes, longest) else None
        except _REFUSALS:
            return None

    def own_cache(self) -> bool:
        """Whether the model's own cache gives what it says when it reads everything."""
        half = self.size // 2
        try:
            reading = Reading(self.module, self.given[:, :half].expand(2, -1), kept=True)
            for place in range(half - 1, self.size):
                if not self._close(reading.logits, place):
                    return False
                if place + 1 < self.size:
                    reading.read(self.given[:, place + 1 : place + 2].expand(2, -1))
        except _REFUSALS:
            return False
        return True

    def _beginning(self) -> Any:
        return self.module(input_ids=self.given[:, :1], use_cache=True, **last_only(self.module)).past_key_values

    def _within(self, longest: int) -> bool:
        # A window shows little just beyond its width, so it is asked for by name as well.
        settings = unwrapped(self.module).config.get_text_config()
        windows = [getattr(settings, name, None) for name in _WINDOWS]
        return all(window is None or longest <= window for window in windows)

    def _steps(self, made: Prefilled, sizes: list[int], longest: int) -> bool:
        # Two of three rows, in another order: a row that is empty must not disturb those that are not.
        slots, rows, places = Slots(self.module, 3, longest, made), np.array([2, 0]), np.array(sizes) - 1
        slots.fill(rows, made, np.arange(2), self.ids[places])
        for _ in range(2):
            logits = slots.step()
            if not all(self._close(logits[row], int(place)) for row, place in zip(rows, places, strict=True)):
                return False
            places = np.minimum(places + 1, self.size - 1)
            slots.follow(rows, self.ids[places], np.zeros(2, dtype=bool))
        return True

    def _close(self, found: Tensor, place: int) -> bool:
        # In half precision, logits of 20 are a tenth apart; a wrong place or mask is further off than that.
        close = 1e-4 if found.dtype in (torch.float32, torch.float64) else 0.25
        return torch.allclose(found, self.logits[place].expand_as(found), rtol=close, atol=close)
