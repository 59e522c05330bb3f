"""Batched generation with shared prefixes: what the model says, or would say, after a prefix."""

import copy
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import nn

from sordino.model import Model

__all__ = ["Continuation", "greedy"]

# Paths in a batch; every one of them carries a copy of the prefix's keys and values.
_PATHS = 512


def greedy(
    model: Model, prefixes: Sequence[np.ndarray], lengths: Sequence[int], *, batch_size: int = 64
) -> list[np.ndarray]:
    """The `lengths[i]` tokens that greedy decoding puts after `prefixes[i]`; the end token does not stop it."""
    from transformers import GenerationConfig

    out: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(prefixes)
    # Prefixes of one length share a batch: no padding, so no position is shifted.
    order = sorted(range(len(prefixes)), key=lambda i: (len(prefixes[i]), lengths[i]))
    with model.active() as module:
        start = 0
        while start < len(order):
            width = len(prefixes[order[start]])
            chosen = [i for i in order[start : start + batch_size] if len(prefixes[i]) == width]
            ids = torch.from_numpy(np.stack([prefixes[i] for i in chosen]).astype(np.int64)).to(model.device)
            config = GenerationConfig(
                do_sample=False,
                max_new_tokens=max(lengths[i] for i in chosen),
                pad_token_id=model.tokenizer.pad_token_id,
                bos_token_id=model.tokenizer.bos_token_id,
                eos_token_id=None,
            )
            made = module.generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config)  # type: ignore[operator]
            for row, i in enumerate(chosen):
                out[i] = made[row, width : width + lengths[i]].cpu().numpy().astype(np.int32)
            start += len(chosen)
    return out


class Continuation:
    """Log-probabilities of continuations of one prefix, whose keys and values are computed once."""

    def __init__(self, module: nn.Module, prefix: Int[np.ndarray, " P"], device: torch.device) -> None:
        """Read `prefix` (P ≥ 1 tokens); `module` must stay active while this is used."""
        self.module, self.device = module, device
        ids = torch.from_numpy(np.asarray(prefix, dtype=np.int64))[None].to(device)
        read = module(input_ids=ids, use_cache=True)
        self.cache: Any = read.past_key_values
        self.first = torch.log_softmax(read.logits[:, -1].float(), dim=-1)

    def logprob(
        self,
        paths: Int[np.ndarray, "nodes depth"],
        parent: Int[np.ndarray, " children"],
        token: Int[np.ndarray, " children"],
    ) -> Float[np.ndarray, " children"]:
        """ln p of each child `token` after the prefix and the path `paths[parent]`, in nats."""
        if paths.shape[1] == 0:
            return self.first[0].cpu().numpy()[token].astype(np.float64)
        out = np.empty(len(parent))
        order = np.argsort(parent, kind="stable")
        edges = np.searchsorted(parent[order], np.arange(0, len(paths) + _PATHS, _PATHS))
        for number, start in enumerate(range(0, len(paths), _PATHS)):
            after = self._after(paths[start : start + _PATHS])
            mine = order[edges[number] : edges[number + 1]]
            rows = torch.from_numpy(parent[mine] - start).to(self.device)
            columns = torch.from_numpy(token[mine].astype(np.int64)).to(self.device)
            out[mine] = after[rows, columns].cpu().numpy()
        return out

    def _after(self, paths: np.ndarray) -> torch.Tensor:
        cache = copy.deepcopy(self.cache)
        cache.batch_repeat_interleave(len(paths))
        ids = torch.from_numpy(paths.astype(np.int64)).to(self.device)
        mask = torch.ones(len(paths), cache.get_seq_length() + paths.shape[1], dtype=torch.long, device=self.device)
        read = self.module(input_ids=ids, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1)
        return torch.log_softmax(read.logits[:, -1].float(), dim=-1)
