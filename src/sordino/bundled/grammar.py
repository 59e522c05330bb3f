"""A context-free grammar of sentences: plain text with `{symbol}` references and `(a|b|)` alternatives."""

import functools
import random
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Choice", "Expansion", "Rules", "Sequence", "Symbol", "parse_rules", "read_sections", "tidy"]

_TOKEN = re.compile(r"\{([\w.]+)\}|([(|)])|([^(){}|]+)")
_SECTION = re.compile(r"\[([\w.@]+)\]")
_SENTENCE_START = re.compile(r"(^|[.!?] |Customer: |Agent: )([a-z])")


@dataclass(frozen=True)
class Symbol:
    """A reference to a section of the grammar, or to a given value."""

    name: str


@dataclass(frozen=True)
class Choice:
    """Alternatives of equal probability."""

    options: tuple["Sequence", ...]


Sequence = tuple[str | Symbol | Choice, ...]
Rules = Mapping[str, tuple[Sequence, ...]]


@functools.cache
def read_sections(path: Path) -> Mapping[str, tuple[str, ...]]:
    """Read the lines under each `[section]` of a grammar file; `#` comments and empty lines are left out."""
    sections: dict[str, list[str]] = {}
    lines: list[str] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        if header := _SECTION.fullmatch(line):
            lines = sections.setdefault(header[1], [])
        elif line and not line.startswith("#"):
            lines.append(line)
    return {name: tuple(found) for name, found in sections.items()}


@functools.cache
def parse_rules(path: Path) -> Rules:
    """Parse the lines of each section of a grammar file."""
    return {name: tuple(_parse(line) for line in lines) for name, lines in read_sections(path).items()}


def _parse(line: str) -> Sequence:
    """Parse one line into texts, symbols and choices."""
    # The stack holds the open parentheses: their finished alternatives and the one being read.
    stack: list[list[list[str | Symbol | Choice]]] = [[[]]]
    for symbol, mark, text in _TOKEN.findall(line):
        if symbol:
            stack[-1][-1].append(Symbol(symbol))
        elif text:
            stack[-1][-1].append(text)
        elif mark == "(":
            stack.append([[]])
        elif mark == "|":
            stack[-1].append([])
        else:
            options = stack.pop()
            stack[-1][-1].append(Choice(tuple(tuple(option) for option in options)))
    return tuple(stack[0][0])


@dataclass(frozen=True, kw_only=True)
class Expansion:
    """One text in the making: the rules, the topic and voice that refine symbols, and the values so far.

    A symbol `x` is its value if it has one, else a line of the first section that exists among
    `x.topic@voice`, `x.topic`, `x@voice` and `x`. Once drawn, the symbols in `constants` keep their value.
    """

    rng: random.Random
    rules: Rules
    topic: str
    voice: str
    constants: frozenset[str]
    values: dict[str, str]

    def symbol(self, name: str) -> str:
        """Expand one symbol."""
        if (value := self.values.get(name)) is not None:
            return value
        text = self.sequence(self.rng.choice(self._lines(name)))
        if name in self.constants:
            self.values[name] = text
        return text

    def sequence(self, sequence: Sequence) -> str:
        """Expand one parsed line or alternative."""
        parts = []
        for part in sequence:
            if isinstance(part, str):
                parts.append(part)
            elif isinstance(part, Symbol):
                parts.append(self.symbol(part.name))
            else:
                parts.append(self.sequence(self.rng.choice(part.options)))
        return "".join(parts)

    def _lines(self, name: str) -> tuple[Sequence, ...]:
        """Find the section that refines `name` most."""
        refined = f"{name}.{self.topic}"
        for section in (f"{refined}@{self.voice}", refined, f"{name}@{self.voice}"):
            if section in self.rules:
                return self.rules[section]
        return self.rules[name]


def tidy(text: str) -> str:
    """Return `text` with single spaces, none before punctuation, and a capital at each sentence start."""
    text = re.sub(r" ([.,;:?!])", r"\1", " ".join(text.split()))
    return _SENTENCE_START.sub(lambda match: match[1] + match[2].upper(), text)
