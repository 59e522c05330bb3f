"""A cache whose rows are requests of any length: each is filled, read on and given to another by itself.

The key of the token at position j of a row stands in slot j, so no row is padded on the left and none is shifted when
another joins. What a row may see is said by a mask, and where it stands by position ids: this holds for full attention
with positions that are numbers, and `sordino.generate.engine` tries whether it does before it is used.
"""

import copy
from collections.abc import Sequence
from inspect import signature
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers.cache_utils import Cache, DynamicLayer

from sordino.model import unwrapped

__all__ = ["Prefilled", "Slots", "last_only", "prefill"]


def last_only(module: Any) -> dict[str, int]:
    """The argument by which a model computes logits of the last position only, where it has one."""
    return {"logits_to_keep": 1} if "logits_to_keep" in signature(unwrapped(module).forward).parameters else {}


class Prefilled:
    """Keys and values, layer by layer (n, heads, slots, d), of n prefixes, and their `lengths` with virtual tokens."""

    def __init__(self, cache: Any, lengths: Int[np.ndarray, " n"]) -> None:
        """Raise `ValueError` where `cache` does not hold one key of every token in every layer."""
        self.lengths, width = lengths, int(cache.get_seq_length())
        self.layers: list[tuple[Tensor, Tensor]] = [(layer.keys, layer.values) for layer in cache.layers]
        if not self.layers or any(t.ndim != 4 or t.shape[2] != width for pair in self.layers for t in pair):
            raise ValueError("not a cache of one key a token")

    @property
    def token_bytes(self) -> int:
        """Bytes of the keys and values of one token."""
        return sum(t.shape[1] * t.shape[3] * t.element_size() for pair in self.layers for t in pair)


def prefill(module: Any, prefixes: Sequence[np.ndarray], common: Any = None, shared: int = 0) -> Prefilled:
    """Read `prefixes` at once, shorter ones padded behind their end, where nothing that counts can see it.

    With `common`, the cache of the first `shared` tokens of all, only what follows is read.
    """
    lengths = np.array([len(p) for p in prefixes], dtype=np.int64)
    ids = np.zeros((len(prefixes), int(lengths.max()) - shared), dtype=np.int64)
    for row, prefix in enumerate(prefixes):
        ids[row, : len(prefix) - shared] = prefix[shared:]
    given = torch.from_numpy(ids).to(next(module.parameters()).device)
    if common is None:
        read = module(input_ids=given, use_cache=True, **last_only(module))
    else:
        past = copy.deepcopy(common)
        past.batch_repeat_interleave(len(prefixes))
        # Virtual tokens are in the cache; PEFT would put them there again.
        read = unwrapped(module)(input_ids=given, past_key_values=past, use_cache=True, **last_only(module))
    cache = read.past_key_values
    virtual = int(cache.get_seq_length()) - shared - ids.shape[1]
    return Prefilled(cache, lengths + virtual)


class _Places:
    """Where each row (R) writes the key of its next token, and how many slots are read."""

    def __init__(self, rows: int, device: torch.device) -> None:
        self.index = torch.arange(rows, device=device)
        self.place, self.width = torch.zeros_like(self.index), 1


class _Layer(DynamicLayer):  # type: ignore[misc]
    """Keys and values of all rows (R, heads, slots, d) of one layer of the model."""

    def __init__(self, keys: Tensor, values: Tensor, places: _Places) -> None:
        super().__init__()
        self.keys, self.values, self.places, self.is_initialized = keys, values, places, True

    def update(self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        """Put the keys and values of one token a row into its place; what is read of all."""
        at = self.places
        self.keys[at.index, :, at.place] = key_states[:, :, 0]
        self.values[at.index, :, at.place] = value_states[:, :, 0]
        return self.keys[:, :, : at.width], self.values[:, :, : at.width]

    def get_seq_length(self) -> int:
        """Tokens before the next, in the row that has most."""
        return self.places.width - 1


class Slots:
    """R rows of a cache with room for `slots` tokens, and the next token of each row."""

    def __init__(self, module: Any, rows: int, slots: int, like: Prefilled) -> None:
        self.inner, self.device = unwrapped(module), like.layers[0][0].device
        self.places = _Places(rows, self.device)
        # Zeros: a hidden slot has weight 0, and 0 times what memory happened to hold may be no number.
        made = []
        for pair in like.layers:
            keys, values = (t.new_zeros((rows, t.shape[1], slots, t.shape[3])) for t in pair)
            made.append(_Layer(keys, values, self.places))
        self.cache = Cache(layers=made)
        self.length = np.zeros(rows, dtype=np.int64)
        self.token = np.zeros(rows, dtype=np.int64)
        self.alive = np.zeros(rows, dtype=bool)

    def fill(
        self,
        rows: Int[np.ndarray, " n"],
        source: Prefilled,
        which: Int[np.ndarray, " n"],
        tokens: Int[np.ndarray, " n"],
    ) -> None:
        """Put the prefixes `which` of `source`, whose last tokens are `tokens`, into `rows`."""
        lengths = source.lengths[which]
        width = int(lengths.max())
        to, of = torch.from_numpy(rows).to(self.device), torch.from_numpy(which).to(self.device)
        for layer, (keys, values) in zip(self.cache.layers, source.layers, strict=True):
            layer.keys[to, :, :width] = keys[of, :, :width]
            layer.values[to, :, :width] = values[of, :, :width]
        # The last token is read once more, into its own slot: so the first step is like all others.
        self.length[rows], self.token[rows], self.alive[rows] = lengths - 1, tokens, True

    def step(self) -> Float[Tensor, "R V"]:
        """Logits of what follows the next token of each row; of rows that are not alive they mean nothing."""
        length = np.where(self.alive, self.length, 0)
        self.places.place = torch.from_numpy(length).to(self.device)
        self.places.width = int(length.max()) + 1
        dtype = self.inner.dtype
        sees = torch.arange(self.places.width, device=self.device) <= self.places.place[:, None]
        mask = torch.zeros(sees.shape, dtype=dtype, device=self.device).masked_fill_(~sees, torch.finfo(dtype).min)
        read = self.inner(
            input_ids=torch.from_numpy(self.token)[:, None].to(self.device),
            attention_mask=mask[:, None, None],
            position_ids=self.places.place[:, None],
            past_key_values=self.cache,
            use_cache=True,
        )
        logits: Tensor = read.logits[:, -1]
        return logits

    def follow(self, rows: Int[np.ndarray, " n"], tokens: Int[np.ndarray, " n"], done: Bool[np.ndarray, " n"]) -> None:
        """Take `tokens` as what comes next in `rows`; those that are `done` are free."""
        self.token[rows] = tokens
        self.length[rows] += 1
        self.alive[rows[done]] = False
        self.token[rows[done]] = 0

    def keep(self, rows: Int[np.ndarray, " n"]) -> None:
        """Drop all rows but these."""
        on = torch.from_numpy(rows).to(self.device)
        for layer in self.cache.layers:
            layer.keys, layer.values = layer.keys[on], layer.values[on]
        self.places.index = torch.arange(len(rows), device=self.device)
        self.length, self.token, self.alive = self.length[rows], self.token[rows], self.alive[rows]
