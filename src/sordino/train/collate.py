"""Batches: which records go together, in an order fixed by the seed, and how they become tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sordino.serialize import Tokens

__all__ = ["Batch", "collate", "epoch_batches"]

# Records are sorted by length within this many batches: little padding, and still a random order.
_BUCKET = 50


@dataclass(frozen=True)
class Batch:
    """Right-padded records: `input_ids` and `attention_mask` (B, T), and what is scored.

    `positions` (N) index the flattened (B, T): the logits there predict `wanted` (N), the targets. A
    classifier's targets are the numbers of the classes (B), at no position.
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    positions: torch.Tensor
    wanted: torch.Tensor
    padded: bool

    @property
    def targets(self) -> int:
        """How many tokens (of a classifier: records) are scored."""
        return len(self.wanted)


def epoch_batches(lengths: Sequence[int], batch_size: int, seed: int, epoch: int) -> list[list[int]]:
    """The batches of an epoch, as record indices: each record once, batches of similar length.

    A pure function of its arguments, so that a resumed run sees the same batches.
    """
    rng = np.random.default_rng([seed, epoch])
    order = rng.permutation(len(lengths))
    batches: list[list[int]] = []
    for start in range(0, len(order), batch_size * _BUCKET):
        bucket = sorted(order[start : start + batch_size * _BUCKET].tolist(), key=lambda i: lengths[i])
        batches.extend(bucket[i : i + batch_size] for i in range(0, len(bucket), batch_size))
    return [batches[i] for i in rng.permutation(len(batches))]


def collate(tokens: Sequence[Tokens], pad: int, device: torch.device) -> Batch:
    """Pad `tokens` on the right to the longest of them."""
    width = max(len(t) for t in tokens)
    ids = np.full((len(tokens), width), pad, dtype=np.int64)
    mask = np.zeros((len(tokens), width), dtype=np.int64)
    scored = np.zeros((len(tokens), width), dtype=bool)
    for row, item in enumerate(tokens):
        ids[row, : len(item)] = item.ids
        mask[row, : len(item)] = 1
        scored[row, 1 : len(item)] = item.target[1:]
    # The logits at one position predict the token at the next.
    following = np.flatnonzero(scored)
    positions, wanted = following - 1, ids.ravel()[following]
    if tokens[0].label is not None:
        positions, wanted = positions[:0], np.array([item.label for item in tokens], dtype=np.int64)
    return Batch(
        input_ids=_send(ids, device),
        attention_mask=_send(mask, device),
        positions=_send(positions, device),
        wanted=_send(wanted, device),
        padded=bool(mask.size > mask.sum()),
    )


def _send(array: np.ndarray, device: torch.device) -> torch.Tensor:
    tensor = torch.from_numpy(array)
    if device.type == "cuda":
        # From pinned memory a copy runs beside the work that is queued already.
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)
