"""Batches: which records go together, in an order fixed by the seed, and how they become tensors."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sordino.serialize import Tokens

__all__ = ["Batch", "collate", "epoch_batches"]

# Records are sorted by length within this many batches: little padding, and still a random order.
_BUCKET = 50
IGNORE = -100


@dataclass(frozen=True)
class Batch:
    """Right-padded tensors: `input_ids` and `attention_mask` (B, T), `labels` (B, T), -100 where not scored.

    For a classifier, `labels` are the numbers of the classes (B,).
    """

    input_ids: torch.Tensor
    attention_mask: torch.Tensor
    labels: torch.Tensor

    @property
    def targets(self) -> int:
        """How many tokens (of a classifier: records) are scored."""
        if self.labels.dim() == 1:
            return len(self.labels)
        return int((self.labels[:, 1:] != IGNORE).sum())


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
    labels = np.full((len(tokens), width), IGNORE, dtype=np.int64)
    for row, item in enumerate(tokens):
        ids[row, : len(item)] = item.ids
        mask[row, : len(item)] = 1
        labels[row, : len(item)] = np.where(item.target, item.ids, IGNORE)
    if tokens[0].label is not None:
        labels = np.array([item.label for item in tokens], dtype=np.int64)
    tensors = (torch.from_numpy(a).to(device) for a in (ids, mask, labels))
    return Batch(*tensors)
