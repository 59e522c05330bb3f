"""Generate and rank: draw many texts from a model, and say which of them it has most likely learned by heart."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
from jaxtyping import Int, Int64

from sordino.attacks.base import extraction
from sordino.attacks.complexity import compressed_sizes
from sordino.attacks.passages import SHORTEST
from sordino.attacks.rankings import ranked
from sordino.errors import AuditError
from sordino.serialize import Tokens
from sordino.signals import Signals

if TYPE_CHECKING:
    from sordino.decoding import Decoding
    from sordino.model import Model

__all__ = ["Draw", "Drawn", "Ranked", "Wanted", "generate_and_rank", "prompts"]


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """A text to be drawn: at most `length` tokens after `prefix`, up to the end token.

    `decodings` has one for each token, the last for all further ones; random numbers come from `seed`.
    """

    strategy: str
    prefix: Int[np.ndarray, " P"]
    length: int
    decodings: "tuple[Decoding, ...]"
    seed: int


class Drawn(Protocol):
    """What was drawn: tokens, and the text that they add to that of the prefix."""

    @property
    def ids(self) -> Int[np.ndarray, " T"]:
        """The tokens drawn (T)."""

    @property
    def text(self) -> str:
        """Their text, without special tokens."""


Draw = Callable[["Model", Sequence[Wanted]], Sequence[Drawn]]
"""`(model, wanted)` -> what the model writes for each."""


@dataclass(frozen=True, kw_only=True)
class Ranked:
    """Texts that a model wrote and their rankings.

    `ids` and `texts` are without the prompts; `strategies` say how each was asked for, `dropped` how many were too
    short to be scored. `orders` has of every ranking the numbers of the distinct texts, best first.
    """

    ids: tuple[np.ndarray, ...]
    texts: tuple[str, ...]
    strategies: tuple[str, ...]
    orders: Mapping[str, Int64[np.ndarray, " kept"]]
    dropped: int


def prompts(
    model: "Model", snippets: Sequence[str], *, count: int, length: int, top_k: int | None, seed: int
) -> list[Wanted]:
    """`count` texts to be drawn by each strategy: from nothing, from nothing at a falling temperature, from `snippets`.

    A snippet is the first 5 to 10 tokens (drawn by `seed`) of one of the texts, in turn; without snippets that strategy
    is left out. Raises `AuditError` where the tokenizer has no token to begin with.
    """
    from sordino.decoding import Decoding
    from sordino.generate import decaying

    tokenizer = model.tokenizer
    begin = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    if begin is None:
        message = "The tokenizer has neither a beginning token nor an end token to draw a text from."
        raise AuditError(message, "Give it a bos_token.")
    empty, plain = np.array([begin], dtype=np.int32), (Decoding(top_k=top_k),)
    asked = [("empty", empty, plain)] * count + [("decaying", empty, decaying(top_k=top_k))] * count
    rng = np.random.default_rng(seed)
    encoded = [tokenizer(s, add_special_tokens=False, verbose=False)["input_ids"] for s in snippets]
    for number in range(count if snippets else 0):
        cut = encoded[number % len(encoded)][: int(rng.integers(5, 11))]
        asked.append(("snippets", np.concatenate([empty, np.array(cut, dtype=np.int32)]), plain))
    return [
        Wanted(strategy=name, prefix=prefix, length=length, decodings=decodings, seed=number)
        for number, (name, prefix, decodings) in enumerate(asked)
    ]


@extraction(
    paper="Carlini et al. 2021, arXiv:2012.07805",
    access="generated text, log-probabilities",
    cost="texts written from nothing and after beginnings, and three passes over them (audit.generated)",
    suite="full",
    on="model",
)
def generate_and_rank(  # noqa: PLR0913 - what is drawn, from what, and how
    model: "Model",
    base: "Model | None",
    draw: Draw,
    snippets: Sequence[str] = (),
    *,
    count: int = 1_000,
    length: int = 128,
    top_k: int | None = 40,
    seed: int = 0,
) -> Ranked:
    """Draw texts in three ways, and rank those that differ by how likely each was memorised.

    `draw` makes the texts, `count` by each strategy (see `prompts`) of at most `length` tokens, which are scored after
    their prompts under `model` and its untuned `base` (see `rankings`; without a base, that ranking is left out). The
    control is the same with `base` as the model, or with texts that `draw` takes from the base. `rankings.runs` and
    `rankings.precisions` judge the result; the attack itself knows no record. Texts of fewer than 8 tokens are dropped
    and counted. Raises `AuditError` for what cannot be drawn.
    """
    if count < 1 or length < SHORTEST:
        message = f"{count} texts of {length} tokens were asked for."
        raise AuditError(message, f"Ask for at least 1 text, of at least {SHORTEST} tokens.")
    wanted = prompts(model, snippets, count=count, length=length, top_k=top_k, seed=seed)
    longest = max(len(w.prefix) for w in wanted) + length
    if longest > model.context:
        message = f"Prompts and texts have up to {longest} tokens; the model's context is {model.context}."
        raise AuditError(message, "Ask for shorter texts.")
    made = list(zip(wanted, draw(model, wanted), strict=True))
    end = model.tokenizer.eos_token_id
    kept = [(w, _until(np.asarray(d.ids, dtype=np.int32), end), d.text) for w, d in made]
    kept = [(w, ids, text) for w, ids, text in kept if len(ids) >= SHORTEST]
    texts = tuple(text for _, _, text in kept)
    return Ranked(
        ids=tuple(ids for _, ids, _ in kept),
        texts=texts,
        strategies=tuple(w.strategy for w, _, _ in kept),
        orders=ranked(_signals(model, base, kept), texts) if kept else {},
        dropped=len(made) - len(kept),
    )


def _until(ids: np.ndarray, end: int | None) -> np.ndarray:
    """The tokens before the end token."""
    stops = np.flatnonzero(ids == end) if end is not None else np.empty(0, dtype=np.int64)
    return ids[: stops[0]] if len(stops) else ids


def _signals(model: "Model", base: "Model | None", kept: Sequence[tuple[Wanted, np.ndarray, str]]) -> Signals:
    """The statistics of the texts after their prompts, of both models, and of the texts in lower case."""
    from sordino.collect import collect

    names, texts = tuple(str(i) for i in range(len(kept))), tuple(text for _, _, text in kept)
    encoded = model.tokenizer([t.lower() for t in texts], add_special_tokens=False, verbose=False)["input_ids"]
    plain = [_tokens(w.prefix, ids, text) for w, ids, text in kept]
    lower = [
        _tokens(w.prefix, np.array(ids[: model.context - len(w.prefix)], dtype=np.int32), text.lower())
        for (w, _, text), ids in zip(kept, encoded, strict=True)
    ]
    untuned = None if base is None else Signals(record_ids=names, texts=texts, statistics=collect(base, plain))
    lowered = Signals(record_ids=names, texts=tuple(t.text for t in lower), statistics=collect(model, lower))
    return Signals(
        record_ids=names,
        texts=texts,
        statistics=collect(model, plain),
        base=untuned,
        views={"lowercase": lowered},
        measured={"compressed": compressed_sizes(texts)},
    )


def _tokens(prefix: np.ndarray, ids: np.ndarray, text: str) -> Tokens:
    whole = np.concatenate([prefix, ids]).astype(np.int32)
    return Tokens(ids=whole, target=np.arange(len(whole)) >= len(prefix), text=text)
