"""MUSE's two metrics of what is memorised (Shi et al. 2024, arXiv:2407.06460): words for words, and knowledge.

What is wanted of a model that has forgotten is what a model retrained without the records has, not 0.
"""

from collections.abc import Sequence
from dataclasses import asdict, replace

import numpy as np

from sordino import stats
from sordino.audit.collecting import Collector
from sordino.audit.continuations import text_after
from sordino.errors import UnlearningError
from sordino.records import Record
from sordino.results import Estimate
from sordino.run import Run
from sordino.serialize import Serializer
from sordino.unlearn.base import Ticker
from sordino.unlearn.measuring.answers import LONGEST, Beginning, beginning, overlap
from sordino.unlearn.measuring.tofu import Question
from sordino.unlearn.measuring.tofu_asking import as_record, roles_of, whole

__all__ = ["ANSWER", "PREFIX", "knowledge_memorisation", "verbatim_memorisation"]

PREFIX = 32
"""Tokens of a text that are given, by default."""

ANSWER = 32
"""Tokens of an answer to a question about what texts say."""


def verbatim_memorisation(
    run: Run,
    records: Sequence[Record],
    *,
    prefix_tokens: int = PREFIX,
    ticker: Ticker = lambda name, total: lambda done: None,
) -> Estimate:
    """VerbMem: mean ROUGE-L F1 of the greedy continuation of each record's first tokens with its true one.

    At most 128 tokens are written; the beginning token is one of the `prefix_tokens`. Records that end there are left
    out: `n` and `method` say what is left. Clustered by unit. Raises `UnlearningError` where none is left.
    """
    collector = Collector(run, ticker)
    serializer = whole(collector.serializer, collector.tuned.context)
    kept = [(r, b) for r in records if (b := _continued(r, serializer, prefix_tokens)) is not None]
    if not kept:
        message = f"None of {len(records)} records is longer than {prefix_tokens} tokens."
        raise UnlearningError(message, "Give fewer tokens of each, or longer records.")
    found = overlap(collector.tuned, [b for _, b in kept], ticker("continuations", len(kept))).f1
    return _mean(
        found, [r.unit for r, _ in kept], f"VerbMem: ROUGE-L F1 after {prefix_tokens} tokens, {len(kept)} records"
    )


def knowledge_memorisation(
    run: Run, asked: Sequence[Question], ticker: Ticker = lambda name, total: lambda done: None
) -> Estimate:
    """KnowMem: mean ROUGE-L F1 of the greedy answers, of at most 32 tokens, to questions about what texts say.

    The questions are put as the run's own records are, and without examples before them, which MUSE gives to models
    that were trained on running text. Clustered by subject. Raises `UnlearningError` where there is no question.
    """
    if not asked:
        raise UnlearningError("There is no question to be asked.", "Give one about the records at least.")
    collector = Collector(run, ticker)
    model, roles = collector.tuned, roles_of(run)
    serializer = whole(collector.serializer, model.context)
    starts = [beginning(as_record(q.question, q.answer, roles), serializer, model.context) for q in asked]
    starts = [replace(b, length=min(b.length, ANSWER)) for b in starts]
    found = overlap(model, starts, ticker("answers written", len(starts))).f1
    return _mean(found, [q.subject for q in asked], f"KnowMem: ROUGE-L F1, {len(asked)} questions")


def _continued(record: Record, serializer: Serializer, count: int) -> Beginning | None:
    ids = serializer.encode(record).ids
    if len(ids) and ids[-1] == serializer.tokenizer.eos_token_id:
        ids = ids[:-1]
    if len(ids) <= count:
        return None
    after = ids[count : count + LONGEST]
    true = text_after(serializer.tokenizer, ids[:count], after)
    return Beginning(prefix=ids[:count], length=len(after), true=true, end=False)


def _mean(found: np.ndarray, subjects: Sequence[str] | Sequence[int], what: str) -> Estimate:
    group = np.unique(np.asarray(subjects), return_inverse=True)[1]
    interval = stats.mean_interval(found, group)
    return Estimate(**{**asdict(interval), "method": f"{what}: {interval.method}"})
