"""ln p of the answer that was liked less, in place of a record's last message (records)."""

from dataclasses import replace

import numpy as np

from sordino.audit.held import stored
from sordino.audit.inputs import measured
from sordino.audit.inputs.context import Context, Pair
from sordino.audit.written import Written
from sordino.records import Message, Record
from sordino.signals import Ragged

__all__ = ["give", "lacking"]

_DEFINITION = "rejected/1"


def lacking(context: Context) -> str:
    """A column of rejected answers, and a model that tells probabilities."""
    if isinstance(context.collector.subject, Written):
        return "log-probabilities"
    with_one = sum(e.record.rejected is not None for e in context.examples)
    return "" if with_one == len(context.examples) else "a rejected answer for each record (data.rejected)"


def give(context: Context, pair: Pair) -> Pair:
    """One more pass of each model, over the same prompts with the other answers."""
    collector = context.collector
    tokens = [collector.serializer.encode(_other(e.record)) for e in context.examples]

    def logprob(which: str) -> np.ndarray:
        label = "model, rejected" if which == "tuned" else "untuned model, rejected"
        found = collector.reader.measure(tokens, which, collector.ticker(label, len(tokens)))
        rows = Ragged(found.logprob, found.offsets)
        return np.where(rows.counts > 0, rows.sum(), np.nan)

    tuned = stored(context, "tuned", _DEFINITION, lambda: logprob("tuned"))
    untuned = stored(context, "base", _DEFINITION, lambda: logprob("base")) if pair[1] is not None else None
    return measured(pair, "rejected", tuned, untuned)


def _other(record: Record) -> Record:
    *before, last = record.messages
    assert record.rejected is not None  # see `lacking`
    return replace(record, messages=(*before, Message(last.role, record.rejected)), rejected=None)
