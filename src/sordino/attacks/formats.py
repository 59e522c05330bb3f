"""Formats of secrets: which strings a secret could have been, counted and numbered but never written out.

A format is read from a notation (`sordino.attacks.format_syntax`) into a deterministic automaton. Every string is
one way through it, so a string that the notation makes in two ways counts once, and the exact number of strings
from each state on gives the i-th of them.
"""

import random
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from pathlib import Path

from sordino.attacks.automata import Automaton, determinise
from sordino.attacks.format_syntax import parse
from sordino.errors import ConfigError, first_line

__all__ = ["Format", "read_format", "read_words"]


def read_format(pattern: str, lists: Mapping[str, Sequence[str] | Path] | None = None) -> "Format":
    """Read a format such as `[A-Z]{2}[0-9]{6}` or `<first> <last>`; `lists` holds words, or files of one a line.

    Raises `ConfigError` where the pattern cannot be read, is without limit, or holds nothing, and where a word list
    is empty or cannot be read.
    """
    words = {name: read_words(name, source) for name, source in (lists or {}).items()}
    return Format(pattern=pattern, automaton=determinise(pattern, parse(pattern, words)))


def read_words(name: str, source: Sequence[str] | Path) -> tuple[str, ...]:
    """The distinct entries of a word list, sorted, blanks at their ends and empty lines aside."""
    if isinstance(source, Path):
        try:
            source = source.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            message = f"The word list '{name}' cannot be read from {source}: {first_line(error)}."
            raise ConfigError(message, "Give a text file in UTF-8, one entry a line.") from None
    elif isinstance(source, str):
        message = f"The word list '{name}' is one text, {len(source)} characters long."
        raise ConfigError(message, "Give a list of words, or a pathlib.Path to a file of one a line.")
    words = tuple(sorted({word.strip() for word in source} - {""}))
    if not words:
        raise ConfigError(f"The word list '{name}' is empty.", "Give it at least one entry.")
    return words


@dataclass(frozen=True, kw_only=True)
class Format:
    """A finite set of strings, in the order of their code points, as an automaton whose state 0 is the beginning.

    `size` may have thousands of digits; nothing here takes time or memory in proportion to it.
    """

    pattern: str
    automaton: Automaton

    @property
    def size(self) -> int:
        """How many distinct strings there are."""
        return self.automaton.counts[0]

    @cached_property
    def alphabet(self) -> frozenset[str]:
        """All characters that stand in any of the strings."""
        return frozenset().union(*self.automaton.chars)

    @property
    def alphabet_is_ascii(self) -> bool:
        """Whether all of them are one byte in UTF-8."""
        return all(map(str.isascii, self.alphabet))

    @cached_property
    def prefix_free(self) -> bool:
        """Whether no string is the beginning of another one."""
        return not any(ends and chars for ends, chars in zip(self.automaton.ends, self.automaton.chars, strict=True))

    def step(self, state: int, text: str) -> int | None:
        """The state after `text`, or None where no string goes on like that."""
        for char in text:
            place = self.automaton.chars[state].find(char)
            if place < 0:
                return None
            state = self.automaton.following[state][place]
        return state

    def __contains__(self, text: str) -> bool:
        """Whether `text` is one of the strings, as a whole."""
        state = self.step(0, text)
        return state is not None and self.automaton.ends[state]

    def nth(self, index: int, state: int = 0) -> str:
        """The string number `index` (from 0) of those that go on from `state`; raises `IndexError` past the last."""
        a = self.automaton
        if not 0 <= index < a.counts[state]:
            raise IndexError(f"There is no string {index} of {a.counts[state]}.")
        found = []
        while index or not a.ends[state]:
            index -= a.ends[state]
            edges = list(accumulate(a.counts[after] for after in a.following[state]))
            place = bisect_right(edges, index)
            index -= edges[place - 1] if place else 0
            found.append(a.chars[state][place])
            state = a.following[state][place]
        return "".join(found)

    def draw(self, count: int, seed: int) -> list[str]:
        """`count` strings drawn uniformly, with replacement."""
        # Not NumPy's: its integers end at 64 bits.
        rng = random.Random(seed)
        return [self.nth(rng.randrange(self.size)) for _ in range(count)]

    def covering(self) -> list[str]:
        """Some strings in which every character of the alphabet stands, and every character that can be the first."""
        a, found, seen = self.automaton, [], set[str]()
        beginnings = {0: ""}
        # States are numbered in the order in which they are first reached, so each one's beginning is known.
        for state, (chars, following) in enumerate(zip(a.chars, a.following, strict=True)):
            for char, after in zip(chars, following, strict=True):
                beginnings.setdefault(after, beginnings[state] + char)
                if char not in seen or not state:
                    seen.add(char)
                    found.append(beginnings[state] + char + self.nth(0, after))
            if len(seen) == len(self.alphabet):
                break
        return found

    def __iter__(self) -> Iterator[str]:
        """All strings, in order."""
        a = self.automaton
        stack = [(0, "")]
        while stack:
            state, text = stack.pop()
            if a.ends[state]:
                yield text
            pairs = zip(a.chars[state], a.following[state], strict=True)
            stack.extend(reversed([(after, text + char) for char, after in pairs]))
