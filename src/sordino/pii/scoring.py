"""How well detected spans agree with labelled ones, kind by kind."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sordino.errors import DataError
from sordino.pii.spans import Span, overlap, resolve
from sordino.stats import Interval, clopper_pearson

__all__ = ["Agreement", "agreement"]


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """Of one kind: how many spans are `labelled`, `detected` and `matched`, one to one.

    `precision` is matched of detected and `recall` matched of labelled, each with its Clopper–Pearson interval; `f1`
    is their harmonic mean, 2J/(1 + J) of J = matched / (all that is labelled or detected), and so is its interval.
    A share of nothing has the value None. Spans are taken for independent.
    """

    kind: str
    labelled: int
    detected: int
    matched: int
    precision: Interval
    recall: Interval
    f1: Interval


def agreement(
    detected: Sequence[Sequence[Span]],
    labelled: Sequence[Sequence[Span]],
    *,
    matching: Literal["exact", "overlap"] = "exact",
    confidence: float = 0.95,
) -> dict[str, Agreement]:
    """Precision, recall and F₁ of every kind that is labelled or detected in any of the texts, sorted by kind.

    `detected` and `labelled` have the spans of one text each, in the same order. "exact" wants the same first and last
    character; "overlap" one in common, as many pairs as can be made. Scores do not matter. Of overlapping
    spans of one kind in one list, one counts (`resolve`). Raises `DataError` for lists of different lengths.
    """
    if len(detected) != len(labelled):
        message = f"Spans were detected in {len(detected)} texts and labelled in {len(labelled)}."
        raise DataError(message, "Give one list of spans a text in both, empty where there are none.")
    found, true, both = Counter[str](), Counter[str](), Counter[str]()
    for mine, theirs in zip(detected, labelled, strict=True):
        for kind in {span.kind for span in (*mine, *theirs)}:
            a, b = (resolve(span for span in spans if span.kind == kind) for spans in (mine, theirs))
            found[kind] += len(a)
            true[kind] += len(b)
            both[kind] += _exact(a, b) if matching == "exact" else _overlapping(a, b)
    return {k: _agreement(k, true[k], found[k], both[k], confidence) for k in sorted(found.keys() | true.keys())}


def _exact(a: Sequence[Span], b: Sequence[Span]) -> int:
    return len({(s.message, s.start, s.stop) for s in a} & {(s.message, s.start, s.stop) for s in b})


def _overlapping(a: Sequence[Span], b: Sequence[Span]) -> int:
    """The most pairs of overlapping spans, of two lists each in order and without overlaps.

    The pair that is met first can always be made: what ends first of the two has no later partner.
    """
    i = j = pairs = 0
    while i < len(a) and j < len(b):
        if overlap(a[i], b[j]):
            pairs, i, j = pairs + 1, i + 1, j + 1
        elif (a[i].message, a[i].stop) < (b[j].message, b[j].stop):
            i += 1
        else:
            j += 1
    return pairs


def _agreement(kind: str, labelled: int, detected: int, matched: int, confidence: float) -> Agreement:
    joint = clopper_pearson(matched, labelled + detected - matched, confidence)
    f1 = Interval(
        value=None if joint.value is None else _f1(joint.value),
        low=_f1(joint.low),
        high=_f1(joint.high),
        n=joint.n,
        method="Clopper–Pearson of the Jaccard index",
        confidence=confidence,
        needs=joint.needs,
    )
    return Agreement(
        kind=kind,
        labelled=labelled,
        detected=detected,
        matched=matched,
        precision=clopper_pearson(matched, detected, confidence),
        recall=clopper_pearson(matched, labelled, confidence),
        f1=f1,
    )


def _f1(jaccard: float) -> float:
    return 2 * jaccard / (1 + jaccard)
