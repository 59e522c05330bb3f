"""The pass over a classifier: for each record, statistics of its true class among all classes, one row."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from sordino.classifier import class_logits
from sordino.model import Model
from sordino.reduction import token_statistics
from sordino.serialize import Tokens
from sordino.signals import Statistics

__all__ = ["collect_classes", "others_entropy"]

_BATCH_TOKENS = {"cpu": 4096, "cuda": 65536, "mps": 16384}


def others_entropy(logits: Float[Tensor, "N C"], targets: Int64[Tensor, " N"]) -> Float[Tensor, " N"]:
    """Σ p_i ln(1 − p_i) over the classes i other than the target, in float64: what Mentr needs besides ln p.

    1 − p of the likeliest class is the sum of the others' probabilities: taken from 1 it would be lost
    to rounding. A class that is all but certain has at least e⁻⁵⁰⁰ left. Song and Mittal 2021, eq. 9.
    """
    x = logits.double()
    whole = torch.logsumexp(x, dim=1, keepdim=True)
    p = (x - whole).exp()
    left = torch.log1p(-p.clamp(max=0.75))
    top = x.argmax(dim=1, keepdim=True)
    rest = torch.logsumexp(x.scatter(1, top, -torch.inf), dim=1, keepdim=True) - whole
    left = left.scatter(1, top, rest.clamp(min=-500.0))
    return (p * left).scatter(1, targets[:, None], 0.0).sum(dim=1)


def collect_classes(
    model: Model, tokens: Sequence[Tokens], *, tick: Callable[[int], None] = lambda done: None
) -> Statistics:
    """The statistics of a classifier on `tokens`: a row a record, whose "vocabulary" are the classes.

    `token` and `top` are numbers of classes, `position` is the record's last token; records without a
    token have no row. Batches and their padding change nothing beyond rounding (≤1e-5).
    """
    scored = [i for i in sorted(range(len(tokens)), key=lambda i: len(tokens[i])) if len(tokens[i])]
    rows: dict[int, tuple[float, ...]] = {}
    tick(len(tokens) - len(scored))
    with model.active() as module:
        for batch in _batches(scored, tokens, _BATCH_TOKENS.get(model.device.type, 4096)):
            found = _reduce(module, [tokens[i] for i in batch], model.tokenizer.pad_token_id, model.device)
            rows.update(zip(batch, found, strict=True))
            tick(len(batch))
    kept = sorted(rows)
    logprob, mean, variance, rank, top, others = np.array([rows[i] for i in kept]).reshape(-1, 6).T
    counts = np.array([bool(len(t)) for t in tokens], dtype=np.int64)
    return Statistics(
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
        position=np.array([len(tokens[i]) - 1 for i in kept], dtype=np.int32),
        token=np.array([tokens[i].label for i in kept], dtype=np.int32),
        logprob=logprob.astype(np.float32),
        mean=mean.astype(np.float32),
        variance=variance.astype(np.float32),
        rank=rank.astype(np.int32),
        top=top.astype(np.int32),
        others=others.astype(np.float32),
    )


def _batches(order: Sequence[int], tokens: Sequence[Tokens], budget: int) -> list[list[int]]:
    """Records, shortest first, in batches of at most `budget` padded tokens."""
    batches: list[list[int]] = []
    for i in order:
        if not batches or (len(batches[-1]) + 1) * len(tokens[i]) > budget:
            batches.append([])
        batches[-1].append(i)
    return batches


def _reduce(module: torch.nn.Module, chosen: list[Tokens], pad: int, device: torch.device) -> list[tuple[float, ...]]:
    width = len(chosen[-1])
    ids = np.full((len(chosen), width), pad, dtype=np.int64)
    mask = np.zeros((len(chosen), width), dtype=np.int64)
    for row, item in enumerate(chosen):
        ids[row, : len(item)], mask[row, : len(item)] = item.ids, 1
    logits = class_logits(module, torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device))
    # A handful of classes: float64 costs nothing, and keeps a confident classifier's losses apart.
    wide = (logits.double() if device.type != "mps" else logits.float()).cpu()
    targets = torch.tensor([item.label for item in chosen], dtype=torch.int64)
    columns = (*token_statistics(wide, targets), others_entropy(wide, targets))
    return list(zip(*(column.tolist() for column in columns), strict=True))
