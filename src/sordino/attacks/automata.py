"""From the tree of a format to a deterministic automaton, with the number of strings from each of its states."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from sordino.attacks.format_syntax import Chars, Choice, Node, Repeat, Sequence, Words
from sordino.errors import ConfigError

__all__ = ["Automaton", "determinise"]

# A candidate is part of one record; an automaton is part of one process.
_LONGEST = 1_000
_LARGEST = 300_000


@dataclass(frozen=True, kw_only=True)
class Automaton:
    """States 0 (the beginning) onwards: `chars[s]`, sorted, lead to the states `following[s]`, one each.

    `ends[s]` says whether a string may end there, `counts[s]` how many strings go on from there. Every state can be
    reached and every state leads to an end; no way leads back, so that the strings are finitely many.
    """

    chars: tuple[str, ...]
    following: tuple[tuple[int, ...], ...]
    ends: tuple[bool, ...]
    counts: tuple[int, ...]


def determinise(pattern: str, tree: Node) -> Automaton:
    """The automaton of a format's tree, by the subset construction; raises `ConfigError` where it is too large."""
    states, longest = _extent(tree)
    if longest > _LONGEST:
        message = f"The format {pattern!r} allows secrets of {longest:,} characters; at most {_LONGEST:,} are ranked."
        raise ConfigError(message, "Repeat its parts less often.")
    if states > _LARGEST:
        raise _too_large(pattern)
    loose = _Loose()
    ways = _subsets(pattern, loose, loose.closure([loose.add(tree, loose.new())]))
    chars = tuple("".join(way) for _, way in ways)
    following = tuple(tuple(way.values()) for _, way in ways)
    ends = tuple(end for end, _ in ways)
    return Automaton(chars=chars, following=following, ends=ends, counts=_counts(following, ends))


def _too_large(pattern: str) -> ConfigError:
    message = f"The format {pattern!r} takes more than {_LARGEST:,} states to tell its strings apart."
    return ConfigError(message, "Repeat less, use smaller lists, or make alternatives that begin differently.")


def _extent(node: Node) -> tuple[int, int]:
    """How many states a tree takes, about, and how long its longest string is: without making any."""
    match node:
        case Chars():
            return 1, 1
        case Words(words):
            return sum(map(len, words)), max(map(len, words))
        case Repeat(inner, _, high):
            states, longest = _extent(inner)
            return (states + 1) * high, longest * high
    parts = [_extent(part) for part in (node.parts if isinstance(node, Sequence) else node.options)]
    lengths = [longest for _, longest in parts]
    total = sum(lengths) if isinstance(node, Sequence) else max(lengths)
    return 1 + sum(states for states, _ in parts), total


@dataclass
class _Loose:
    """The automaton before it is deterministic: characters to a state, and states that are passed for free.

    It is built from its end (state 0) to its beginning.
    """

    edges: list[list[tuple[str, int]]] = field(default_factory=list)
    free: list[list[int]] = field(default_factory=list)

    def new(self, *free: int) -> int:
        self.edges.append([])
        self.free.append(list(free))
        return len(self.edges) - 1

    def add(self, node: Node, after: int) -> int:
        """Put the strings of `node` before the state `after`; the state where they begin."""
        match node:
            case Chars(chars):
                state = self.new()
                self.edges[state] = [(char, after) for char in chars]
                return state
            case Words(words):
                return self.spell(words, after)
            case Choice(options):
                return self.new(*[self.add(option, after) for option in options])
            case Sequence(parts):
                for part in reversed(parts):
                    after = self.add(part, after)
                return after
            case Repeat(inner, low, high):
                end = after
                for _ in range(high - low):
                    after = self.new(self.add(inner, after), end)
                for _ in range(low):
                    after = self.add(inner, after)
        return after

    def spell(self, words: tuple[str, ...], after: int) -> int:
        root = self.new()
        tries: dict[tuple[int, str], int] = {}
        for word in words:
            state = root
            for char in word:
                if (state, char) not in tries:
                    tries[state, char] = self.new()
                    self.edges[state].append((char, tries[state, char]))
                state = tries[state, char]
            self.free[state] = [after]
        return root

    def closure(self, states: list[int]) -> frozenset[int]:
        """`states`, and all that is reached from them for free."""
        if not any(self.free[state] for state in states):
            return frozenset(states)
        found, stack = set(states), list(states)
        while stack:
            for state in self.free[stack.pop()]:
                if state not in found:
                    found.add(state)
                    stack.append(state)
        return frozenset(found)

    def steps(self, states: frozenset[int]) -> Mapping[str, frozenset[int]]:
        """Where each character leads from any of `states`, in the order of the characters."""
        reached: dict[str, list[int]] = {}
        for state in states:
            for char, after in self.edges[state]:
                reached.setdefault(char, []).append(after)
        made: dict[tuple[int, ...], frozenset[int]] = {}
        found = {}
        for char in sorted(reached):
            key = tuple(reached[char])
            if key not in made:
                made[key] = self.closure(reached[char])
            found[char] = made[key]
        return found


def _subsets(pattern: str, loose: _Loose, start: frozenset[int]) -> list[tuple[bool, dict[str, int]]]:
    """Each reachable set of states as one state: whether strings end there, and where each character leads."""
    number, queue, ways, edges = {start: 0}, [start], [], 0
    for states in queue:
        way = {}
        for char, after in loose.steps(states).items():
            if after not in number:
                number[after] = len(queue)
                queue.append(after)
            way[char] = number[after]
        edges += len(way)
        if edges > 10 * _LARGEST or len(queue) > _LARGEST:
            raise _too_large(pattern)
        ways.append((0 in states, way))
    return ways


def _counts(following: tuple[tuple[int, ...], ...], ends: tuple[bool, ...]) -> tuple[int, ...]:
    counts = [0] * len(following)
    stack = [(0, False)]
    while stack:
        state, ready = stack.pop()
        if ready:
            counts[state] = ends[state] + sum(counts[after] for after in following[state])
        elif not counts[state]:
            stack.append((state, True))
            stack.extend((after, False) for after in set(following[state]) if not counts[after])
    return tuple(counts)
