"""Mean NLLs of records under K adapters on one base, in one walk over the records."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from sordino.collect import BATCH_TOKENS, Head, Window, batched, padded, windows_of
from sordino.model import Model
from sordino.reduction import head_statistics
from sordino.serialize import Tokens
from sordino.train.adapters import Adapters
from sordino.train.trunk import Trunk, find_trunk

__all__ = ["score_all"]


def score_all(
    model: Model, adapters: Adapters, tokens: Sequence[Tokens], *, tick: Callable[[int], None] = lambda done: None
) -> np.ndarray:
    """The mean NLL a target, in nats, of each record under each adapter: (K, n) float64; NaN without targets.

    That is −mean of what `collect` finds with each adapter alone, by the same passes: records of similar length
    together, long ones in windows, the head on a piece of the targets at a time. Blocks below all adapters are computed
    once for all, where that is exact. `tick` is told how many records have been done under all adapters.
    """
    adapters.check()
    windows = [w for w in windows_of(tokens, model.context) if tokens[w.record].target[w.first : w.stop].any()]
    last = {w.record: w.stop for w in windows}
    sums = np.zeros((len(adapters), len(tokens)))
    counts = np.array([int(t.target[1:].sum()) for t in tokens], dtype=np.int64)
    tick(int((counts == 0).sum()))
    budget = BATCH_TOKENS.get(model.device.type, 4096)
    scorer = _Scorer(model, adapters, budget)
    for batch in batched(windows, max(1, budget // len(adapters))):
        chosen = [windows[i] for i in batch]
        records = [w.record for w in chosen]
        for rows, found in scorer.sums(chosen, tokens):
            # A record may have several windows here.
            np.add.at(sums, (rows[:, None], np.array(records)[None]), found)
        tick(sum(w.stop == last[w.record] for w in chosen))
    with np.errstate(invalid="ignore", divide="ignore"):
        scores: np.ndarray = np.where(counts > 0, -sums / counts, np.nan)
    return scores


class _Scorer:
    def __init__(self, model: Model, adapters: Adapters, budget: int) -> None:
        self.model, self.adapters, self.budget = model, adapters, budget
        found = find_trunk(model, [layer.name for layer in adapters.layers], training=False)
        self.trunk = found if isinstance(found, Trunk) else None
        with model.active() as module:
            self.head = Head(model, module)

    def sums(self, windows: Sequence[Window], tokens: Sequence[Tokens]) -> list[tuple[np.ndarray, np.ndarray]]:
        """Some adapters (G), and Σ ln p of the targets of `windows` under each (G, windows), until all are done."""
        ids, mask, scored = padded(windows, tokens, self.model.tokenizer.pad_token_id)
        device = self.model.device
        inputs, masks = torch.from_numpy(ids).to(device), torch.from_numpy(mask).to(device)
        owner = np.nonzero(scored)[0]
        at_once = max(1, self.budget // ids.size)
        found = []
        with self.model.active(), self.adapters.attached():
            states = None if self.trunk is None else self.trunk.run(inputs, masks)
            for first in range(0, len(self.adapters), at_once):
                group = range(first, min(first + at_once, len(self.adapters)))
                self.adapters.select(group, len(group) * len(ids), ids.shape[1])
                logprob = self._logprob(inputs, masks, states, torch.from_numpy(scored).to(device), len(group))
                each = [np.bincount(owner, weights=row, minlength=len(ids)) for row in logprob]
                found.append((np.array(group), np.stack(each)))
        return found

    def _logprob(self, ids: Tensor, mask: Tensor, states: Tensor | None, scored: Tensor, groups: int) -> np.ndarray:
        """Ln p of the scored targets under each of the selected adapters: (groups, N) float64."""
        targets = ids[:, 1:][scored[:, :-1]].repeat(groups)
        with nullcontext() if self.trunk is None else self.trunk.skipped():
            if self.trunk is not None and states is not None:
                self.trunk.states = states.repeat(groups, 1, 1)
            hidden = self.head.hidden(ids.repeat(groups, 1), mask.repeat(groups, 1))
        chosen = hidden[scored.repeat(groups, 1)]
        logprob = head_statistics(self.head.logits, chosen, targets, self.head.vocabulary)[0]
        found: np.ndarray = logprob.cpu().double().numpy().reshape(groups, -1)
        return found
