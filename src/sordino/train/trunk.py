"""The blocks below the first adapter: the same for all adapters at all times, so computed once a record, exactly."""

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.errors import ModelError, SordinoError
from sordino.model import Model
from sordino.serialize import Tokens

__all__ = ["Room", "States", "Trunk", "find_trunk"]


@dataclass(frozen=True, kw_only=True)
class Room:
    """Where states are kept: in `memory` bytes, else in a file in `folder`; made in passes of `at_once` tokens."""

    at_once: int
    memory: int
    folder: Path


class _Reached(Exception):
    """The states at the first block above the trunk."""

    def __init__(self, states: Tensor) -> None:
        self.states = states


class Trunk:
    """The first `depth` blocks of `stack` in `module`, below all adapters.

    What a block gives back is `states`, or a tuple that begins with them, `length` long (0: no tuple).
    """

    def __init__(self, module: nn.Module, stack: nn.ModuleList, depth: int) -> None:
        self.module, self.blocks, self.above = module, list(stack[:depth]), stack[depth]
        self.length = 0
        self.states: Tensor | None = None

    @torch.no_grad()
    def run(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        """The states (B, T, d) that enter the first block above the trunk."""

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(args[0] if args else kwargs["hidden_states"])

        handle = self.above.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            self.module(input_ids=ids, attention_mask=mask, use_cache=False)
        except _Reached as reached:
            return reached.states
        finally:
            handle.remove()
        raise ModelError("A forward pass did not come to the first adapted block.", "Set trunk='off'.")

    @contextmanager
    def skipped(self) -> Iterator["Trunk"]:
        """A context in which the trunk is not computed: what `states` holds enters the block above it."""
        replaced = [(block, block.__dict__.get("forward")) for block in self.blocks]
        try:
            for block in self.blocks:
                block.forward = self._given
            yield self
        finally:
            self.states = None
            for block, before in replaced:
                del block.forward
                if before is not None:
                    block.forward = before

    def _given(self, *args: Any, **kwargs: Any) -> Any:
        assert self.states is not None  # set before each forward
        return (self.states, *[None] * (self.length - 1)) if self.length else self.states

    def learn(self, ids: Tensor) -> None:
        """Find out in which form blocks give their states back; raises `ModelError` where they give more."""
        kept: list[Any] = []
        handle = self.blocks[0].register_forward_hook(lambda _, args, result: kept.append(result))
        try:
            self.run(ids, None)
        finally:
            handle.remove()
        result = kept[0] if kept else None
        if isinstance(result, tuple) and all(item is None for item in result[1:]):
            self.length = len(result)
        elif not isinstance(result, Tensor):
            raise ModelError("A block gives back more than hidden states.", "Set trunk='off'.")


def find_trunk(model: Model, names: Sequence[str], *, training: bool) -> Trunk | str | None:
    """The trunk of `model` below the modules called `names`; None where they reach down to the first block.

    Where there is one that cannot be skipped exactly, the reason why, as words.

    It is tried on a few tokens: states of single records, padded with zeros, must give the logits of the whole model,
    and for `training` must be the same in training mode, where dropout would change them from pass to pass.
    """
    module = model.module
    count = int(module.config.get_text_config().num_hidden_layers)
    stacks = [(n, m) for n, m in module.named_modules() if isinstance(m, nn.ModuleList) and len(m) == count]
    if not stacks:
        return f"no stack of {count} blocks is found in {type(module).__name__}"
    place, stack = stacks[0]
    inside = [name.partition(f"{place}.")[2].partition(".")[0] for name in names]
    if not all(number.isdigit() for number in inside):
        return "an adapter is outside the blocks"
    depth = min(int(number) for number in inside)
    if not depth:
        return None
    trunk = Trunk(module, stack, depth)
    try:
        exact = _is_exact(model, trunk, training)
    except (SordinoError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        exact = False
    return trunk if exact else f"the blocks of {type(module).__name__} cannot be skipped exactly"


@torch.no_grad()
def _is_exact(model: Model, trunk: Trunk, training: bool) -> bool:
    vocabulary = int(model.module.config.get_text_config().vocab_size)
    rows = [torch.arange(8, device=model.device)[None] % vocabulary, torch.arange(3, 8, device=model.device)[None]]
    mask = torch.ones(2, 8, dtype=torch.int64, device=model.device)
    mask[1, 5:] = 0
    ids = torch.cat([rows[0], torch.nn.functional.pad(rows[1] % vocabulary, (0, 3))])
    was_training = model.module.training
    try:
        model.module.eval()
        trunk.learn(ids)
        apart = [trunk.run(ids[:1], None)[0], trunk.run(ids[1:, :5], None)[0]]
        whole = model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        with trunk.skipped():
            trunk.states = torch.nn.utils.rnn.pad_sequence(apart, batch_first=True)
            found = model.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
        model.module.train(training)
        random = trunk.run(ids, mask), trunk.run(ids, mask)
    finally:
        model.module.train(was_training)
    keep = mask.bool()
    bound = 1e-5 * whole[keep].abs().max()
    steady = all(_near(states[0], apart[0]) and _near(states[1, :5], apart[1]) for states in random)
    return steady and bool((found - whole)[keep].abs().max() <= bound)


def _near(found: Tensor, wanted: Tensor) -> bool:
    return bool((found - wanted).abs().max() <= 1e-5 * wanted.abs().max())


class States:
    """The states above `trunk` of those records of `tokens` whose places are `wanted`, each kept once.

    The file has no name, so that it is gone when the process ends: it holds what the model made of private text.
    """

    def __init__(self, model: Model, trunk: Trunk, tokens: Sequence[Tokens], wanted: Sequence[int], room: Room) -> None:
        self.device = model.device
        self.offsets = np.full(len(tokens), -1, dtype=np.int64)
        lengths = np.array([len(tokens[i]) for i in wanted], dtype=np.int64)
        self.offsets[list(wanted)] = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        self.lengths = np.array([len(t) for t in tokens], dtype=np.int64)
        self.on_disk, self._values = False, torch.empty(0)
        with model.active():
            self._fill(trunk, tokens, wanted, room)

    def _fill(self, trunk: Trunk, tokens: Sequence[Tokens], wanted: Sequence[int], room: Room) -> None:
        order, total = sorted(wanted, key=lambda i: len(tokens[i])), int(self.lengths[list(wanted)].sum())
        start = 0
        while start < len(order):
            stop = start + 1
            while stop < len(order) and len(tokens[order[stop]]) * (stop + 1 - start) <= room.at_once:
                stop += 1
            chosen = order[start:stop]
            width = len(tokens[chosen[-1]])
            ids = torch.zeros(len(chosen), width, dtype=torch.int64)
            mask = torch.zeros_like(ids)
            for row, i in enumerate(chosen):
                ids[row, : len(tokens[i])] = torch.from_numpy(tokens[i].ids.astype(np.int64))
                mask[row, : len(tokens[i])] = 1
            states = trunk.run(ids.to(self.device), mask.to(self.device)).cpu()
            if not len(self._values):
                self._values = self._place(total, states, room)
            for row, i in enumerate(chosen):
                first = int(self.offsets[i])
                self._values[first : first + len(tokens[i])] = states[row, : len(tokens[i])]
            start = stop

    def _place(self, total: int, states: Tensor, room: Room) -> Tensor:
        width = states.shape[-1]
        if total * width * states.element_size() <= room.memory:
            return torch.empty(total, width, dtype=states.dtype)
        self.on_disk = True
        with tempfile.TemporaryFile(dir=room.folder) as file:
            kind = np.float64 if states.dtype == torch.float64 else np.float32
            return torch.from_numpy(np.memmap(file, dtype=kind, mode="w+", shape=(total, width)))

    def batch(self, rows: np.ndarray, width: int) -> Tensor:
        """The states (R, width, d) of records `rows` (R), zero beyond their ends; of row -1, all zero."""
        at = np.arange(width)[None]
        inside = at < np.where(rows >= 0, self.lengths[rows], 0)[:, None]
        places = np.where(inside, self.offsets[rows][:, None] + at, 0)
        states = self._values.index_select(0, torch.from_numpy(places.ravel()))
        states[torch.from_numpy(~inside.ravel())] = 0
        return states.view(len(rows), width, -1).to(self.device)
