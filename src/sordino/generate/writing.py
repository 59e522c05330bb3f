"""What has been written so far for every request, and when a request is done."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Int64
from torch import Tensor

from sordino.decoding import Decoding
from sordino.generate.drawing import draw
from sordino.generate.request import Finished, Generation, Request

__all__ = ["Writing"]

# So many tokens of the prefix are decoded with what follows: alone, it would lose a blank at its beginning.
_TAIL = 16


class Writing:
    """The tokens drawn for all requests, one request's after the other's, and how the next of each is drawn."""

    def __init__(self, requests: Sequence[Request], tokenizer: Any, seed: int) -> None:
        self.requests, self.tokenizer = requests, tokenizer
        self.length = np.array([r.length for r in requests], dtype=np.int64)
        self.start = np.cumsum(self.length) - self.length
        self.count = np.zeros_like(self.length)
        total = int(self.length.sum())
        self.ids, self.logprob = np.zeros(total, dtype=np.int32), np.zeros(total, dtype=np.float32)
        self.finished: list[Finished | None] = [None] * len(requests)
        self._settle([r.decodings for r in requests])
        self.uniform = np.zeros(total if self.temperature.any() else 0)
        for i, request in enumerate(requests):
            if any(d.temperature > 0 for d in request.decodings):
                own = np.random.default_rng([seed, request.seed]).random(request.length)
                self.uniform[self.start[i] : self.start[i] + request.length] = own
        self.ends = np.array([r.end for r in requests], dtype=bool)
        self.stops = np.array([bool(r.stop) for r in requests], dtype=bool)
        self.before = [""] * len(requests)

    def _settle(self, schedules: Sequence[tuple[Decoding, ...]]) -> None:
        """Number the schedules and the settings in them, so that those of a whole batch are looked up at once."""
        kinds = {schedule: n for n, schedule in enumerate(dict.fromkeys(schedules))}
        settings = {d: n for n, d in enumerate(dict.fromkeys(d for schedule in kinds for d in schedule))}
        width = max(map(len, kinds), default=1)
        rows = [[settings[s[min(k, len(s) - 1)]] for k in range(width)] for s in kinds]
        self.schedule = np.array([kinds[s] for s in schedules], dtype=np.int64)
        self.table = np.array(rows, dtype=np.int64).reshape(-1, width)
        self.temperature = np.array([float(d.temperature) for d in settings])
        filters = {f: n for n, f in enumerate(dict.fromkeys((d.top_k, d.top_p) for d in settings))}
        self.filters = list(filters)
        self.filter = np.array([filters[d.top_k, d.top_p] for d in settings], dtype=np.int64)

    def add(
        self, numbers: Int[np.ndarray, " B"], logits: Float[Tensor, "B V"]
    ) -> tuple[Int64[np.ndarray, " B"], Bool[np.ndarray, " B"]]:
        """Draw the next token of each request of `numbers`: the tokens, and which requests that ended."""
        place = self.start[numbers] + self.count[numbers]
        drawn = self._draw(numbers, place, logits)
        exact = logits.float()
        own = exact.gather(1, drawn[:, None])[:, 0] - exact.logsumexp(1)
        tokens: np.ndarray = drawn.cpu().numpy()
        self.ids[place], self.logprob[place] = tokens, own.cpu().numpy()
        self.count[numbers] += 1
        return tokens, self._done(numbers, tokens)

    def _draw(self, numbers: np.ndarray, place: np.ndarray, logits: Tensor) -> Tensor:
        step = np.minimum(self.count[numbers], self.table.shape[1] - 1)
        setting = self.table[self.schedule[numbers], step]
        temperature, which = self.temperature[setting], self.filter[setting]
        which = np.where(temperature == 0, -1, which)
        if (which == -1).all():
            return logits.argmax(-1)
        # No double precision on Apple's GPUs.
        values = logits.cpu() if logits.device.type == "mps" else logits
        drawn = torch.empty(len(numbers), dtype=torch.int64, device=values.device)
        for one in np.unique(which):
            rows = np.flatnonzero(which == one)
            whole = len(rows) == len(which)
            on = torch.from_numpy(rows).to(values.device)
            mine = values if whole else values[on]
            if one < 0:
                drawn[on] = mine.argmax(-1)
                continue
            uniform, heat = (torch.from_numpy(x[rows]).to(values.device) for x in (self.uniform[place], temperature))
            drawn[on] = draw(mine, uniform, heat, *self.filters[one])
        return drawn.to(logits.device)

    def _done(self, numbers: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        full = self.count[numbers] == self.length[numbers]
        ended = self.ends[numbers] & (tokens == self.tokenizer.eos_token_id) if self.ends.any() else np.zeros_like(full)
        stopped = np.zeros_like(full)
        for row in np.flatnonzero(self.stops[numbers]):
            text = self._text(int(numbers[row]))
            stopped[row] = any(stop in text for stop in self.requests[numbers[row]].stop)
        done: np.ndarray = full | ended | stopped
        for row in np.flatnonzero(done):
            self.finished[numbers[row]] = "stop" if stopped[row] else "end" if ended[row] else "length"
        return done

    def _text(self, number: int) -> str:
        """What was written adds to the text of the prefix."""
        start = self.start[number]
        ids, tail = self.ids[start : start + self.count[number]], self.requests[number].prefix[-_TAIL:]
        return self._decode(np.concatenate([tail, ids]))[len(self._before(number)) :]

    def _before(self, number: int) -> str:
        if not self.before[number]:
            self.before[number] = self._decode(self.requests[number].prefix[-_TAIL:])
        return self.before[number]

    def _decode(self, ids: np.ndarray) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def generation(self, number: int) -> Generation:
        """What was made for a request that is done."""
        why, text = self.finished[number], self._text(number)
        assert why is not None
        if why == "stop":
            text = text[: min(text.find(s) for s in self.requests[number].stop if s in text)]
        piece = slice(self.start[number], self.start[number] + self.count[number])
        return Generation(ids=self.ids[piece].copy(), logprob=self.logprob[piece].copy(), finished=why, text=text)
