"""Batched generation with shared prefixes: what the model says, or would say, after a prefix."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from sordino.model import Model, unwrapped

__all__ = ["Continuation", "greedy", "sampled"]

# Paths in a batch.
_PATHS = 2048
# Prefixes that are decoded together differ by so many tokens at most, each of which is a step for all.
_REACH = 16

Pick = Callable[[torch.Tensor], torch.Tensor]
"""Logits (B, V) of the next token to one token for each (B, 1)."""
PickFor = Callable[[Sequence[int], Sequence[int]], Pick]
"""How the rows of a batch are decoded: which prefixes they are, and after how many steps each begins."""


def greedy(
    model: Model, prefixes: Sequence[np.ndarray], lengths: Sequence[int], *, batch_size: int = 64
) -> list[np.ndarray]:
    """The `lengths[i]` tokens that greedy decoding puts after `prefixes[i]`; the end token does not stop it.

    Each is the most likely token by the model's own logits: no setting that came with the model
    (repetition penalty, suppressed tokens) has a say.
    """
    return _generate(model, prefixes, lengths, lambda *_: lambda logits: logits.argmax(-1, keepdim=True), batch_size)


def sampled(
    model: Model,
    prefixes: Sequence[np.ndarray],
    lengths: Sequence[int],
    *,
    seed: int,
    seeds: Sequence[int] | None = None,
    batch_size: int = 64,
) -> list[np.ndarray]:
    """`lengths[i]` tokens drawn after `prefixes[i]` at temperature 1; the end token does not stop it.

    Each has random numbers of its own, from `seed` and `seeds[i]` (by default i): what a prefix shares a batch with
    changes nothing about its tokens, beyond rounding.
    """
    names = range(len(prefixes)) if seeds is None else seeds
    longest = max(lengths, default=0)

    def draw_for(rows: Sequence[int], late: Sequence[int]) -> Pick:
        numbers = np.zeros((len(rows), longest + max(late)))
        for row, (i, first) in enumerate(zip(rows, late, strict=True)):
            numbers[row, first : first + longest] = np.random.default_rng([seed, names[i]]).random(longest)
        drawn = iter(numbers.T)

        def draw(logits: torch.Tensor) -> torch.Tensor:
            # The token at which the cumulated probability first exceeds a uniform number.
            edges = torch.softmax(logits.cpu().double(), dim=-1).cumsum(dim=-1)
            wanted = torch.from_numpy(next(drawn).copy())[:, None] * edges[:, -1:]
            return torch.searchsorted(edges, wanted, right=True).clamp(max=logits.shape[1] - 1).to(logits.device)

        return draw

    return _generate(model, prefixes, lengths, draw_for, batch_size)


def _generate(
    model: Model, prefixes: Sequence[np.ndarray], lengths: Sequence[int], pick_for: PickFor, batch_size: int
) -> list[np.ndarray]:
    out: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(prefixes)
    # Prefixes of about one length share a batch without padding, so that no position is shifted.
    order = sorted(range(len(prefixes)), key=lambda i: (len(prefixes[i]), lengths[i]))
    with model.active() as module:
        start = 0
        while start < len(order):
            width = len(prefixes[order[start]])
            chosen = [i for i in order[start : start + batch_size] if len(prefixes[i]) <= width + _REACH]
            late = [len(prefixes[i]) - width for i in chosen]
            forced = np.full((len(chosen), max(late)), -1, dtype=np.int64)
            for row, i in enumerate(chosen):
                forced[row, : late[row]] = prefixes[i][width:]
            ids = torch.from_numpy(np.stack([prefixes[i][:width] for i in chosen]).astype(np.int64)).to(model.device)
            steps = max(first + lengths[i] for first, i in zip(late, chosen, strict=True))
            pick = _forced(pick_for(chosen, late), torch.from_numpy(forced).to(model.device))
            made = _decode(module, ids, steps, pick).cpu().numpy().astype(np.int32)
            for row, i in enumerate(chosen):
                out[i] = made[row, late[row] : late[row] + lengths[i]]
            start += len(chosen)
    return out


def _forced(pick: Pick, forced: torch.Tensor) -> Pick:
    """`pick`, but at first the tokens `forced` (B, steps), where they are not −1: the rest of longer prefixes."""
    step = iter(range(1 << 62))

    def picked(logits: torch.Tensor) -> torch.Tensor:
        found, number = pick(logits), next(step)
        if number >= forced.shape[1]:
            return found
        own = forced[:, number : number + 1]
        return torch.where(own >= 0, own, found)

    return picked


def _decode(module: nn.Module, ids: torch.Tensor, length: int, pick: Pick) -> torch.Tensor:
    """The `length` tokens (B, length) that `pick` takes after `ids` (B, P), one after the other."""
    read = module(input_ids=ids, use_cache=True)
    made = [pick(read.logits[:, -1])]
    for _ in range(length - 1):
        cache = getattr(read, "past_key_values", None)
        if cache is None:
            # Nothing is kept by this architecture: it reads everything again.
            read = module(input_ids=torch.cat([ids, *made], dim=1), use_cache=True)
        else:
            # Virtual tokens are in the cache; PEFT would put them there again.
            read = unwrapped(module)(input_ids=made[-1], past_key_values=cache, use_cache=True)
        made.append(pick(read.logits[:, -1]))
    return torch.cat(made, dim=1)


@dataclass(frozen=True)
class _Tree:
    """Paths that share their first tokens, as rows of one batch: every distinct prefix stands once.

    `ids` and `depth` (rows, width), the token and its place in its path, padded with 0;
    `sees` (rows, width, width), which tokens of a row are on the way to which; `row` and `column`
    (paths), where the last token of each path stands.
    """

    ids: np.ndarray
    depth: np.ndarray
    sees: np.ndarray
    row: np.ndarray
    column: np.ndarray


def _tree(paths: np.ndarray, shared: int) -> _Tree:
    """Lay out sorted `paths` (paths, depth), those with the same first `shared` tokens in one row."""
    count, length = paths.shape
    new = np.ones((count, length), dtype=bool)
    new[1:] = np.logical_or.accumulate(paths[1:] != paths[:-1], axis=1)
    starts = new[:, :shared].any(axis=1) if shared else np.arange(count) == 0
    row = np.cumsum(starts) - 1
    new[starts] = True
    sizes = np.bincount(row, weights=new.sum(axis=1)).astype(np.int64)
    before = np.concatenate([[0], np.cumsum(sizes)])[:-1]
    # Nodes in the order of first appearance; a path's node at each depth is the latest one made there.
    number = (np.cumsum(new.ravel()).reshape(new.shape) - 1) * new
    number = np.maximum.accumulate(number, axis=0) - before[row][:, None]
    rows, width = int(row[-1]) + 1, int(sizes.max())
    ids, depth = np.zeros((rows, width), dtype=np.int64), np.zeros((rows, width), dtype=np.int64)
    sees = np.zeros((rows, width, width), dtype=bool)
    sees[:, np.arange(width), np.arange(width)] = True
    for place in range(length):
        ids[row, number[:, place]] = paths[:, place]
        depth[row, number[:, place]] = place
        for above in range(place):
            sees[row, number[:, place], number[:, above]] = True
    return _Tree(ids=ids, depth=depth, sees=sees, row=row, column=number[:, -1])


class Continuation:
    """Log-probabilities of continuations of one prefix, whose keys and values are computed once.

    Paths that begin alike share the tokens they begin with (a tree, each token attending to its own
    ancestors), so all candidates of a secret cost about one token each. Where that does not give the
    model's own logits (a window on attention, positions that are not numbers), paths are read whole.
    """

    def __init__(self, module: nn.Module, prefix: Int[np.ndarray, " P"], device: torch.device) -> None:
        """Read `prefix` (P ≥ 1 tokens); `module` must stay active while this is used."""
        self.module, self.inner, self.device = module, unwrapped(module), device
        self.prefix = torch.from_numpy(np.asarray(prefix, dtype=np.int64))[None].to(device)
        read = module(input_ids=self.prefix, use_cache=True)
        self.cache: Any = getattr(read, "past_key_values", None)
        self.first = torch.log_softmax(read.logits[:, -1].float(), dim=-1)
        # With virtual tokens, if the method has them: they have positions of their own.
        self.length = 0 if self.cache is None else int(self.cache.get_seq_length())
        self.shares = self._agrees()

    def logprob(
        self,
        paths: Int[np.ndarray, "nodes depth"],
        parent: Int[np.ndarray, " children"],
        token: Int[np.ndarray, " children"],
    ) -> Float[np.ndarray, " children"]:
        """Log-probability, in nats, of each child `token` after the prefix and `paths[parent]`; `paths` sorted."""
        if paths.shape[1] == 0:
            first: np.ndarray = self.first[0].cpu().numpy()[token].astype(np.float64)
            return first
        out = np.empty(len(parent))
        order = np.argsort(parent, kind="stable")
        shares = self.shares and not self._windowed(paths.shape[1])
        count = _PATHS if shares else max(1, _PATHS // (self.prefix.shape[1] + paths.shape[1]))
        edges = np.searchsorted(parent[order], np.arange(0, len(paths) + count, count))
        for number, start in enumerate(range(0, len(paths), count)):
            piece = paths[start : start + count]
            after = self._after(piece) if shares else self._whole(piece)
            mine = order[edges[number] : edges[number + 1]]
            rows = torch.from_numpy(parent[mine] - start).to(self.device)
            columns = torch.from_numpy(token[mine].astype(np.int64)).to(self.device)
            out[mine] = after[rows, columns].cpu().numpy()
        return out

    def _agrees(self) -> bool:
        """Whether a small tree gives what its paths give when they are read whole."""
        if self.cache is None or self._windowed(3):
            return False
        paths = np.array([[0, 1, 0], [0, 1, 1], [1, 0, 1]], dtype=np.int64)
        whole = self._whole(paths)
        try:
            shared = self._after(paths)
        except (IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            return False
        # In half precision, logits of 20 are a tenth apart; a wrong place or mask is further off than that.
        close = 1e-3 if self.inner.dtype == torch.float32 else 0.25
        return torch.allclose(shared, whole, rtol=close, atol=close)

    def _windowed(self, depth: int) -> bool:
        # A mask of our own replaces the model's, which hides what is behind its window.
        window = getattr(self.inner.config.get_text_config(), "sliding_window", None)
        return window is not None and self.length + depth > window

    def _whole(self, paths: np.ndarray) -> torch.Tensor:
        """Log-probabilities (paths, V) of the token after each path, nothing shared."""
        after = torch.from_numpy(paths.astype(np.int64)).to(self.device)
        ids = torch.cat([self.prefix.expand(len(paths), -1), after], dim=1)
        return torch.log_softmax(self.module(input_ids=ids, use_cache=False).logits[:, -1].float(), dim=-1)

    def _after(self, paths: np.ndarray) -> torch.Tensor:
        """Log-probabilities (paths, V) of the token after each path."""
        tree = _tree(paths, max(0, paths.shape[1] - 2))
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(tree.ids))
        before = np.ones((*tree.ids.shape, self.length), dtype=bool)
        sees = torch.from_numpy(np.concatenate([before, tree.sees], axis=2)).to(self.device)
        dtype = self.inner.dtype
        mask = torch.zeros(sees.shape, dtype=dtype, device=self.device)
        mask.masked_fill_(~sees, torch.finfo(dtype).min)
        read = self.inner(
            input_ids=torch.from_numpy(tree.ids).to(self.device),
            attention_mask=mask[:, None],
            position_ids=torch.from_numpy(tree.depth + self.length).to(self.device),
            past_key_values=cache,
            use_cache=True,
        )
        last = read.logits[torch.from_numpy(tree.row), torch.from_numpy(tree.column)]
        return torch.log_softmax(last.float(), dim=-1)
