"""The one fused pass: per-token statistics of a model on records, without ever storing T×V numbers.

The trunk runs on batches of similar length; the language-model head then runs on pieces of the scored
positions only, and each piece of logits is reduced to six numbers a token before the next one.
"""

import copy
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sordino.decoding import Decoding, decoding_logprob
from sordino.model import Model, head_of, unwrapped
from sordino.reduction import head_statistics
from sordino.serialize import Tokens
from sordino.signals import Statistics

__all__ = [
    "BATCH_TOKENS", "Head", "Window", "batched", "collect", "collect_drawn", "drawn", "likeliest", "padded",
    "windows_of",
]  # fmt: skip

BATCH_TOKENS = {"cpu": 4096, "cuda": 32768, "mps": 16384}
# Settings by which known architectures change logits after the head.
_AFTER_HEAD = ("final_logit_softcapping", "logit_scale", "logits_scaling")
_FIELDS = ("logprob", "mean", "variance", "rank", "top")
# Rows of logits at a time where the likeliest tokens are looked for.
_ROWS = 512

Tick = Callable[[int], None]


@dataclass(frozen=True)
class Window:
    """Tokens `start:stop` of a record, of which those from `first` on are scored here."""

    record: int
    start: int
    stop: int
    first: int


def windows_of(tokens: Sequence[Tokens], context: int) -> Iterator[Window]:
    """The windows of each record: a token is scored once, after at least half a context (but for the beginning)."""
    for record, item in enumerate(tokens):
        start, first = 0, 1
        while True:
            stop = min(start + context, len(item))
            yield Window(record, start, stop, first)
            if stop == len(item):
                break
            first = stop
            start = max(0, min(stop - context // 2, len(item) - context))


class Head:
    """The hidden states before a model's head, and the head on chosen rows of them.

    A hook hands the head an empty sequence and keeps what it would have read, so any architecture
    works whose head is one module; where the result differs from the model's own logits (soft caps,
    scaling), whole logits are used instead.
    """

    def __init__(self, model: Model, module: Any) -> None:
        self.module, self.head, self.exact = module, head_of(module), False
        self.past: Any = None
        self.vocabulary = int(module.config.get_text_config().vocab_size)
        config = module.config.get_text_config()
        capped = any(getattr(config, name, None) for name in _AFTER_HEAD)
        self.exact = not capped and self._agrees(model.device)

    def hidden(self, ids: Tensor, mask: Tensor) -> Tensor:
        """Hidden states (B, T, d), or logits (B, T, V) where the head cannot be split off."""
        if not self.exact:
            return self._forward(ids, mask)
        kept: list[Tensor] = []

        def cut(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            kept.append(args[0])
            return (args[0][:, :0], *args[1:])

        handle = self.head.register_forward_pre_hook(cut)
        try:
            self._forward(ids, mask)
        finally:
            handle.remove()
        # Prompt tuning puts virtual tokens before the record: they are not its own.
        return kept[0][:, kept[0].shape[1] - ids.shape[1] :]

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits (N, V) of chosen rows of `hidden`."""
        logits: Tensor = self.head(hidden) if self.exact else hidden
        return logits

    def follow(self, prefix: np.ndarray, longest: int) -> bool:
        """Read `prefix`, so that all that is read later stands after it; False where no cache gives the same.

        That is tried on as many tokens as will be read: a window on attention shows only beyond its width.
        """
        on = next(self.module.parameters()).device
        before = torch.from_numpy(prefix.astype(np.int64))[None].to(on)
        after = torch.arange(longest, device=on)[None] % self.vocabulary
        both = torch.cat([before, after], dim=1)
        whole = self._forward(both, torch.ones_like(both))[:, before.shape[1] :]
        past = getattr(self.module(input_ids=before, use_cache=True), "past_key_values", None)
        self.past = past if hasattr(past, "batch_repeat_interleave") else None
        if self.past is None:
            return False
        try:
            split = self._forward(after.expand(2, -1), torch.ones_like(after).expand(2, -1))
        except (AttributeError, IndexError, NotImplementedError, RuntimeError, TypeError, ValueError):
            self.past = None
            return False
        # In half precision, logits of 20 are a tenth apart; a wrong place or mask is further off than that.
        close = 1e-4 if whole.dtype == torch.float32 else 0.25
        if not torch.allclose(split, whole.expand_as(split), rtol=close, atol=close):
            self.past = None
        return self.past is not None

    def _forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        if self.past is None:
            logits: Tensor = self.module(input_ids=ids, attention_mask=mask, use_cache=False).logits
            return logits
        past = copy.deepcopy(self.past)
        past.batch_repeat_interleave(len(ids))
        # With the keys of virtual tokens, if the method has them; PEFT would put them there again.
        before = mask.new_ones((len(ids), int(self.past.get_seq_length())))
        seen = torch.cat([before, mask], dim=1)
        kept: Tensor = unwrapped(self.module)(
            input_ids=ids, attention_mask=seen, past_key_values=past, use_cache=True
        ).logits
        return kept

    def _agrees(self, device: torch.device) -> bool:
        ids = torch.arange(8, device=device)[None] % self.vocabulary
        mask = torch.ones_like(ids)
        whole = self._forward(ids, mask)
        self.exact = True
        try:
            split = self.head(self.hidden(ids, mask))
        except (IndexError, RuntimeError, ValueError):
            return False
        return split.shape == whole.shape and torch.allclose(split, whole, rtol=1e-4, atol=1e-4)


def batched(windows: Sequence[Window], budget: int) -> Iterator[list[int]]:
    """Which windows go together: of similar length, and padded no more than `budget` tokens."""
    order = sorted(range(len(windows)), key=lambda i: windows[i].stop - windows[i].start)
    batch: list[int] = []
    for i in order:
        width = windows[i].stop - windows[i].start
        if batch and width * (len(batch) + 1) > budget:
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def padded(windows: Sequence[Window], tokens: Sequence[Tokens], pad: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Ids and attention mask (B, T), and which positions' *next* token is scored here."""
    width = max(w.stop - w.start for w in windows)
    ids = np.full((len(windows), width), pad, dtype=np.int64)
    mask = np.zeros((len(windows), width), dtype=np.int64)
    scored = np.zeros((len(windows), width), dtype=bool)
    for row, w in enumerate(windows):
        size = w.stop - w.start
        ids[row, :size] = tokens[w.record].ids[w.start : w.stop]
        mask[row, :size] = 1
        scored[row, w.first - w.start - 1 : size - 1] = tokens[w.record].target[w.first : w.stop]
    return ids, mask, scored


def collect(
    model: Model,
    tokens: Sequence[Tokens],
    *,
    after: np.ndarray | None = None,
    tick: Tick = lambda done: None,
) -> Statistics:
    """The statistics of `model` on `tokens`, a row a scored token, in the order of the records.

    Padding, batch order and the company a record is in change nothing beyond rounding (≤1e-5).
    With `after`, every record stands after those tokens, whose keys and values are computed once where the
    architecture gives the same numbers that way; records are then no longer than the context that is left.
    `tick` is told how many records' tokens have been done.
    """
    return _collected(model, tokens, after, (), tick)[0]


def collect_drawn(
    model: Model, tokens: Sequence[Tokens], decodings: Sequence[Decoding], *, tick: Tick = lambda done: None
) -> tuple[Statistics, np.ndarray]:
    """What `collect` and `drawn` give, from one pass."""
    return _collected(model, tokens, None, decodings, tick)


def _collected(
    model: Model, tokens: Sequence[Tokens], after: np.ndarray | None, decodings: Sequence[Decoding], tick: Tick
) -> tuple[Statistics, np.ndarray]:
    offsets = _offsets(tokens)
    total = int(offsets[-1])
    drawn_by = np.zeros((total, len(decodings)), dtype=np.float32)
    out = {name: np.zeros(total, dtype=np.float32 if name in _FIELDS[:3] else np.int32) for name in _FIELDS}
    # Closed even where a batch fails: what is open keeps the model in evaluation mode, without gradients.
    with closing(_read(model, tokens, offsets, after, tick)) as batches:
        for where, head, states, targets in batches:
            found = head_statistics(head.logits, states, targets, head.vocabulary)
            for name, values in zip(_FIELDS, found, strict=True):
                out[name][where] = values.cpu().numpy()
            for piece in _pieces(len(states)) if decodings else ():
                logits = head.logits(states[piece])
                drawn_by[where[piece]] = decoding_logprob(logits, targets[piece], decodings).cpu().numpy()
    none = [np.empty(0, dtype=np.int64)]
    position = np.concatenate([np.flatnonzero(t.target) for t in tokens] or none).astype(np.int32)
    token = np.concatenate([t.ids[t.target] for t in tokens] or none).astype(np.int32)
    return Statistics(offsets=offsets, position=position, token=token, **out), drawn_by


def likeliest(
    model: Model, tokens: Sequence[Tokens], k: int, *, tick: Tick = lambda done: None
) -> tuple[np.ndarray, np.ndarray]:
    """The `k` tokens that `model` finds likeliest in place of each target, and their ln p: ids and logs (N, k)."""
    offsets = _offsets(tokens)
    ids, logs = np.zeros((offsets[-1], k), dtype=np.int32), np.zeros((offsets[-1], k), dtype=np.float32)
    with closing(_logits(model, tokens, offsets, tick)) as pieces:
        for where, logits, _ in pieces:
            best = torch.log_softmax(logits.float(), dim=-1).topk(k, dim=-1)
            ids[where], logs[where] = best.indices.cpu().numpy(), best.values.cpu().numpy()
    return ids, logs


def drawn(
    model: Model, tokens: Sequence[Tokens], decodings: Sequence[Decoding], *, tick: Tick = lambda done: None
) -> np.ndarray:
    """The ln of the probability with which each of D decodings draws each target, after the true tokens: (N, D)."""
    offsets = _offsets(tokens)
    found = np.zeros((offsets[-1], len(decodings)), dtype=np.float32)
    with closing(_logits(model, tokens, offsets, tick)) as pieces:
        for where, logits, targets in pieces:
            found[where] = decoding_logprob(logits, targets, decodings).cpu().numpy()
    return found


def _offsets(tokens: Sequence[Tokens]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([int(t.target.sum()) for t in tokens])]).astype(np.int64)


def _logits(
    model: Model, tokens: Sequence[Tokens], offsets: np.ndarray, tick: Tick
) -> Generator[tuple[np.ndarray, Tensor, Tensor], None, None]:
    """Whole logits, a few rows at a time: which rows of the output they are of, the logits (n, V), the targets (n)."""
    with closing(_read(model, tokens, offsets, None, tick)) as batches:
        for where, head, states, targets in batches:
            for piece in _pieces(len(states)):
                yield where[piece], head.logits(states[piece]), targets[piece]


def _pieces(rows: int) -> Iterator[slice]:
    return (slice(start, start + _ROWS) for start in range(0, rows, _ROWS))


def _read(
    model: Model, tokens: Sequence[Tokens], offsets: np.ndarray, after: np.ndarray | None, tick: Tick
) -> Generator[tuple[np.ndarray, Head, Tensor, Tensor], None, None]:
    """Batch by batch: which rows of the output it fills, the head, its hidden states, and their targets."""
    shared = 0 if after is None else len(after)
    windows = list(windows_of(tokens, model.context - shared))
    # Windows of prompt alone, and records too short to score, cost no pass.
    idle = [w for w in windows if not tokens[w.record].target[w.first : w.stop].any()]
    windows = [w for w in windows if tokens[w.record].target[w.first : w.stop].any()]
    tick(_finished(idle, tokens))
    with model.active() as module:
        head = Head(model, module)
        budget = BATCH_TOKENS.get(model.device.type, 4096)
        joined: np.ndarray | None = None
        if after is not None and windows and not head.follow(after, max(w.stop - w.start for w in windows)):
            joined = after
        for batch in batched(windows, budget):
            chosen = [windows[i] for i in batch]
            ids, mask, scored = padded(chosen, tokens, model.tokenizer.pad_token_id)
            if joined is not None:
                ids, mask, scored = _joined(joined, ids, mask, scored)
            where = np.concatenate([_targets(w, tokens[w.record], offsets) for w in chosen])
            yield where, head, *_states(model, head, ids, mask, scored)
            tick(_finished(chosen, tokens))


def _joined(
    before: np.ndarray, ids: np.ndarray, mask: np.ndarray, scored: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The batch with the tokens `before` in front of each row."""
    front = np.tile(before.astype(np.int64), (len(ids), 1))
    unscored = np.zeros(front.shape, dtype=bool)
    return (
        np.concatenate([front, ids], axis=1),
        np.concatenate([np.ones_like(front), mask], axis=1),
        np.concatenate([unscored, scored], axis=1),
    )


def _finished(windows: Sequence[Window], tokens: Sequence[Tokens]) -> int:
    """How many records have their last window among these."""
    return sum(w.stop == len(tokens[w.record]) for w in windows)


def _targets(window: Window, item: Tokens, offsets: np.ndarray) -> np.ndarray:
    """The rows of the output that the scored tokens of a window fill."""
    before = int(item.target[: window.first].sum())
    count = int(item.target[window.first : window.stop].sum())
    rows: np.ndarray = np.arange(count) + offsets[window.record] + before
    return rows


def _states(model: Model, head: Head, ids: np.ndarray, mask: np.ndarray, scored: np.ndarray) -> tuple[Tensor, Tensor]:
    on = model.device
    input_ids, selected = torch.from_numpy(ids).to(on), torch.from_numpy(scored).to(on)
    states = head.hidden(input_ids, torch.from_numpy(mask).to(on))[selected]
    return states, input_ids[:, 1:][selected[:, :-1]]
