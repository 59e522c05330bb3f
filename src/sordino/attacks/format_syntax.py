r"""The notation of candidate formats: a subset of regular expressions, read into a tree.

    text          characters stand for themselves; after a backslash, so do those that mean something here
    [A-Z0-9_]     one of these characters; \d is [0-9]
    {3} {2,4} ?   what stands before, 3 times, 2 to 4 times, or not at all or once
    (a|b)         one or the other; (?:a|b) is the same
    <names>       one entry of the word list of that name, which the caller gives

Without word lists, `re.fullmatch` with `re.ASCII` accepts the same strings. What could go on for ever (`*`, `+`,
`{2,}`) or depends on an alphabet that nobody named (`.`, `[^a]`, `\w`) is refused.

The parser is our own: `re._parser` is private; greenery, the one kept-up library with fitting licence that makes
automata of regular expressions, has neither word lists nor the i-th string of a language.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from sordino.errors import ConfigError, did_you_mean

__all__ = ["Chars", "Choice", "Node", "Repeat", "Sequence", "Words", "parse"]

_SPECIAL = r"\[](){}|?*+.^$<"
_ESCAPES = {"n": "\n", "t": "\t"}
_DIGITS = frozenset("0123456789")
_DEEPEST = 50


@dataclass(frozen=True)
class Chars:
    """One of these characters."""

    chars: frozenset[str]


@dataclass(frozen=True)
class Words:
    """One of these texts."""

    words: tuple[str, ...]


@dataclass(frozen=True)
class Sequence:
    """One part after the other."""

    parts: tuple["Node", ...]


@dataclass(frozen=True)
class Choice:
    """One of several."""

    options: tuple["Node", ...]


@dataclass(frozen=True)
class Repeat:
    """`node`, `low` to `high` times."""

    node: "Node"
    low: int
    high: int


Node = Chars | Words | Sequence | Choice | Repeat


def parse(pattern: str, lists: Mapping[str, tuple[str, ...]]) -> Node:
    """Read a format; raises `ConfigError` with the position of what cannot be read."""
    reader = _Reader(pattern, lists)
    node = reader.choice(0)
    if reader.at < len(pattern):
        reader.fail("nothing is open that this could close", "Write \\) for the character itself.")
    return node


@dataclass
class _Reader:
    pattern: str
    lists: Mapping[str, tuple[str, ...]]
    at: int = 0

    def fail(self, what: str, hint: str, at: int | None = None) -> "None":
        place = self.at if at is None else at
        raise ConfigError(f"The format {self.pattern!r} cannot be read at position {place}: {what}.", hint)

    def peek(self, count: int = 1) -> str:
        return self.pattern[self.at : self.at + count]

    def accept(self, text: str) -> bool:
        found = self.pattern.startswith(text, self.at)
        self.at += len(text) * found
        return found

    def choice(self, depth: int) -> Node:
        if depth > _DEEPEST:
            self.fail(f"more than {_DEEPEST} brackets are open", "Write it with fewer brackets.")
        options = [self.sequence(depth)]
        while self.accept("|"):
            options.append(self.sequence(depth))
        return options[0] if len(options) == 1 else Choice(tuple(options))

    def sequence(self, depth: int) -> Node:
        parts = []
        while self.peek() not in ("", "|", ")"):
            part, repeated = self.item(depth), False
            while (bounds := self.quantifier()) is not None:
                if repeated:
                    self.fail("what is repeated already is repeated again", "Put brackets around it: (a{2}){3}.")
                part, repeated = Repeat(part, *bounds), True
            parts.append(part)
        return parts[0] if len(parts) == 1 else Sequence(tuple(parts))

    def item(self, depth: int) -> Node:
        start, char = self.at, self.peek()
        if char == "[":
            return self.char_class()
        if char == "<":
            return self.word_list()
        if self.accept("("):
            if self.peek() == "?" and not self.accept("?:"):
                self.fail("groups are (…) or (?:…)", "Leave the rest away.")
            node = self.choice(depth + 1)
            if not self.accept(")"):
                self.fail("this bracket is never closed", "Add a ), or write \\( for the character.", start)
            return node
        if char == "\\":
            return Chars(self.escape())
        if char in _SPECIAL:
            self.refuse(char)
        self.at += 1
        return Chars(frozenset(self.checked(char)))

    def refuse(self, char: str) -> None:
        if char in "*+":
            self.fail(f"'{char}' has no upper limit", "Say how often at most, such as {1,8}.")
        if char == ".":
            self.fail("'.' would be any character", "Name the characters, such as [a-z0-9].")
        if char in "?{":
            self.fail(f"nothing stands before '{char}' that it could repeat", f"Write \\{char} for the character.")
        self.fail(f"'{char}' means nothing here", f"Write \\{char} for the character.")

    def quantifier(self) -> tuple[int, int] | None:
        start = self.at
        if self.peek() and self.peek() in "*+":
            self.refuse(self.peek())
        if self.accept("?"):
            return 0, 1
        if not self.accept("{"):
            return None
        low = self.number()
        comma = self.accept(",")
        high = self.number() if comma else low
        if comma and high is None:
            self.fail("this repetition has no upper limit", "Say how often at most, such as {1,8}.", start)
        if high is None or not self.accept("}"):
            self.fail("a repetition is {3} or {2,4}", "Write \\{ for the character.", start)
        least, most = low or 0, high or 0
        if least > most:
            self.fail(f"{least} to {most} times is never", "Put the smaller number first.", start)
        return least, most

    def number(self) -> int | None:
        start = self.at
        while self.peek() in _DIGITS:
            self.at += 1
        if self.at - start > 9:
            self.fail("this number is too large", "A repetition has at most nine digits.", start)
        return int(self.pattern[start : self.at]) if self.at > start else None

    def escape(self) -> frozenset[str]:
        self.at += 1
        char = self.peek()
        if char == "d":
            self.at += 1
            return _DIGITS
        if char not in _ESCAPES and (not char or char.isalnum()):
            self.fail(f"'\\{char}' is not known here", "Name the characters, such as [A-Za-z0-9_].", self.at - 1)
        self.at += 1
        return frozenset(_ESCAPES.get(char, char))

    def checked(self, char: str) -> str:
        if 0xD800 <= ord(char) < 0xE000:
            self.fail("half of a surrogate pair is no character", "Write the character itself.")
        return char

    def char_class(self) -> Node:
        start, chars = self.at, set[str]()
        self.at += 1
        if self.peek() == "^":
            self.fail("all characters but some are too many", "Name those it may be, such as [a-z0-9].")
        while not self.accept("]"):
            if not self.peek():
                self.fail("this bracket is never closed", "Add a ], or write \\[ for the character.", start)
            low = self.member()
            if self.peek() == "-" and self.peek(2) not in ("-", "-]"):
                chars |= self.span(low)
            else:
                chars |= low
        if not chars:
            self.fail("no character is in these brackets", "Name some; write \\] for the bracket itself.", start)
        return Chars(frozenset(chars))

    def member(self) -> frozenset[str]:
        if self.peek() == "\\":
            return self.escape()
        char = self.checked(self.peek())
        self.at += 1
        return frozenset(char)

    def span(self, low: frozenset[str]) -> set[str]:
        start = self.at
        self.at += 1
        high = self.member()
        first, last = ord(min(low)), ord(min(high))
        if len(low) > 1 or len(high) > 1 or first > last:
            self.fail("a range goes from a character to a later one", "Write it like a-z.", start)
        if last - first > 5_000:
            self.fail(f"a range of {last - first + 1} characters is too wide", "Name fewer.", start)
        return {self.checked(chr(code)) for code in range(first, last + 1)}

    def word_list(self) -> Node:
        start, end = self.at, self.pattern.find(">", self.at)
        if end < 0:
            self.fail("this name of a word list is never closed", "Add a >, or write \\< for the character.")
        name = self.pattern[self.at + 1 : end]
        if name not in self.lists:
            known = did_you_mean(name, self.lists) or f"Give one: lists={{{name!r}: [...]}} or a file of one a line."
            self.fail(f"there is no word list '{name}'", known, start)
        self.at = end + 1
        return Words(self.lists[name])
