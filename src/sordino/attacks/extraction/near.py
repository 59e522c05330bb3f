"""Near-verbatim discoverable extraction: does greedy decoding give the rest of a record, but for a few words?"""

from collections.abc import Sequence
from functools import partial

import numpy as np
from jaxtyping import Bool

from sordino.attacks.base import Windows, extraction
from sordino.attacks.passages import passages
from sordino.signals import Signals
from sordino.similarity import edit_similarity, rouge_l


def _alike(written: Sequence[str], true: Sequence[str], rouge: float, edit: float) -> Bool[np.ndarray, " passages"]:
    """Which texts reach `rouge` (ROUGE-L, F1) or `edit` (edit similarity) with the true ones; never an empty one."""
    ours, theirs = ([text.strip() for text in texts] for texts in (written, true))
    there = np.array([bool(text) for text in ours], dtype=bool)
    found: np.ndarray = there & ((rouge_l(ours, theirs).f1 >= rouge) | (edit_similarity(ours, theirs) >= edit))
    return found


@extraction(paper="Carlini et al. 2023, arXiv:2202.07646; Ippolito et al. 2023, arXiv:2210.17546", needs=("top",))
def near(
    signals: Signals,
    *,
    prefix_tokens: int = 50,
    suffix_tokens: int = 50,
    rouge: float = 0.75,
    edit: float = 0.75,
    wrong: float = 0.5,
) -> Windows:
    """Find the records that greedy decoding repeats nearly: ROUGE-L or edit similarity of 0.75 or more.

    One window a record is tried (see `prefix` for windows): the first of those with the fewest tokens that are not the
    most likely one after the true tokens before them. The windows are not hits yet: the audit decodes them, and
    `accept` says which texts count: those with ROUGE-L (F1 of words) of at least `rouge` or an edit similarity
    (of characters) of at least `edit`. A window with a share of more than `wrong` such tokens is not decoded and
    does not count.
    """
    s = signals.statistics
    tried, found, shortened = np.zeros(len(signals), dtype=np.int64), [], 0
    missed = np.asarray(s.top) != np.asarray(s.token)
    for one in passages(signals, prefix_tokens, suffix_tokens):
        if not len(one.first):
            continue
        tried[one.record] = 1
        shortened += one.shortened
        run = np.concatenate([[0], np.cumsum(missed[one.rows])])
        misses = run[one.first + one.length] - run[one.first]
        best = int(misses.argmin())
        if misses[best] <= wrong * one.length:
            start = int(s.position[one.rows][one.first[best]])
            found.append((one.record, start, start + one.length))
    table = np.array(found, dtype=np.int64).reshape(-1, 3)
    return Windows(
        tried=tried, record=table[:, 0], start=table[:, 1], stop=table[:, 2], shortened=shortened,
        accept=partial(_alike, rouge=rouge, edit=edit),
    )  # fmt: skip
