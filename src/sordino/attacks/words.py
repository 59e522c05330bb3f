"""Words of a text, as attacks on generated text count them, and texts cut between words."""

import re
from collections import Counter
from collections.abc import Sequence

__all__ = ["first", "halve", "recall", "words"]

# Scripts without blanks between words: kana, Han, Thai. Each of their characters is a word.
_ALONE = "\u0e00-\u0e7f\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_WORD = re.compile(f"[{_ALONE}]|[^\\s{_ALONE}]+")


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
