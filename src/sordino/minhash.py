"""MinHash of sets of shingles, and the search for near sets among those that share a bucket, compiled by Numba.

Texts are numbered by age. A bucket is a list of the texts with one key; in it, the texts of one group hang
together, so that a group that is settled is passed over in one step, however many copies it has.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np

from sordino.compiled import compiled

__all__ = ["SKETCH", "add", "band_keys", "char_tokens", "find_root", "search", "shingle_sets", "sketch", "word_tokens"]

F = TypeVar("F", bound=Callable[..., Any])
SKETCH = 8  # 64-bit words of a sketch: one cache line

_U = np.uint64
# The finalizer of SplitMix64 (Steele, Lea and Flood 2014, "Fast Splittable Pseudorandom Number Generators")
# and FNV-1a's prime and basis: fixed, so that a text has the same shingles on every machine.
_M1, _M2, _GOLDEN = _U(0xBF58476D1CE4E5B9), _U(0x94D049BB133111EB), _U(0x9E3779B97F4A7C15)
_PRIME, _BASIS = _U(0x100000001B3), _U(0xCBF29CE484222325)
_S27, _S30, _S31, _S32 = _U(27), _U(30), _U(31), _U(32)
_TOP = _U(2**64 - 1)


@compiled("u8(u8)")
def _mix(x: Any) -> Any:
    x = (x ^ (x >> _S30)) * _M1
    x = (x ^ (x >> _S27)) * _M2
    return x ^ (x >> _S31)


@compiled("void(u4[::1], i8[::1], u8[::1], i8[::1])")
def word_tokens(codes: Any, edges: Any, tokens: Any, starts: Any) -> None:
    """Hash the words of each text: code points in `codes[edges[i]:edges[i + 1]]`, each word ended by a 0."""
    found = 0
    for i in range(len(edges) - 1):
        starts[i] = found
        state = _BASIS
        for at in range(edges[i], edges[i + 1]):
            if codes[at] == 0:
                tokens[found] = _mix(state)
                found += 1
                state = _BASIS
            else:
                state = (state ^ _U(codes[at])) * _PRIME
    starts[len(edges) - 1] = found


@compiled("void(u4[::1], u8[::1])")
def char_tokens(codes: Any, tokens: Any) -> None:
    """Hash each code point."""
    for at in range(len(codes)):
        tokens[at] = _mix(_U(codes[at]))


@compiled("void(u8[::1], i8[::1], i8, u8[::1], i8[::1])")
def shingle_sets(tokens: Any, edges: Any, width: int, values: Any, starts: Any) -> None:
    """Fill `values` with the distinct hashed shingles of `width` tokens of each text, ascending, from `starts[i]`."""
    found = 0
    for i in range(len(edges) - 1):
        starts[i] = found
        for first in range(edges[i], edges[i + 1] - width + 1):
            state = _BASIS
            for at in range(first, first + width):
                state = _mix((state + _GOLDEN) ^ tokens[at])
            values[found] = state
            found += 1
        row = values[starts[i] : found]
        row.sort()
        kept = starts[i]
        for at in range(starts[i], found):
            if at == starts[i] or values[at] != values[kept - 1]:
                values[kept] = values[at]
                kept += 1
        found = kept
    starts[len(edges) - 1] = found


@compiled("void(u8[::1], i8[::1], u8[::1], i8, u4[:,::1])")
def band_keys(values: Any, starts: Any, seeds: Any, rows: int, keys: Any) -> None:
    """Fill `keys` (texts, bands): each digests `rows` minima of the set under hashes that `seeds` name.

    The hash of value x under seed s is the upper half of (s x + s') mod 2⁶⁴ with odd s (multiply-shift,
    Dietzfelbinger et al. 1997); `seeds` has s and s' by turns, 2 · bands · rows of them.
    """
    for i in range(len(starts) - 1):
        for band in range(keys.shape[1]):
            state = _BASIS
            for row in range(rows):
                at = 2 * (band * rows + row)
                factor, shift, least = seeds[at] | _U(1), seeds[at + 1], _TOP
                for j in range(starts[i], starts[i + 1]):
                    least = min(least, (factor * values[j] + shift) >> _S32)
                state = _mix((state + _GOLDEN) ^ least)
            keys[i, band] = np.uint32(state >> _S32)


@compiled("i8(i8[::1], i8)")
def find_root(parent: Any, at: int) -> int:
    """The root of `at` in a forest of parents, whose paths are halved on the way; -1 for what is in no tree."""
    if parent[at] < 0:
        return -1
    while parent[at] != at:
        parent[at] = parent[parent[at]]
        at = parent[at]
    return at


@compiled("void(u8[::1], i8[::1], u8[:,::1])")
def sketch(values: Any, starts: Any, out: Any) -> None:
    """Fill `out` (texts, SKETCH): of every bit, whether an odd number of the set's shingles fall on it."""
    for i in range(len(starts) - 1):
        for j in range(starts[i], starts[i + 1]):
            place = values[j] >> _U(55)
            out[i, np.int64(place >> _U(6))] ^= _U(1) << (place & _U(63))


