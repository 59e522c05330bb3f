"""Formats of secrets: counted, numbered and recognised as `re` and plain enumeration do it."""

import re
from itertools import product
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.attacks.formats import read_format, read_words
from sordino.errors import ConfigError

NAMES = ["Ann", "Anna", "Bo", "Ann", " Bo "]


def atoms():
    return st.sampled_from(["a", "b", "c", "[ab]", "[a-c]", "[bc]", "\\-", "[-a]", "(?:ab)"])


def patterns():
    """Patterns over a, b, c and - whose strings have at most a few characters."""

    def more(inner):
        return st.one_of(
            st.tuples(inner, inner).map("".join),
            st.tuples(inner, inner).map(lambda both: f"({both[0]}|{both[1]})"),
            inner.map(lambda one: f"({one})?"),
            st.tuples(inner, st.sampled_from(["{2}", "{0,2}", "{1,2}", "{,1}", "{0}"])).map(
                lambda both: f"({both[0]}){both[1]}"
            ),
        )

    return st.recursive(atoms(), more, max_leaves=4)


@settings(max_examples=40, deadline=None)
@given(patterns())
def test_a_format_holds_what_re_matches(pattern):
    made = read_format(pattern)
    expression = re.compile(pattern, re.ASCII)
    texts = ["".join(chars) for count in range(5) for chars in product("-abc", repeat=count)]
    expected = [text for text in sorted(texts) if expression.fullmatch(text)]
    short = [text for text in made if len(text) < 5] if made.size < 5_000 else None
    assert short is None or short == expected
    assert [text in made for text in texts] == [bool(expression.fullmatch(text)) for text in texts]
    assert made.size >= len(expected)
    numbers = range(made.size) if made.size < 300 else [0, 1, made.size // 3, made.size - 1]
    drawn = [made.nth(i) for i in numbers]
    assert all(expression.fullmatch(text) for text in drawn)
    assert drawn == sorted(set(drawn))
    if made.size < 300:
        every = list(made)
        assert drawn == every
        assert made.prefix_free == (not any(b.startswith(a) for a in every for b in every if a != b))
        assert made.alphabet == set("".join(every))
        covering = made.covering()
        assert set(covering) <= set(every)
        assert {*"".join(covering)} == made.alphabet
        assert {text[:1] for text in covering} >= {text[0] for text in every if text}


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("[0-9]{3}-[0-9]{2}-[0-9]{4}", 10**9), ("[A-Z]{2}[0-9]{6}", 26**2 * 10**6), (r"\d{1,3}", 1110),
        ("<first> <last>", 9), ("(Anna|<first>)", 3), ("[A-Za-z0-9]{16}", 62**16), ("(a|b|ab){1,2}", 11),
        (r"\[\{\<\\\n", 1), ("[]", None), ("[\\]]", 1), ("[0-9]{300}", 10**300), ("", 1),
    ],
)  # fmt: skip
def test_sizes(pattern, size):
    if size is None:
        with pytest.raises(ConfigError, match="no character is in these brackets"):
            read_format(pattern)
        return
    made = read_format(pattern, {"first": NAMES, "last": NAMES})
    assert made.size == size
    assert made.nth(size - 1) in made
    with pytest.raises(IndexError):
        made.nth(size)


def test_draws_are_uniform_and_repeatable():
    made = read_format("(a|b|ab){1,2}")
    drawn = made.draw(11_000, seed=5)
    assert drawn == made.draw(11_000, seed=5)
    # Each is binomial with mean 1000 and standard deviation 30.
    assert all(abs(drawn.count(text) - 1000) < 150 for text in made)
    assert len(set(read_format("[A-Za-z0-9]{16}").draw(1000, seed=0))) == 1000


@pytest.mark.parametrize(
    ("pattern", "match"),
    [
        ("[0-9]*", r"position 5: '\*' has no upper limit\. Say how often at most"),
        ("a+", r"position 1: '\+' has no upper limit"),
        ("a{2,}", "position 1: this repetition has no upper limit"),
        ("a{3,2}", "3 to 2 times is never"),
        ("a{x}", r"a repetition is \{3\}"),
        ("a{2}{2}", "repeated again"),
        ("a{9999999999}", "number is too large"),
        ("?a", r"position 0: nothing stands before '\?'"),
        ("ab.c", "position 2: '.' would be any character"),
        ("(ab", "position 0: this bracket is never closed"),
        ("ab)", "position 2: nothing is open"),
        ("(?=a)b", "groups are"),
        ("a[bc", "position 1: this bracket is never closed"),
        ("[^a]", "all characters but some"),
        ("[z-a]", "position 2: a range goes"),
        ("[\\d-z]", "a range goes"),
        ("[ -\U0001f600]", "too wide"),
        ("a\\w", r"position 1: '\\w' is not known"),
        ("a\\", "is not known"),
        ("^a$", "means nothing here"),
        ("<frist>", r"position 0: there is no word list 'frist'\. Did you mean 'first'\?"),
        ("<first", "never closed"),
        ("(" * 60, "brackets are open"),
        ("((a{100}){100}){100}", "1,000,000 characters; at most 1,000"),
        ("[01]{0,15}1[01]{25}(<first>{20}){40}", "at most 1,000|more than 300,000 states"),
        ("\ud800", "surrogate"),
    ],
)
def test_what_cannot_be_read_is_refused_with_its_position(pattern, match):
    with pytest.raises(ConfigError, match=match):
        read_format(pattern, {"first": NAMES})


@pytest.mark.parametrize("source", [[], [" ", ""], Path("nowhere.txt"), "Anna"])
def test_word_lists_that_hold_nothing_are_refused(source):
    with pytest.raises(ConfigError, match="word list 'names'"):
        read_format("<names>", {"names": source})


def test_word_lists_from_files(tmp_path):
    path = tmp_path / "names.txt"
    path.write_bytes("\ufeffZoë\r\n\r\n  Ann Lee \nZoë\n".encode())
    assert read_words("names", path) == ("Ann Lee", "Zoë")
    assert list(read_format("<n>", {"n": path})) == ["Ann Lee", "Zoë"]
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="cannot be read"):
        read_words("names", path)


@pytest.mark.slow
def test_a_format_that_takes_too_many_states_is_refused():
    with pytest.raises(ConfigError, match="more than 300,000 states"):
        read_format("[01]{0,30}1[01]{25}")
