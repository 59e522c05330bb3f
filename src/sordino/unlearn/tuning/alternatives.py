"""Answers of the same kind that are not the true one, which the model makes up itself."""

from collections.abc import Sequence

import msgspec
import numpy as np

from sordino.decoding import Decoding
from sordino.errors import RunError, UnlearningError
from sordino.generate import Request, generate
from sordino.records import Example
from sordino.run import Run
from sordino.serialize import Serializer
from sordino.unlearn.tuning.opening import Opened
from sordino.unlearn.tuning.refusals import answered, whole

__all__ = ["make_alternatives"]

# A model that knows the answer by heart says it again until its words are drawn more freely.
_TEMPERATURES = (1.0, 1.5, 2.0, 3.0)
_FILE = "alternatives.json"


def make_alternatives(
    opened: Opened, examples: Sequence[Example], *, count: int, seed: int, folder: Run
) -> list[tuple[str, ...]]:
    """Of each record at most `count` answers that the model gives to its prompt, none equal to the true one.

    Published are five a question, by a prompt that asks for another answer (Mekala et al. 2024, arXiv:2409.13474);
    here they are sampled, at a temperature that rises until there are enough. Kept in `folder` for a run that is
    resumed. Raises `UnlearningError` where nothing but the true answer, or nothing at all, is ever written.
    """
    path = folder.private / _FILE
    if path.exists():
        try:
            return [tuple(found) for found in msgspec.json.decode(path.read_bytes(), type=list[list[str]])]
        except msgspec.DecodeError as error:
            raise RunError(f"The made-up answers in {path} are damaged.", "Remove the file.") from error
    found: list[list[str]] = [[] for _ in examples]
    for number, temperature in enumerate(_TEMPERATURES):
        short = [i for i, own in enumerate(found) if len(own) < count]
        made = _asked(opened, [examples[i] for i in short], temperature, 2 * count, seed + number)
        for i, texts in zip(short, made, strict=True):
            known = {_plain(examples[i].record.messages[-1].content), *map(_plain, found[i]), ""}
            for text in texts:
                if len(found[i]) < count and _plain(text) not in known:
                    known.add(_plain(text))
                    found[i].append(text)
    none = sum(not own for own in found)
    if none:
        message = f"For {none} of {len(found)} records the model writes nothing but the true answer, or nothing."
        raise UnlearningError(message, "Use idk_dpo, or npo, which needs no other answers.")
    folder.write_private(_FILE, msgspec.json.encode(found))
    return [tuple(own) for own in found]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


def _asked(opened: Opened, examples: Sequence[Example], temperature: float, count: int, seed: int) -> list[list[str]]:
    model, serializer, requests = opened.model, opened.serializer, []
    for number, example in enumerate(examples):
        tokens = whole(example.record, serializer)
        # The last answer begins where targets begin for the last time.
        begins = np.flatnonzero(tokens.target & ~np.r_[False, tokens.target[:-1]])
        start = int(begins[-1])
        room = serializer.max_length - start - 1
        length = max(1, min(room, len(tokens) - start))
        ends = serializer.tokenizer.eos_token_id is not None
        requests += [
            Request(
                prefix=tokens.ids[:start], length=length, decoding=Decoding(temperature=temperature),
                seed=number * count + draw, end=ends,
            )
            for draw in range(count)
        ]  # fmt: skip
    texts = [g.text.strip() for g in generate(model, requests, seed=seed)] if requests else []
    return [
        [t for t in texts[i * count : (i + 1) * count] if t and _usable(example, t, serializer)]
        for i, example in enumerate(examples)
    ]


def _usable(example: Example, text: str, serializer: Serializer) -> bool:
    tokens = serializer.encode(answered(example.record, text))
    return len(tokens) <= serializer.max_length and bool(tokens.target[1:].any())
