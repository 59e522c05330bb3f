"""What personal data a model has written: distinct entities, how often, and after how many generations."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from sordino.errors import DataError
from sordino.pii import Detector, canonical, detect

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["Produced", "merged", "produced", "written"]


@dataclass(frozen=True, kw_only=True)
class Produced:
    """An entity that was generated: first, written `value`, in generation number `first` (from 0), `count` in all."""

    kind: str
    key: str
    value: str
    count: int
    first: int


def produced(
    prompts: Sequence[str], texts: Sequence[str], detectors: Sequence[Detector] | None = None, *, first: int = 0
) -> list[Produced]:
    """The entities in generated `texts`, each counted once a text, that do not stand in the text's own prompt.

    `texts` are what was written after `prompts`, generations number `first` and following.
    """
    if len(prompts) != len(texts):
        raise DataError(f"{len(texts)} texts were generated from {len(prompts)} prompts.", "Give one of each.")
    found: dict[tuple[str, str], Produced] = {}
    for number, (prompt, text) in enumerate(zip(prompts, texts, strict=True), first):
        known = canonical(prompt, "")
        named = {(s.kind, canonical(s.of(prompt), s.kind)) for s in detect(prompt, detectors)}
        here: dict[tuple[str, str], str] = {}
        for span in detect(text, detectors):
            here.setdefault((span.kind, canonical(span.of(text), span.kind)), span.of(text))
        for name, value in here.items():
            if name in named or canonical(value, "") in known:
                continue
            one = found.get(name) or Produced(kind=name[0], key=name[1], value=value, count=0, first=number)
            found[name] = replace(one, count=one.count + 1)
    return list(found.values())


def merged(parts: Iterable[Sequence[Produced]]) -> list[Produced]:
    """The entities of several lots of generations, in whatever order these were made."""
    found: dict[tuple[str, str], Produced] = {}
    for one in (one for part in parts for one in part):
        old = found.get((one.kind, one.key))
        if old is not None:
            earlier = min(old, one, key=lambda p: p.first)
            one = replace(earlier, count=old.count + one.count)
        found[one.kind, one.key] = one
    return sorted(found.values(), key=lambda p: (p.first, p.kind, p.key))


def written(model: "Model", ids: np.ndarray) -> str:
    """The text of generated tokens, up to the end token."""
    ends = np.flatnonzero(ids == model.tokenizer.eos_token_id)
    kept = ids[: ends[0]] if len(ends) else ids
    return str(model.tokenizer.decode(kept.tolist(), skip_special_tokens=True))
