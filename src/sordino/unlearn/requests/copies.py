"""What stays of texts that are to be forgotten: the same texts, near-duplicates, and canaries made of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sordino.config import RunConfig
from sordino.records import Example, content_digest
from sordino.records.clusters import index_texts
from sordino.records.columns import Rows, contents
from sordino.records.placed import batches
from sordino.records.split import comparable_text
from sordino.unlearn.base import Deletion

__all__ = ["Copies", "near_duplicates", "planted_passages"]

# Canaries are spliced near the middle of two texts: what both have of a text is nearly half of it.
_PASSAGE = 0.4


def _digests(examples: Sequence[Example]) -> Iterator[str]:
    """A digest of what is trained on of each: neither labels nor rejected answers are."""
    for batch in batches(examples):
        yield from map(content_digest, contents(batch))


@dataclass(frozen=True, kw_only=True)
class Copies:
    """How many records that stay say exactly (`trained`) or nearly (`near`) what records to forget say.

    `held_out` counts records that were never trained on and say exactly what was; `planted` canaries that hold
    passages of what is to be forgotten.
    """

    trained: int
    near: int
    held_out: int
    planted: int

    @classmethod
    def of(cls, deletion: Deletion, config: RunConfig) -> "Copies":
        """Those of `deletion`."""
        forget, retain = set(_digests(deletion.forget)), list(_digests(deletion.retain))
        trained = sum(one in forget for one in retain)
        seen = forget | set(retain)
        held_out = sum(one in seen for part in (deletion.never, deletion.validation) for one in _digests(part))
        threshold = config.split.near_duplicates
        near = near_duplicates(deletion.forget, deletion.retain, threshold) - trained if threshold else 0
        spliced = config.canaries.audit.design == "in-distribution" and config.canaries.audit.count
        planted = planted_passages(deletion.forget, deletion.left.canaries) if spliced else 0
        return cls(trained=trained, near=near, held_out=held_out, planted=planted)


def near_duplicates(forget: Sequence[Example], retain: Sequence[Example], threshold: float) -> int:
    """How many of `retain` have a Jaccard similarity of at least `threshold` to any of `forget`.

    Only records of one group are compared: the split put near-duplicates at the same threshold into one.
    """
    groups = set(_groups(forget))
    kept = np.fromiter((group in groups for group in _groups(retain)), dtype=bool, count=len(retain))
    beside = [retain[int(place)] for place in np.flatnonzero(kept)]
    if not beside:
        return 0
    texts = [comparable_text(example.record) for example in (*forget, *beside)]
    index = index_texts(texts, threshold)
    for number in range(len(forget)):
        index.add(number)
    numbers = range(len(forget), len(texts))
    exact = set(texts[: len(forget)])
    return sum(bool(texts[number] in exact or index.adjacent(number)) for number in numbers)


def _groups(examples: Sequence[Example]) -> list[str]:
    if isinstance(examples, Rows):
        found: list[str] = examples.column("group").to_pylist()
        return found
    return [example.group for example in examples]


def planted_passages(forget: Sequence[Example], canaries: Sequence[Example]) -> int:
    """How many canaries that were trained on begin or end as a record of `forget` does, for much of its length."""
    texts = [m.content for e in forget for m in e.record.messages]
    heads = {text[: int(_PASSAGE * len(text))] for text in texts} - {""}
    tails = {text[-int(_PASSAGE * len(text)) :] for text in texts if int(_PASSAGE * len(text))}
    ends = (tuple(heads), tuple(tails))
    said = ([m.content for m in e.record.messages] for e in canaries if e.included)
    return sum(any(text.startswith(ends[0]) or text.endswith(ends[1]) for text in one) for one in said)
