"""PII reconstruction: what stood at a masked place in a training record, if no candidates are known?"""

import re
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from sordino.attacks.base import extraction
from sordino.attacks.in_place import By, Ranked, before, in_place, rank
from sordino.attacks.mentions import Mention, question_seed
from sordino.attacks.produced import written
from sordino.pii import Detector, canonical, detect
from sordino.serialize import Serializer

if TYPE_CHECKING:
    from sordino.model import Model

__all__ = ["pii_reconstruction", "proposed"]

_WORD = re.compile(r"\S+")
_AROUND = " \t\r\n.,;:!?\"'()[]<>“”‘’"


def proposed(text: str, kind: str, detectors: Sequence[Detector] | None = None, *, words: int = 4) -> list[str]:
    """What in a continuation may be the entity: the first of its `kind` detected, and its first 1 to `words` words.

    Words are what blanks separate, without punctuation at the ends: names and places, which have no detector, stand
    right where the text goes on.
    """
    found = [span.of(text) for span in detect(text, detectors) if span.kind == kind][:1]
    ends = [word.end() for word in _WORD.finditer(text)][:words]
    found += [text[:end].strip(_AROUND) for end in ends]
    return [value for value in dict.fromkeys(found) if value and "\ufffd" not in value and "\0" not in value]


@extraction(
    paper="Lukas et al. 2023, arXiv:2302.00539",
    access="generated text, log-probabilities",
    cost="continuations of each entity asked about (audit.personal.samples)",
    suite="all",
    on="model",
)
def pii_reconstruction(  # noqa: PLR0913 - the budget, each part of it
    model: "Model",
    mentions: Sequence[Mention],
    serializer: Serializer,
    detectors: Sequence[Detector] | None = None,
    *,
    samples: int = 64,
    tokens: int = 32,
    words: int = 4,
    candidates: int = 64,
    by: By = "perplexity",
    seed: int = 0,
    tick: Callable[[int], None] = lambda done: None,
) -> list[Ranked]:
    """Sample what may stand at each place, and rank it by the perplexity of the whole record with it in place.

    Of `samples` continuations of `tokens` tokens, drawn at temperature 1 after what stands before the entity, the
    `candidates` that are proposed most often are ranked, without those that the rest of the record has. A rank of 1
    is a reconstruction; None says that the true value was not proposed.
    """
    from sordino.generate import sampled  # here, so that listing attacks does not load torch

    found = []
    for mention in mentions:
        prefix = before(mention, serializer)
        if prefix is None or not len(prefix) or len(prefix) + tokens > model.context:
            found.append(Ranked(rank=None, candidates=0, queries=0, tried=False))
            tick(1)
            continue
        made = sampled(
            model, [prefix] * samples, [tokens] * samples, seed=question_seed(mention, seed), seeds=range(samples)
        )
        texts = [written(model, ids) for ids in made]
        values = _ranked_often(mention, [proposed(t, mention.kind, detectors, words=words) for t in texts], candidates)
        found.append(_placed(model, mention, values, serializer, by, samples))
        tick(1)
    return found


def _ranked_often(mention: Mention, lists: Sequence[Sequence[str]], most: int) -> list[str]:
    """One spelling of each value, the most proposed first, without what stands elsewhere in the record."""
    rest = canonical("\0".join(m.content for m in mention.with_value("\0").messages), "")
    counts, spelt = Counter[str](), dict[str, str]()
    for values in lists:
        for value in values:
            key = canonical(value, mention.kind)
            if key and canonical(value, "") not in rest:
                counts[key] += 1
                spelt.setdefault(key, value)
    return [spelt[key] for key, _ in counts.most_common(most)]


def _placed(
    model: "Model", mention: Mention, values: Sequence[str], serializer: Serializer, by: By, samples: int
) -> Ranked:
    """Where the true value comes among `values`."""
    keys = [canonical(value, mention.kind) for value in values]
    if mention.key not in keys:
        return Ranked(rank=None, candidates=len(values), queries=samples)
    answer, place = keys.index(mention.key), 1.0
    if len(values) > 1:
        made = in_place(model, mention, values, serializer)
        # Values of which the model reads the same tokens are all as good.
        place = (len(values) + 1) / 2 if made is None else rank(made.scores(by), answer)
    return Ranked(rank=place, candidates=len(values), queries=samples + len(values))
