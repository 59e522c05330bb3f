"""TOFU's own evaluation (Maini et al. 2024, arXiv:2401.06121): its questions, and what comes of the answers' losses.

Four sets: authors to forget, authors that stay, real authors, and facts of the world. Each gives a probability, ROUGE-L
recall and a truth ratio; nothing here runs a model (`tofu_asking` does).
"""

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Float

from sordino import stats
from sordino.errors import DataError, UnlearningError
from sordino.results import Columns, Estimate
from sordino.unlearn.measuring.metrics import (
    ForgetQuality,
    choice_probability,
    forget_quality,
    model_utility,
    probability,
    truth_ratio,
)

__all__ = ["DEFINITIONS", "FIGURES", "TOFU_SETS", "Question", "Tofu", "TofuSet", "columns_of", "questions"]

TofuSet = Literal["forget", "retain", "authors", "facts"]

TOFU_SETS: tuple[TofuSet, ...] = ("forget", "retain", "authors", "facts")

FIGURES = ("probability", "rouge_l", "truth_ratio")

DEFINITIONS: Mapping[str, str] = {
    "probability": "exp(-mean loss of the answer's tokens, the end token among them); of real authors and world facts "
    "the share of it among the true and the wrong answers",
    "rouge_l": "ROUGE-L recall of the greedy answer, of at most 128 tokens, without stemming",
    "truth_ratio": "TR = exp(-mean of the wrong answers' losses) / exp(-loss of the true one, paraphrased where there "
    'is a paraphrase); to forget: mean min(TR, 1/TR) ("closer to 1"), else mean max(0, 1 - TR) ("true better")',
    "model_utility": "harmonic mean of the nine figures of retain, real authors and world facts",
    "forget_quality": "p-value of the two-sample Kolmogorov-Smirnov test of TR against those of a retrained model",
}
"""What each figure is; a report prints it."""

