"""Continuations of the first half of each record: what an adversary has who sees text alone."""

from dataclasses import replace
from typing import Any

import msgspec
import numpy as np

from sordino.attacks.words import first
from sordino.audit.continuations import Beginning, generated, sampled_texts
from sordino.audit.halves import LONGEST, Half, half_of
from sordino.audit.held import LocalSubject, held, lacking_weights
from sordino.audit.inputs.context import Context, Pair
from sordino.audit.written import Written
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import encode
from sordino.serialize import Serializer

__all__ = ["give", "lacking"]

_DEFINITION = "samples/1"
# Tokens beyond those of the true remainder: as many words may take a few more.
_MORE = 8


def lacking(context: Context) -> str:
    """A model here, or a server that is asked for text."""
    if isinstance(context.collector.subject, Written) or not lacking_weights(context):
        return ""
    return "generated text, which this server is not asked for (--endpoint with --access text)"


def give(context: Context, pair: Pair) -> Pair:
    """Half of each record's last target is the prompt; a server's answers are there already."""
    if isinstance(context.collector.subject, Written):
        return pair
    serializer = context.collector.serializer
    halves = [_half(e, serializer) for e in context.examples]
    first_, second = pair
    tuned = replace(first_, generated=generated(halves, _texts(context, halves, "tuned")))
    if second is None:
        return tuned, None
    second = replace(second, generated=generated(halves, _texts(context, halves, "base")))
    second = replace(second, base=replace(second, base=None))
    return replace(tuned, base=replace(second, base=None)), second


def _half(example: Example, serializer: Serializer) -> Half:
    whole, spans = serializer.render(example.record)
    return half_of(first(whole, LONGEST), spans)


def _texts(context: Context, halves: list[Half], which: str) -> list[tuple[str, ...]]:
    """The samples of the records that have a remainder, from the run's private folder where they are there."""
    collector, count = context.collector, context.settings.samples
    key = collector.key(context.examples, which, _DEFINITION, str(count), str(context.seed))
    path = collector.run.private / "written" / f"{key}.json"
    if not path.exists():
        subject: LocalSubject = held(context)
        model: Any = subject.tuned if which == "tuned" else subject.untuned
        tried = [(e, h) for e, h in zip(context.examples, halves, strict=True) if h.remainder]
        beginnings = [_beginning(e, h, collector.serializer, model.context) for e, h in tried]
        label = f"{'model' if which == 'tuned' else 'untuned model'}, generated text"
        made = sampled_texts(model, beginnings, count, context.seed, collector.ticker(label, len(beginnings)))
        collector.forwards += 1
        collector.run.write_private(f"written/{key}.json", encode(made))
    return msgspec.json.decode(path.read_bytes(), type=list[tuple[str, ...]])


def _beginning(example: Example, half: Half, serializer: Serializer, context: int) -> Beginning:
    template = serializer.templated(example.record)
    ids, _ = serializer.tokenize(half.prompt, template=template)
    rest, _ = serializer.tokenize(half.remainder, template=False)
    start = serializer.tokenizer.bos_token_id
    ids = ids if start is None or ids[:1] == [start] else [start, *ids]
    length = min(len(rest) + _MORE, context // 2)
    # Of a prompt that is too long the end is what counts. Draws depend on the text: the same for the same.
    number = int(digest(half.prompt, half.remainder)[:15], 16)
    return Beginning(ids=np.array(ids[-(context - length) :], dtype=np.int64), length=length, seed=number)
