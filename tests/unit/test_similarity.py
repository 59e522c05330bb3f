"""ROUGE-L and edit similarity against the tables that define them, and figures worked out by hand."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sordino.errors import DataError
from sordino.similarity import edit_similarity, rouge_l, rouge_words

TEXTS = st.lists(st.sampled_from(["the", "cat", "sat", "mat", "The", "-", "é", "猫"]), max_size=12).map(" ".join)


def subsequence(a, b):
    """The length of the longest common subsequence, by its table."""
    row = [0] * (len(b) + 1)
    for x in a:
        before, row = row, [0]
        for j, y in enumerate(b):
            row.append(before[j] + 1 if x == y else max(row[j], before[j + 1]))
    return row[-1]


def distance(a, b):
    """The Levenshtein distance, by its table."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a):
        before, row = row, [i + 1]
        for j, y in enumerate(b):
            row.append(min(before[j] + (x != y), before[j + 1] + 1, row[j] + 1))
    return row[-1]


@given(st.lists(st.tuples(TEXTS, TEXTS), max_size=5))
@settings(max_examples=50, deadline=None)
def test_rouge_is_that_of_the_table(pairs):
    candidates, references = [a for a, _ in pairs], [b for _, b in pairs]
    found = rouge_l(candidates, references)
    for i, (a, b) in enumerate(pairs):
        ours, theirs = rouge_words(a), rouge_words(b)
        shared = subsequence(ours, theirs)
        precision, recall = shared / max(1, len(ours)), shared / max(1, len(theirs))
        mean = 2 * precision * recall / (precision + recall) if shared else 0.0
        assert found.precision[i] == pytest.approx(precision)
        assert found.recall[i] == pytest.approx(recall)
        assert found.f1[i] == pytest.approx(mean)


@given(st.lists(st.tuples(st.text("ab é", max_size=12), st.text("ab é", max_size=12)), max_size=5))
@settings(max_examples=50, deadline=None)
def test_edit_similarity_is_that_of_the_table(pairs):
    found = edit_similarity([a for a, _ in pairs], [b for _, b in pairs])
    expected = [1 - distance(a, b) / max(1, len(a), len(b)) for a, b in pairs]
    assert found.tolist() == pytest.approx(expected)


def test_figures_worked_out_by_hand():
    # "police killed the gunman" against three candidates: the examples of Lin 2004 for the subsequence of words.
    found = rouge_l(
        ["police kill the gunman", "the gunman kill police", "the gunman police killed"],
        ["police killed the gunman"] * 3,
    )
    assert found.f1.tolist() == [0.75, 0.5, 0.5]
    found = rouge_l(["The cat, sat!"], ["the cat sat on the mat"])
    assert (found.precision[0], found.recall[0]) == (1.0, 0.5)
    assert found.f1[0] == pytest.approx(2 / 3)
    assert edit_similarity(["kitten", "", "abc"], ["sitting", "", ""]).tolist() == pytest.approx([1 - 3 / 7, 1.0, 0.0])


def test_words_are_letters_and_digits_of_any_script():
    assert rouge_words("Zürich's 2nd_best: naïve, 3.5!") == ["zürich", "s", "2nd", "best", "naïve", "3", "5"]
    assert rouge_words("猫が好き ok") == ["猫", "が", "好", "き", "ok"]
    assert rouge_words("") == rouge_words(" — _ ") == []
    assert rouge_l(["", "—"], ["a", ""]).f1.tolist() == [0.0, 0.0]


def test_pairs_must_be_pairs():
    for measure in (rouge_l, edit_similarity):
        with pytest.raises(DataError, match="1 texts to be compared with 2"):
            measure(["a"], ["a", "b"])
