"""Runs of text: what a suffix array finds is what looking everywhere finds."""

import difflib
import random
import string

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino import matching
from sordino.errors import DataError
from sordino.matching import SuffixIndex, longest_common_substring

# Few symbols, so that much is repeated; an emoji, a combining accent, a lone surrogate and the null character.
SYMBOLS = "ab é\u0301😀\ud800\x00"
TEXTS = st.lists(st.text(SYMBOLS, max_size=12), max_size=6)
IDS = st.lists(st.lists(st.integers(0, 3), max_size=12), max_size=6)


def by_looking(records, query):
    """The longest run from each position of `query` that is in a record: by trying them all."""
    found = []
    for at in range(len(query)):
        length = 0
        while at + length < len(query) and any(stands(query[at : at + length + 1], r) for r in records):
            length += 1
        found.append(length)
    return found


def stands(part, record):
    """Whether `part` is a run of `record`, texts or lists."""
    return any(record[i : i + len(part)] == part for i in range(len(record) - len(part) + 1))


def by_table(a, b):
    """The longest common substring of two sequences by the table of all pairs of ends."""
    best, before = (0, 0, 0), [0] * (len(b) + 1)
    for i, x in enumerate(a):
        row = [0] * (len(b) + 1)
        for j, y in enumerate(b):
            if x == y:
                row[j + 1] = before[j] + 1
                best = max(best, (row[j + 1], i + 1 - row[j + 1], j + 1 - row[j + 1]), key=lambda found: found[0])
        before = row
    return best


def agrees(records, query):
    index = SuffixIndex(records)
    expected = by_looking(records, query)
    assert index.lengths(query).tolist() == expected
    found = index.longest(query)
    if not any(expected):
        assert found is None
    else:
        assert found.length == max(expected) and found.at == expected.index(max(expected))
        run = query[found.at : found.at + found.length]
        assert records[found.record][found.start : found.start + found.length] == run
    holders = [i for i, record in enumerate(records) if stands(query, record)]
    assert index.occurrences(query).tolist() == holders
    assert index.contains(query) == bool(holders)


@given(TEXTS, st.text(SYMBOLS, max_size=12))
@settings(max_examples=50, deadline=None)
def test_matching_statistics_of_texts_are_those_of_looking_everywhere(records, query):
    agrees(records, query)


@given(IDS, st.lists(st.integers(0, 4), max_size=12))
@settings(max_examples=50, deadline=None)
def test_matching_statistics_of_tokens_are_those_of_looking_everywhere(records, query):
    agrees(records, query)


@given(TEXTS, st.data())
@settings(max_examples=50, deadline=None)
def test_parts_of_records_are_found(records, data):
    record = data.draw(st.sampled_from(records or [""]))
    start = data.draw(st.integers(0, len(record)))
    stop = data.draw(st.integers(start, len(record)))
    agrees(records, record[start:stop])


def test_no_match_spans_two_records():
    index = SuffixIndex(["the door is", " green"])
    assert index.lengths("the door is green").max() == len("the door is")
    assert not index.contains("is green")
    tokens = SuffixIndex([np.array([5, 6]), np.array([7, 8], dtype=np.uint16)])
    assert tokens.lengths(np.array([5, 6, 7, 8])).tolist() == [2, 1, 2, 1]
    # Whatever separates records, no token id is it.
    for mark in (0, 1, 2**31 - 2):
        assert SuffixIndex([[5, 6], [7]]).lengths([5, 6, mark, 7]).tolist() == [2, 1, 0, 1]


def test_empty_things():
    assert SuffixIndex([]).longest("abc") is None
    assert SuffixIndex([]).lengths([1, 2]).tolist() == [0, 0]
    assert not SuffixIndex([]).contains("")
    index = SuffixIndex(["", "ab"])
    assert index.occurrences("").tolist() == [0, 1]
    assert index.longest("") is None
    assert index.longest("xyz") is None
    assert len(index) == 2


@given(st.text(SYMBOLS, max_size=30), st.text(SYMBOLS, max_size=30))
@settings(max_examples=50, deadline=None)
def test_longest_common_substring_is_that_of_the_table(a, b):
    found = longest_common_substring(a, b)
    assert found.length == by_table(a, b)[0]
    assert a[found.first : found.first + found.length] == b[found.second : found.second + found.length]


@given(st.lists(st.integers(0, 2), max_size=25), st.lists(st.integers(0, 2), max_size=25))
@settings(max_examples=50, deadline=None)
def test_longest_common_run_of_tokens_is_that_of_the_table(a, b):
    found = longest_common_substring(a, np.array(b, dtype=np.int64))
    assert found.length == by_table(a, b)[0]
    assert a[found.first : found.first + found.length] == b[found.second : found.second + found.length]


def test_where_difflib_with_its_junk_is_wrong_this_is_not():
    # A passage of 587 characters in two letters of 1,000: each letter of it is frequent, so by default
    # difflib takes it for junk, and starts no match there.
    rng = random.Random(0)
    passage, left, right = (
        "".join(rng.choices(string.ascii_lowercase[:n], k=k)) for n, k in ((8, 587), (26, 400), (26, 400))
    )
    a, b = left + passage, passage + right
    found = longest_common_substring(a, b)
    junk = difflib.SequenceMatcher(None, a, b).find_longest_match()
    plain = difflib.SequenceMatcher(None, a, b, autojunk=False).find_longest_match()
    assert junk.size < 587 == by_table(a, b)[0] == plain.size == found.length
    assert (found.first, found.second) == (400, 0)


def test_equal_and_periodic_texts_take_no_longer_than_others():
    # Kasai's count is linear; comparing neighbours anew would take 10¹⁰ steps here.
    text = "ab" * 100_000
    assert longest_common_substring(text, text[1:]).length == len(text) - 1


def test_large_vocabularies_and_positions_of_eight_bytes(monkeypatch):
    rng = np.random.default_rng(0)
    records = [rng.integers(0, 150_000, 50) for _ in range(20)]
    query = np.concatenate([records[3][10:30], rng.integers(0, 150_000, 5), records[7][:9]])
    short = SuffixIndex(records)
    plain = matching._sorted
    monkeypatch.setattr(matching, "_sorted", lambda codes: plain(codes).astype(np.int64))
    long = SuffixIndex(records)
    expected = by_looking([r.tolist() for r in records], query.tolist())
    for index in (short, long):
        assert index.lengths(query).tolist() == expected
        found = index.longest(query)
        assert (found.length, found.record, found.start, found.at) == (20, 3, 10, 0)
        assert index.occurrences(records[7][2:5]).tolist() == [7]
    assert longest_common_substring(query, records[7]).length == 9


@pytest.mark.parametrize(
    ("symbols", "match"),
    [
        (np.zeros((2, 2), dtype=int), r"int64 of shape \(2, 2\)"),
        (np.array([0.5]), r"float64 of shape \(1,\)"),
        (np.array([-1]), "token ids from 0"),
        (np.array([2**31 - 1]), "token ids from 0"),
    ],
)
def test_what_is_no_sequence_of_tokens_is_refused(symbols, match):
    with pytest.raises(DataError, match=match):
        SuffixIndex([symbols])


def test_texts_and_tokens_are_not_mixed():
    with pytest.raises(DataError, match=r"Text cannot be matched with token ids\. Give both as texts"):
        SuffixIndex(["ab"]).lengths([1])
    with pytest.raises(DataError, match="Token ids cannot be matched with text"):
        longest_common_substring([1], "a")
    with pytest.raises(DataError, match="Text cannot be matched with token ids"):
        SuffixIndex(["ab", [1]])