@compiled("i8(u8)")
def _bits(x: Any) -> Any:
    x = x - ((x >> _U(1)) & _U(0x5555555555555555))
    x = (x & _U(0x3333333333333333)) + ((x >> _U(2)) & _U(0x3333333333333333))
    x = (x + (x >> _U(4))) & _U(0x0F0F0F0F0F0F0F0F)
    return np.int64((x * _U(0x0101010101010101)) >> _U(56))


@compiled("b1(u8[::1], i8[::1], u8[:,::1], i8, i8, f8)")
def _similar(values: Any, starts: Any, sketches: Any, a: int, b: int, threshold: float) -> Any:
    i, j, end_i, end_j = starts[a], starts[b], starts[a + 1], starts[b + 1]
    total = (end_i - i) + (end_j - j)
    # A bit that differs is a shingle that only one has: with too many of them the sets cannot be near
    # (a bitmap filter: Sandes, Teodoro and Melo 2020, "Bitmap Filter"; here of parities).
    most = (1 - threshold) / (1 + threshold) * total + 1e-6
    different = 0
    for word in range(SKETCH):
        different += _bits(sketches[a, word] ^ sketches[b, word])
    if different > most:
        return False
    # J ≥ t if and only if t / (1 + t) of the two sizes is shared; without that many left, stop early.
    need = int(np.floor(threshold / (1 + threshold) * total - 1e-6))
    shared = 0
    while i < end_i and j < end_j:
        if shared + min(end_i - i, end_j - j) < need:
            return False
        if values[i] == values[j]:
            shared += 1
            i += 1
            j += 1
        elif values[i] < values[j]:
            i += 1
        else:
            j += 1
    return shared / (total - shared) >= threshold


_SETS = "u8[::1], i8[::1], u8[:,::1], f8"
_INDEX = "i8[::1], i4[::1], i4[:,::1], i4[:,::1], i8[:,::1], i8[::1]"


@compiled(f"i8(i8, i8[::1], {_SETS}, {_INDEX}, i8, i8)")
def search(  # noqa: PLR0913, PLR0917 - one pass over arrays that only the compiler sees
    text: int, parent: Any, values: Any, starts: Any, sketches: Any, threshold: float, entry_start: Any, bucket: Any,
    buckets: Any, links: Any, marks: Any, out: Any, limit: int, stamp: int,
) -> int:  # fmt: skip
    """Write the groups of the earlier near texts of `text` to `out` and return how many there are.

    `buckets` (2, buckets) has each bucket's first entry and its size; `links` (4, entries) of each entry
    its text, the next entry of the same group, the last such, and the first entry of the next group;
    `marks` (4, texts) when a text and a near group were seen last, in which bucket a group was, and its first
    entry there; `stamp` is the time, another one for each search.
    Small buckets come first. The last one holds all texts: it is gone through instead of the rest where more
    than `limit` entries were looked at, each group in one step once it is found.
    """
    first, size = buckets[0], buckets[1]
    owner, same, last, other = links[0], links[1], links[2], links[3]
    seen, near, at_bucket, head_of = marks[0], marks[1], marks[2], marks[3]
    begin, end = entry_start[text], entry_start[text + 1]
    order = np.argsort(size[bucket[begin:end]], kind="mergesort")
    found, steps, everything = 0, 0, len(first) - 1
    for place in order:
        here = bucket[begin + place]
        if here == everything:
            if steps <= limit:
                break
            steps, limit = 0, 4 * len(seen)  # more than there are groups and texts
        visit = (stamp << 20) + place
        before, head = -1, first[here]
        while head != -1 and steps <= limit:
            root, following = find_root(parent, owner[head]), other[head]
            kept = head
            if at_bucket[root] == visit:  # groups that have merged since: hang this list behind the other
                kept = head_of[root]
                same[last[kept]] = head
                last[kept] = last[head]
                other[before] = following
            else:
                at_bucket[root] = visit
                head_of[root] = head
                before = head
            tail = head
            while tail != -1 and near[root] != stamp and steps <= limit:
                candidate = owner[tail]
                if seen[candidate] != stamp:
                    seen[candidate] = stamp
                    if _similar(values, starts, sketches, text, candidate, threshold):
                        near[root] = stamp
                        out[found] = root
                        found += 1
                        # What was near to one is likely near to the next: it goes to the front.
                        owner[tail], owner[kept] = owner[kept], owner[tail]
                steps += 1
                tail = same[tail]
            steps += 1
            head = following
    return found


@compiled("void(i8, i8[::1], i4[::1], i4[:,::1], i4[:,::1])")
def add(text: int, entry_start: Any, bucket: Any, buckets: Any, links: Any) -> None:
    """Put `text` in front of each of its buckets, as a group of its own there until the next search."""
    for entry in range(entry_start[text], entry_start[text + 1]):
        here = bucket[entry]
        links[0, entry] = text
        links[1, entry] = -1
        links[2, entry] = entry
        links[3, entry] = buckets[0, here]
        buckets[0, here] = entry
        buckets[1, here] += 1
