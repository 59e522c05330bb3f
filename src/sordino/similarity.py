"""How alike two texts are, pair by pair: ROUGE-L of their words, and edit similarity of their characters."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from sordino.errors import DataError

__all__ = ["UNSPACED", "Rouge", "edit_similarity", "rouge_l", "rouge_words"]

UNSPACED = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
"""Characters of scripts without blanks between words, as a range in a regular expression: Thai, kana, Han."""

_WORD = re.compile(f"[{UNSPACED}]|[^\\W_{UNSPACED}]+")


@dataclass(frozen=True, kw_only=True)
class Rouge:
    """ROUGE-L of each pair: with n words in the longest common subsequence, n / |candidate| is the `precision`.

    `recall` is n / |reference|, and `f1` their harmonic mean. All are 0 where a text has no words.
    """

    precision: Float[np.ndarray, " pairs"]
    recall: Float[np.ndarray, " pairs"]
    f1: Float[np.ndarray, " pairs"]


def rouge_words(text: str) -> list[str]:
    """The words that ROUGE counts: runs of letters and digits of any script, in lower case, without punctuation.

    In scripts without blanks between words each character is one. For texts in ASCII these are the words of the
    package rouge-score without stemming, which splits all others at every letter that is not in ASCII.
    """
    return _WORD.findall(text.lower())


def _require_pairs(first: Sequence[Any], second: Sequence[Any]) -> None:
    if len(first) != len(second):
        message = f"There are {len(first)} texts to be compared with {len(second)}."
        raise DataError(message, "Give them pair by pair, as two sequences of one length.")


def rouge_l(candidates: Sequence[str], references: Sequence[str]) -> Rouge:
    """ROUGE-L of each candidate with its reference (Lin 2004), over `rouge_words`.

    The weight of recall against precision is 1. Raises `DataError` where the two have different lengths.
    """
    from rapidfuzz.distance import LCSseq
    from rapidfuzz.process import cpdist

    _require_pairs(candidates, references)
    written, true = ([rouge_words(text) for text in texts] for texts in (candidates, references))
    shared = cpdist(written, true, scorer=LCSseq.similarity, dtype=np.int64).astype(np.float64)
    ours, theirs = (np.array([len(words) for words in texts], dtype=np.float64) for texts in (written, true))
    return Rouge(
        precision=shared / np.maximum(ours, 1),
        recall=shared / np.maximum(theirs, 1),
        f1=2 * shared / np.maximum(ours + theirs, 1),
    )


def edit_similarity(first: Sequence[str], second: Sequence[str]) -> Float[np.ndarray, " pairs"]:
    """1 − d / max(|a|, |b|) of each pair, with d the least number of characters to insert, delete or replace.

    Two empty texts have 1. Raises `DataError` where the two have different lengths.
    """
    from rapidfuzz.distance import Levenshtein
    from rapidfuzz.process import cpdist

    _require_pairs(first, second)
    found: np.ndarray = cpdist(first, second, scorer=Levenshtein.normalized_similarity, dtype=np.float64)
    return found
