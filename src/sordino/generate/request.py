"""What is asked of a model, what it gives back, and what cannot be asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Int, Int32

from sordino.decoding import Decoding
from sordino.errors import ConfigError, ModelError
from sordino.model import Model

__all__ = ["Generation", "Request", "check", "decaying"]

_GREEDY = Decoding(temperature=0)

Finished = Literal["length", "stop", "end"]


@dataclass(frozen=True, kw_only=True)
class Request:
    """A `prefix` (P ≥ 1 tokens) and how at most `length` tokens are put after it.

    `decoding` is one setting for all tokens, or one for each: of several, the last is that of all further tokens
    (`decaying`). All random numbers come from the base seed and `seed` (0 or more). With `stop`, it ends when the text
    of what was generated holds one of these; with `end`, at the tokenizer's end token.
    Raises `ConfigError` for what cannot be meant.
    """

    prefix: Int[np.ndarray, " P"]
    length: int
    decoding: Decoding | tuple[Decoding, ...] = _GREEDY
    seed: int = 0
    stop: tuple[str, ...] = ()
    end: bool = False

    def __post_init__(self) -> None:
        """Refuse what no model can answer."""
        if not len(self.prefix):
            raise ConfigError("A prefix has 0 tokens.", "Begin with at least one, such as the beginning token.")
        if self.length < 1:
            raise ConfigError(f"The length of a generation is {self.length}.", "Ask for at least 1 token.")
        if self.seed < 0:
            raise ConfigError(f"The seed of a request is {self.seed}.", "Seeds are 0 or more.")
        if "" in self.stop:
            raise ConfigError(
                f"The stop strings {self.stop!r} hold an empty one.", "Every text holds it: leave it out."
            )
        if self.decoding == ():
            raise ConfigError("The decoding of a request is ().", "Give at least one: the last goes on.")

    @property
    def decodings(self) -> tuple[Decoding, ...]:
        """The decoding of each token; the last is that of all further ones."""
        return (self.decoding,) if isinstance(self.decoding, Decoding) else self.decoding


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The tokens `ids` (T) that were drawn, the one that ended it among them, and why it `finished`.

    `logprob` (T), in nats, is what the model itself gives each, at temperature 1 with nothing filtered out. `text` is
    what `ids` add to the text of the prefix, without special tokens, up to the stop string if one was found.
    """

    ids: Int32[np.ndarray, " T"]
    logprob: Float32[np.ndarray, " T"]
    finished: Finished
    text: str


def decaying(
    start: float = 10.0, stop: float = 1.0, *, steps: int = 20, top_k: int | None = None
) -> tuple[Decoding, ...]:
    """Temperatures that fall in equal steps from `start` to `stop` over the first `steps` tokens, and stay there.

    Source: Carlini et al. 2021, arXiv:2012.07805 (from 10 to 1 over the first 20 tokens); that the steps are
    equal is our reading.
    """
    if steps < 1:
        raise ConfigError(f"The temperature falls over {steps} steps.", "Give at least 1.")
    return tuple(Decoding(temperature=float(t), top_k=top_k) for t in np.linspace(start, stop, steps + 1))


def check(model: Model, requests: Sequence[Request]) -> None:
    """Raise where `model` cannot answer: `ModelError` or, for a request that does not fit it, `ConfigError`."""
    if model.classes is not None:
        raise ModelError("A classifier generates no text.", "Load it without classes, as a causal language model.")
    if any(r.end for r in requests) and model.tokenizer.eos_token_id is None:
        raise ModelError("The tokenizer has no end token.", "Ask for requests with end=False.")
    vocabulary = model.module.get_input_embeddings().weight.shape[0]
    for number, request in enumerate(requests):
        size = len(request.prefix)
        if size + request.length > model.context:
            message = f"Request {number} has a prefix of {size} tokens and asks for {request.length} more: "
            message += f"{size + request.length}, where the context of the model is {model.context}."
            raise ConfigError(message, "Cut the prefix at its beginning, or ask for fewer tokens.")
        low, high = int(request.prefix.min()), int(request.prefix.max())
        if low < 0 or high >= vocabulary:
            wrong = low if low < 0 else high
            message = f"The prefix of request {number} holds token {wrong}; the model has 0 to {vocabulary - 1}."
            raise ConfigError(message, "Use the tokenizer of this model.")