_FILES = {"retain": "retain_perturbed", "authors": "real_authors_perturbed", "facts": "world_facts_perturbed"}
# TOFU has twenty questions of each made-up author, in a row.
_AUTHOR = 20
_TINY = 1e-10
_RESAMPLES = 999


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question, its true `answer`, the answer that ratios take for true (`paraphrased`), and wrong ones.

    `subject` numbers whom it is about within its set.
    """

    question: str
    answer: str
    paraphrased: str
    wrong: tuple[str, ...]
    subject: int


def questions(
    folder: Path,
    forget: str = "forget10",
    *,
    limit: int | None = None,
    seed: int = 0,
    trained: Collection[tuple[str, str]] | None = None,
) -> dict[TofuSet, tuple[Question, ...]]:
    """The questions of each set in TOFU's `folder`; `forget` is "forget01", "forget05" or "forget10".

    With `limit`, at most so many of each set, drawn by NumPy's default generator from `seed`, in the order of the file.
    With `trained`, those to forget and to retain are only the (question, answer) that are in it: a run that holds
    out authors by coin has trained on the others.

    Raises `DataError` where a file is missing or is not one of TOFU's, and `UnlearningError` where a set is empty.
    """
    found: dict[TofuSet, tuple[Question, ...]] = {}
    for number, name in enumerate(TOFU_SETS):
        path = folder / f"{_FILES.get(name, f'{forget}_perturbed')}.json"
        made = _read(path, by_author=name in ("forget", "retain"))
        if trained is not None and name in ("forget", "retain"):
            made = [q for q in made if (q.question, q.answer) in trained]
        if limit is not None and len(made) > limit:
            chosen = np.random.default_rng([seed, number]).permutation(len(made))[:limit]
            made = [made[i] for i in np.sort(chosen)]
        if not made:
            message = f"TOFU's set '{name}' ({path.name}) has no question that can be asked."
            raise UnlearningError(message, "Was the model trained on TOFU's full.json, and is the limit 1 or more?")
        found[name] = tuple(made)
    return found


def _read(path: Path, *, by_author: bool) -> list[Question]:
    try:
        rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
        return [
            Question(
                question=row["question"],
                answer=row["answer"],
                paraphrased=row.get("paraphrased_answer", row["answer"]),
                wrong=tuple(row["perturbed_answer"]),
                subject=number // _AUTHOR if by_author else number,
            )
            for number, row in enumerate(rows)
        ]
    except OSError as error:
        hint = "Give the folder that holds TOFU's *_perturbed.json files."
        raise DataError(f"TOFU's file {path.name} cannot be read: {error.strerror}.", hint) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        hint = "It has a line of JSON a question, with question, answer and perturbed_answer."
        raise DataError(f"{path.name} is not one of TOFU's files: {type(error).__name__}.", hint) from error


def columns_of(
    asked: Sequence[Question],
    name: TofuSet,
    losses: Sequence[tuple[float, float, Sequence[float]]],
    rouge: Float[np.ndarray, " questions"],
) -> Columns:
    """What is kept of a set: "subject", "probability", "rouge_l" and "truth_ratio" (the raw TR), a row a question.

    `losses` are, in nats a token, those of the answer, of the one taken for true, and of the wrong ones.
    """
    own = np.array([loss[0] for loss in losses])
    true = np.array([loss[1] for loss in losses])
    # Questions may have different numbers of wrong answers.
    wrong = [np.asarray(loss[2], dtype=np.float64)[None] for loss in losses]
    chosen = [choice_probability(own[i : i + 1], w)[0] for i, w in enumerate(wrong)]
    found = {
        "subject": np.array([q.subject for q in asked], dtype=np.float64),
        "probability": probability(own) if name in ("forget", "retain") else np.array(chosen),
        "rouge_l": rouge,
        "truth_ratio": np.array([truth_ratio(true[i : i + 1], w)[0] for i, w in enumerate(wrong)]),
    }
    return {column: tuple(float(v) for v in values) for column, values in found.items()}


@dataclass(frozen=True, kw_only=True)
class Tofu:
    """TOFU's evaluation of the model with the digest `model`: figures of every question, by set.

    `cut` of the answers that were scored did not fit the model's context whole.
    """

    model: str
    sets: Mapping[TofuSet, Columns]
    cut: int = 0

    def values(self, of: TofuSet, figure: str) -> Float[np.ndarray, " questions"]:
        """A figure of each question, as its mean over a set goes into tables: truth ratios by the set's definition."""
        found = np.asarray(self.sets[of][figure], dtype=np.float64)
        if figure != "truth_ratio":
            return found
        bounded = np.minimum(found, 1 / (found + _TINY)) if of == "forget" else np.maximum(0, 1 - found)
        return np.asarray(bounded)

    def figures(self) -> dict[str, Estimate]:
        """The mean of each figure of each set as "SET_FIGURE", and "model_utility", by `DEFINITIONS`.

        Intervals are clustered by author where there are several questions of one.
        """
        found = {
            f"{of}_{figure}": Estimate(
                **asdict(stats.mean_interval(self.values(of, figure), np.asarray(self.sets[of]["subject"])))
            )
            for of in TOFU_SETS
            for figure in FIGURES
        }
        return {**found, "model_utility": self.utility()}

    def utility(self) -> Estimate:
        """The harmonic mean of nine figures of what stays; for its interval, subjects of each set are drawn anew."""
        rng, parts, count = np.random.default_rng(0), [], 0
        for of in TOFU_SETS[1:]:
            subject = np.unique(np.asarray(self.sets[of]["subject"]), return_inverse=True)[1]
            rows = np.stack([self.values(of, figure) for figure in FIGURES] + [np.ones(len(subject))])
            sums = np.stack([np.bincount(subject, weights=row) for row in rows])
            held, count = sums.shape[1], count + sums.shape[1]
            # The first row of draws is the sample itself.
            drawn = np.vstack([np.arange(held), rng.integers(held, size=(_RESAMPLES, held))])
            totals = sums[:, drawn].sum(axis=2)
            parts.append(totals[:-1] / totals[-1])
        made = np.array([model_utility(list(row)) for row in np.concatenate(parts).T])
        low, high = np.quantile(made[1:], [0.025, 0.975])
        method = f"harmonic mean of 9: percentile bootstrap, {_RESAMPLES} resamples of subjects"
        return Estimate(value=float(made[0]), low=float(low), high=float(high), n=count, method=method)

    def quality(self, retrained: "Tofu") -> ForgetQuality:
        """Forget quality: are the truth ratios told from those of a model `retrained` without the authors?"""
        ours, theirs = (np.asarray(t.sets["forget"]["truth_ratio"], dtype=np.float64) for t in (self, retrained))
        return forget_quality(ours, theirs)
