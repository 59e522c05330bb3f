"""The texts of a tokenizer's tokens, as far as they are ASCII, and which of them go on from a state of a format."""

import json
import re
from functools import lru_cache
from typing import Any

import numpy as np

from sordino.attacks.formats import Format

__all__ = ["Walk", "token_texts"]

_BYTE = re.compile("<0x([0-9A-F]{2})>")
# What byte-level vocabularies write for bytes that are no visible character.
_BYTE_LEVEL = str.maketrans({"Ġ": " ", "Ċ": "\n", "ĉ": "\t"})


@lru_cache(maxsize=2)
def token_texts(tokenizer: Any) -> dict[int, str]:
    """The text that each token adds, of tokens that are plain ASCII; empty where the tokenizer's form is not known.

    Known are byte-level tokens (GPT-2's kin), those with ▁ for a space and <0x41> for a byte (SentencePiece), and
    vocabularies of plain text. Whether a format's strings are really tokenised like that is for the caller to check.
    """
    names = set(re.findall(r'"type": *"(\w+)"', json.dumps(_decoder(tokenizer))))
    if "WordPiece" in names or "CTC" in names:
        return {}
    vocabulary = tokenizer.get_vocab()
    special = {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    found = {}
    for token, number in vocabulary.items():
        byte = _BYTE.fullmatch(token) if "ByteFallback" in names else None
        if byte:
            char = chr(int(byte[1], 16))
            # Bytes are for characters without a token of their own.
            text = char if char not in vocabulary else ""
        else:
            text = token.translate(_BYTE_LEVEL) if "ByteLevel" in names else token.replace("▁", " ")
        if text and text.isascii() and number not in special:
            found[number] = text
    return found


def _decoder(tokenizer: Any) -> Any:
    return json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder")


class Walk:
    """Ways through the text `lead` and then a format, a token at a time.

    State 0 is before the lead; a state of the format is its number after the length of the lead. `single` says that
    every token is one character, and a different one.
    """

    def __init__(self, form: Format, lead: str, texts: dict[int, str]) -> None:
        self.form, self.lead = form, lead
        allowed = form.alphabet | set(lead)
        self.texts = {number: text for number, text in texts.items() if allowed.issuperset(text)}
        self.single = all(len(text) == 1 for text in self.texts.values()) and (
            len(set(self.texts.values())) == len(self.texts)
        )
        self._root: dict[str, Any] = {}
        for number, text in self.texts.items():
            node = self._root
            for char in text:
                node = node.setdefault(char, {})
            node.setdefault("", []).append(number)
        self._moves: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def edges(self, state: int) -> list[tuple[str, int]]:
        """The characters that may follow, and where each leads."""
        shift = len(self.lead)
        if state < shift:
            return [(self.lead[state], state + 1)]
        automaton = self.form.automaton
        following = (after + shift for after in automaton.following[state - shift])
        return list(zip(automaton.chars[state - shift], following, strict=True))

    def moves(self, state: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens (n) that may follow, sorted, and the states (n) after them."""
        if state not in self._moves:
            found, stack = [], [(self._root, state)]
            while stack:
                node, at = stack.pop()
                found += [(number, at) for number in node.get("", ())]
                stack += [(node[char], after) for char, after in self.edges(at) if char in node]
            table = np.array(sorted(found), dtype=np.int64).reshape(-1, 2)
            self._moves[state] = table[:, 0].astype(np.int32), table[:, 1]
        return self._moves[state]

    def ends(self, state: int) -> bool:
        """Whether a string of the format may end here."""
        return state >= len(self.lead) and self.form.automaton.ends[state - len(self.lead)]

    def count(self, state: int) -> int:
        """How many strings go on from here."""
        return self.form.automaton.counts[max(0, state - len(self.lead))]

    def nth(self, index: int, state: int) -> str:
        """The rest of string number `index` of those that go on from here, without what is left of the lead."""
        return self.form.nth(index, max(0, state - len(self.lead)))

    def text(self, path: list[int]) -> str:
        """What these tokens add to the lead: the beginning of a string."""
        return "".join(self.texts[number] for number in path)[len(self.lead) :]
