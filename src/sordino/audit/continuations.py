"""Texts that a model here writes after the beginnings of records."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sordino.audit.halves import Half
from sordino.signals import Generated

__all__ = ["Beginning", "generated", "sampled_texts", "text_after"]

Tick = Callable[[int], None]
# Records whose samples are drawn before progress is told, and rows of a batch.
_PIECE, _ROWS = 256, 256


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """A prompt as tokens, how many tokens are wanted after it, and the number that its draws depend on."""

    ids: np.ndarray
    length: int
    seed: int


def sampled_texts(
    model: Any, beginnings: Sequence[Beginning], count: int, seed: int, tick: Tick = lambda done: None
) -> list[tuple[str, ...]]:
    """`count` continuations of each beginning at temperature 1, up to the end token; the same in any company."""
    from sordino.generate import sampled

    found: list[tuple[str, ...]] = [()] * len(beginnings)
    # Of similar length together, as they are decoded.
    order = sorted(range(len(beginnings)), key=lambda i: len(beginnings[i].ids))
    for start in range(0, len(order), _PIECE):
        numbers = order[start : start + _PIECE]
        piece = [beginnings[i] for i in numbers]
        rows = [(b, k) for b in piece for k in range(count)]
        drawn = sampled(
            model, [b.ids for b, _ in rows], [b.length for b, _ in rows], seed=seed,
            seeds=[b.seed * count + k for b, k in rows], batch_size=_ROWS,
        )  # fmt: skip
        texts = [text_after(model.tokenizer, b.ids, ids) for (b, _), ids in zip(rows, drawn, strict=True)]
        for place, i in enumerate(numbers):
            found[i] = tuple(texts[place * count : (place + 1) * count])
        tick(len(piece))
    return found


def text_after(tokenizer: Any, prefix: np.ndarray, ids: np.ndarray) -> str:
    """What `ids` add to the text of `prefix`, up to the end token."""
    end = tokenizer.eos_token_id
    stops = np.flatnonzero(ids == end) if end is not None else np.empty(0, dtype=int)
    ids = ids[: stops[0]] if len(stops) else ids
    # Not decoded alone: a blank at the beginning would be lost.
    before, whole = (tokenizer.decode(i, skip_special_tokens=True) for i in (prefix, np.concatenate([prefix, ids])))
    return str(whole[len(before) :])


def generated(found: Sequence[Half], samples: Sequence[tuple[str, ...]], greedy: Sequence[str] = ()) -> Generated:
    """Answers of the records that were tried, those with a remainder, at the places of all records."""
    tried = [i for i, half in enumerate(found) if half.remainder]
    place = {record: number for number, record in enumerate(tried)}
    own = [place.get(i) for i in range(len(found))]
    return Generated(
        prompts=[half.prompt for half in found],
        remainders=[half.remainder for half in found],
        samples=[() if n is None else samples[n] for n in own],
        greedy=["" if n is None or not greedy else greedy[n] for n in own],
    )
