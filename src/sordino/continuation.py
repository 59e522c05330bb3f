"""Log-probabilities of many continuations of one prefix: a trie of paths in one batch, the prefix read once."""

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from sordino.model import unwrapped

__all__ = ["Continuation"]

# Paths in a batch.
_PATHS = 2048


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

    def every(self, paths: Int[np.ndarray, "paths depth"]) -> Float[torch.Tensor, "paths V"]:
        """Log-probabilities, in nats, of every token after the prefix and each of `paths`, in any order."""
        if paths.shape[1] == 0:
            return self.first.expand(len(paths), -1)
        order = np.lexsort(paths.T[::-1])
        piece = paths[order]
        shares = self.shares and not self._windowed(paths.shape[1])
        found = self._after(piece) if shares else self._whole(piece)
        return found[torch.from_numpy(np.argsort(order)).to(self.device)]

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
