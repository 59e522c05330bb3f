"""TOFU's questions put to the model of a run: one pass over all answers, one generation."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np

from sordino.audit.collecting import Collector
from sordino.errors import UnlearningError
from sordino.records import Message, Record
from sordino.records.store import load as load_split
from sordino.run import Run
from sordino.serialize import Serializer, Tokens
from sordino.signals import Ragged
from sordino.unlearn.base import Ticker
from sordino.unlearn.measuring.answers import beginning, overlap
from sordino.unlearn.measuring.tofu import Question, Tofu, TofuSet, columns_of

__all__ = ["as_record", "evaluate", "roles_of", "trained_on", "whole"]

Roles = tuple[str, str]


def evaluate(
    run: Run,
    asked: Mapping[TofuSet, Sequence[Question]],
    ticker: Ticker = lambda name, total: lambda done: None,
) -> Tofu:
    """TOFU's evaluation of the model in `run` on the questions of each set (`tofu.questions`).

    Questions are prompts and answers completions, or turns of a conversation where the run's records are such, in the
    format that the run trains in; answers may be as long as the model's context, whatever the training cut.
    Raises `RunError` where the run is not trained to its end, `UnlearningError` where an answer cannot be scored.
    """
    from sordino.collect import collect

    collector = Collector(run, ticker)
    model = collector.tuned
    serializer, roles = whole(collector.serializer, model.context), roles_of(run)
    every = [(q, answer) for some in asked.values() for q in some for answer in (q.answer, q.paraphrased, *q.wrong)]
    # The same text twice (a true answer that is its own paraphrase) is read once.
    place = {pair: number for number, pair in enumerate(dict.fromkeys((q.question, a) for q, a in every))}
    tokens = [serializer.encode(as_record(question, answer, roles)) for question, answer in place]
    _require_scored(tokens)
    statistics = collect(model, tokens, tick=ticker("answers scored", len(tokens)))
    loss = -Ragged(statistics.logprob, statistics.offsets).mean()
    flat = [q for some in asked.values() for q in some]
    starts = [beginning(as_record(q.question, q.answer, roles), serializer, model.context) for q in flat]
    rouge = overlap(model, starts, ticker("answers written", len(starts))).recall

    sets, first = {}, 0
    for name, some in asked.items():
        found = [_losses(q, place, loss) for q in some]
        sets[name] = columns_of(some, name, found, rouge[first : first + len(some)])
        first += len(some)
    return Tofu(model=str(run.card.model["weights"]), sets=sets, cut=sum(t.cut > 0 for t in tokens))


def _losses(
    q: Question, place: Mapping[tuple[str, str], int], loss: np.ndarray
) -> tuple[float, float, list[float]]:  # fmt: skip
    own, true, *wrong = (float(loss[place[q.question, answer]]) for answer in (q.answer, q.paraphrased, *q.wrong))
    return own, true, wrong


def _require_scored(tokens: Sequence[Tokens]) -> None:
    lost = sum(not t.target.any() for t in tokens)
    if lost:
        message = f"{lost} of {len(tokens)} answers do not fit the model's context behind their questions."
        raise UnlearningError(message, "Evaluate a model with a longer context.")


def whole(serializer: Serializer, context: int) -> Serializer:
    """The same way from records to tokens, with as many of them as the model reads."""
    return replace(serializer, max_length=context, too_long="truncate")


def roles_of(run: Run) -> Roles:
    """How a question and its answer are put to the model of `run`: as its own records are."""
    first = next(iter(load_split(run.records).examples)).record.messages[0].role
    return ("prompt", "completion") if first in ("prompt", "completion", "text") else ("user", "assistant")


def as_record(question: str, answer: str, roles: Roles = ("prompt", "completion")) -> Record:
    """A question with an answer, as a record."""
    return Record(id="question", unit="question", messages=(Message(roles[0], question), Message(roles[1], answer)))


def trained_on(run: Run) -> frozenset[tuple[str, str]]:
    """The (question, answer) of all records of two messages that `run` trains on."""

    def pairs() -> Iterator[tuple[str, str]]:
        for example in load_split(run.records).training:
            if len(example.record.messages) == 2:
                question, answer = example.record.messages
                yield question.content, answer.content

    return frozenset(pairs())
