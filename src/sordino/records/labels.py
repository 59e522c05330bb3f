"""The classes of a labelled data set: whether they can be classes at all, and what is told about them."""

from collections import Counter
from collections.abc import Sequence

from sordino.errors import DataError
from sordino.records.placed import Example, labels_of
from sordino.results import Notice

__all__ = ["label_notices", "labels_of"]


def label_notices(examples: Sequence[Example], column: str) -> list[Notice]:
    """What the labels of `examples`, read from `column`, leave to be told.

    Raises `DataError` where they cannot be classes: a single one, or more than half as many as records.
    """
    labels, records = labels_of(examples), sum(e.record.label is not None for e in examples)
    if len(labels) < 2:
        message = f"Column '{column}' has one label only, {labels[0]!r}, in all {records:,} records."
        raise DataError(message, "A classifier needs two classes at least.")
    if 2 * len(labels) > records:
        message = f"Column '{column}' has {len(labels):,} different labels in {records:,} records."
        raise DataError(message, "Is it a column of classes? Then merge rare ones; else set data.label to another.")
    trained = Counter(e.record.label for e in examples if e.included)
    unseen = [label for label in labels if not trained[label]]
    if not unseen:
        return []
    message = f"{len(unseen)} of {len(labels)} classes have no record that is trained on, e.g. {unseen[0]!r}."
    return [Notice(kind="unseen-labels", count=len(unseen), message=message)]
