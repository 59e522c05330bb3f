"""Words of a text, as attacks on generated text count them, and texts cut between words."""

import re
from collections import Counter
from collections.abc import Sequence

from sordino.similarity import UNSPACED

__all__ = ["first", "halve", "recall", "words"]

# In scripts without blanks between words each character is one.
_WORD = re.compile(f"[{UNSPACED}]|[^\\s{UNSPACED}]+")


def words(text: str) -> list[str]:
    """What blanks separate, capitals and punctuation kept; in scripts without blanks, each character."""
    return _WORD.findall(text)


def first(text: str, count: int) -> str:
    """`text` up to the end of its word number `count`, the whole of it where it has fewer."""
    found = list(_WORD.finditer(text))
    return text if count >= len(found) else text[: found[count - 1].end()] if count else ""


def halve(text: str) -> tuple[str, str]:
    """The first ⌊n/2⌋ of the n words of `text`, and the rest with the blank before it."""
    before = first(text, len(words(text)) // 2)
    return before, text[len(before) :]


def recall(written: Sequence[str], true: Sequence[str]) -> float:
    """ROUGE-1 recall: the share of the words `true` (n ≥ 1) in `written`, each as often as it stands there at most."""
    return sum((Counter(true) & Counter(written)).values()) / len(true)
