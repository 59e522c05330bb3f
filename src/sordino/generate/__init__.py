"""Batched generation: what the model says, or would say, after a prefix.

Rows of one cache are given to the next request as soon as theirs is done, and prefixes that requests share are read
once. What a request shares a batch with changes nothing about its tokens, beyond rounding. No setting that came with
the model (repetition penalty, suppressed tokens) has a say.
"""

from collections.abc import Callable, Sequence

import numpy as np

from sordino.decoding import Decoding
from sordino.errors import ConfigError
from sordino.generate.engine import write
from sordino.generate.request import Generation, Request, check, decaying
from sordino.model import Model

__all__ = ["Generation", "Request", "decaying", "generate", "greedy", "sampled"]


def generate(
    model: Model,
    requests: Sequence[Request],
    *,
    seed: int = 0,
    rows: int | None = None,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Generation]:
    """What `model` writes for each of `requests`, in their order; `tick` is told how many more are done.

    `rows` are read at a time, by default as many as fit. Where an architecture's cache cannot be edited row by row
    (windows on attention, recurrent states, positions that are not numbers; found by comparison of logits), batches go
    from start to end with the model's own cache, or without one: slower, and the same tokens.
    Raises `ConfigError` for a request that does not fit into the context or the vocabulary, and `ModelError` for a
    classifier, or a request to stop at the end token where the tokenizer has none.
    """
    if rows is not None and rows < 1:
        raise ConfigError(f"Generation was asked for {rows} rows at a time.", "Give at least 1, or none.")
    if seed < 0:
        raise ConfigError(f"The seed of the generation is {seed}.", "Seeds are 0 or more.")
    check(model, requests)
    return write(model, requests, seed, rows, tick)


def greedy(
    model: Model, prefixes: Sequence[np.ndarray], lengths: Sequence[int], *, batch_size: int = 64
) -> list[np.ndarray]:
    """The `lengths[i]` tokens that greedy decoding puts after `prefixes[i]`; the end token does not stop it.

    Each is the most likely token by the model's own logits.
    """
    return _ids(model, prefixes, lengths, Decoding(temperature=0), (0, [0] * len(prefixes)), batch_size)


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

    Each has random numbers of its own, from `seed` and `seeds[i]` (by default i).
    """
    names = range(len(prefixes)) if seeds is None else seeds
    return _ids(model, prefixes, lengths, Decoding(), (seed, names), batch_size)


def _ids(
    model: Model,
    prefixes: Sequence[np.ndarray],
    lengths: Sequence[int],
    decoding: Decoding,
    seeds: tuple[int, Sequence[int]],
    rows: int,
) -> list[np.ndarray]:
    # Not checked against the context: a model with positions that go on may be read beyond what it was built for.
    wanted = [i for i, length in enumerate(lengths) if length > 0]
    requests = [
        Request(prefix=prefixes[i], length=int(lengths[i]), decoding=decoding, seed=int(seeds[1][i])) for i in wanted
    ]
    out: list[np.ndarray] = [np.empty(0, dtype=np.int32)] * len(prefixes)
    for i, made in zip(wanted, write(model, requests, seeds[0], rows, lambda done: None), strict=True):
        out[i] = made.ids
    return out
