"""What a model says of the records of a deletion: one pass and one generation a model, kept as numbers alone.

Numbers a token name the tokens of those who are to be forgotten. They are kept in no run's signals, only while a pass
goes on in the private folder of the request; what stays there is a row of figures a record, under a digest of weights,
tokenizer, serializer and records.
"""

import shutil
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np

from sordino.audit.collecting import Collector
from sordino.errors import UnlearningError
from sordino.evidence import digest
from sordino.records import Example
from sordino.results import Columns, Scores
from sordino.run import Run
from sordino.signals import Ragged, Statistics, Store
from sordino.unlearn.base import Deletion, Ticker
from sordino.unlearn.measuring.answers import LONGEST, beginning, overlap
from sordino.unlearn.measuring.measures import SETS
from sordino.unlearn.measuring.metrics import exact_memorisation, extraction_strength

__all__ = ["LEAST", "LIMIT", "columns_of", "sampled", "score", "scores_folder"]

LEAST, LIMIT = 120, 400
"""Of each set but that to forget, as many records are scored as that has, but no fewer and no more than these.

So a verification costs about a twentieth of three epochs of training, and more where more is to be shown.
"""

# Writing takes most of the time; usefulness is judged by losses.
_ANSWERED = ("forget", "never")
# Part of every key: figures of another definition are not found again.
_DEFINITION = "scores/1"


def score(
    run: Run,
    deletion: Deletion,
    *,
    generate: bool = True,
    limit: int | None = None,
    ticker: Ticker = lambda name, total: lambda done: None,
    folder: Path | None = None,
) -> Scores:
    """What the model in `run` says of the records of `deletion`; `run` is the one it is of, or one that came of it.

    Of retained, never-trained and validation records at most `limit` each, the same for every model (`sampled`; None:
    as many as are to be forgotten, within bounds). With `generate`, "rouge_l" of those to forget and of those never
    trained on is ROUGE-L recall of the greedy answer, of at most 128 tokens; of plain text that of the second half
    after the first. Records of which nothing is scored are left out, but not of those to forget. Figures
    are kept in `folder`, by default that of the request (`scores_folder`).

    Raises `UnlearningError` for a classifier, or where nothing of a record to forget is scored, and `RunError` where
    the run is not trained to its end.
    """
    collector = Collector(run, ticker)
    if getattr(collector.subject, "task", "causal-lm") != "causal-lm":
        raise UnlearningError("What a classifier has forgotten is not scored.", "Score a causal language model.")
    collector.store = Store(_private(folder or scores_folder(run, deletion)))
    sets = {name: _scored(collector, examples, name) for name, examples in sampled(deletion, limit).items()}
    units = dict.fromkeys(e.record.unit for examples in sets.values() for e in examples)
    number = {unit: float(place) for place, unit in enumerate(units)}
    found: dict[str, Columns] = {}
    for name, examples in sets.items():
        subject = np.array([number[e.record.unit] for e in examples])
        rows = (
            {"subject": subject, **_figures(collector, examples, generate=generate and name in _ANSWERED)}
            if examples
            else {}
        )
        found[name] = {column: tuple(float(v) for v in values) for column, values in rows.items()}
    return Scores(
        model=str(run.card.model["weights"]), forget=found["forget"], never=found["never"], retain=found["retain"],
        validation=found["validation"],
    )  # fmt: skip


def scores_folder(run: Run, deletion: Deletion) -> Path:
    """Where figures of records are kept: in the private folder of the request beside the runs."""
    return run.path.parent / "deletions" / deletion.request.id / "signals"


def _private(folder: Path) -> Path:
    # One by one: only the last of several folders that are missing would get the mode.
    for path in reversed([folder, *folder.parents]):
        if not path.exists():
            path.mkdir(mode=0o700, exist_ok=True)
    return folder


def sampled(deletion: Deletion, limit: int | None = None) -> dict[str, list[Example]]:
    """The records that are scored, by set: all to forget, of the others at most `limit` each, and no canaries.

    Drawn by NumPy's default generator from a digest of the request's id and the name of the set, in the order of the
    file: whoever has the request draws the same.
    """
    if limit is None:
        limit = min(LIMIT, max(LEAST, len(deletion.forget)))
    found: dict[str, list[Example]] = {}
    for name in SETS:
        examples = [e for e in getattr(deletion, name) if e.role != "canary"]
        if name != "forget" and len(examples) > limit:
            rng = np.random.default_rng(int(digest("sample/1", name, deletion.request.id), 16))
            examples = [examples[i] for i in np.sort(rng.permutation(len(examples))[:limit])]
        found[name] = examples
    return found


def columns_of(statistics: Statistics) -> dict[str, np.ndarray]:
    """Figures of each record from one pass: "loss", "tokens", "extraction_strength" and "exact_memorisation"."""
    offsets = statistics.offsets
    # The likeliest token itself, not a rank of 0, which several tokens may share.
    hit = np.asarray(statistics.top) == np.asarray(statistics.token)
    rows = [hit[start:stop] for start, stop in pairwise(offsets)]
    return {
        "loss": -Ragged(statistics.logprob, offsets).mean(),
        "tokens": np.diff(offsets).astype(np.float64),
        "extraction_strength": np.array([extraction_strength(row) for row in rows], dtype=np.float64),
        "exact_memorisation": np.array([exact_memorisation(row) for row in rows], dtype=np.float64),
    }


def _scored(collector: Collector, examples: Sequence[Example], name: str) -> list[Example]:
    kept = [e for e in examples if collector.encode(e).target.any()]
    if name == "forget" and len(kept) < len(examples):
        message = f"{len(examples) - len(kept)} of {len(examples)} records to forget have no token that is scored."
        raise UnlearningError(message, "They were cut off by train.max_length: nothing of them was trained on.")
    return kept


def _figures(collector: Collector, examples: Sequence[Example], *, generate: bool) -> dict[str, np.ndarray]:
    found = _passed(collector, examples, "tuned")
    if collector.reader.has_base:
        found["base_loss"] = _passed(collector, examples, "base")["loss"]
    if generate:
        found["rouge_l"] = _answered(collector, examples)
    return found


def _passed(collector: Collector, examples: Sequence[Example], which: str) -> dict[str, np.ndarray]:
    key, store = collector.key(examples, which, _DEFINITION), collector.store
    found = store.arrays(key)
    if found is None:
        statistics = collector.statistics(examples, which)
        found = columns_of(statistics)
        store.put_arrays(key, found, _manifest(collector, which))
        shutil.rmtree(store.folder / collector.key(examples, which, ""), ignore_errors=True)
    return dict(found)


def _answered(collector: Collector, examples: Sequence[Example]) -> np.ndarray:
    key, store = collector.key(examples, "tuned", _DEFINITION, "rouge", str(LONGEST)), collector.store
    found = store.arrays(key)
    if found is None:
        model = collector.tuned
        asked = [beginning(e.record, collector.serializer, model.context) for e in examples]
        found = {"rouge_l": overlap(model, asked, collector.ticker("answers", len(asked))).recall}
        store.put_arrays(key, found, _manifest(collector, "tuned"))
    return np.asarray(found["rouge_l"])


def _manifest(collector: Collector, which: str) -> Mapping[str, object]:
    return {"definition": _DEFINITION, "model": which, **collector.reader.manifest()}
