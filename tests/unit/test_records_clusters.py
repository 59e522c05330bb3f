"""Near-duplicates are found exactly: every pair that a direct comparison finds, and no other."""

import random
import time

import numpy as np
import pytest

from sordino.records.clusters import MANY, SHORT, index_texts, jaccard

WORDS = [f"w{n}" for n in range(4000)]


def neighbours(texts, threshold=0.8):
    index = index_texts(texts, threshold)
    own = np.arange(len(texts))
    return [index.adjacent(number, own).tolist() for number in range(len(texts))]


def by_comparison(texts, threshold=0.8):
    return [[j for j in range(i) if jaccard(texts[i], texts[j]) >= threshold] for i in range(len(texts))]


def variants(rng, base, changes, count):
    """Copies of `base` in each of which 0 to `changes` words are others, taken away or added."""
    texts = []
    for _ in range(count):
        words = list(base)
        for _ in range(rng.randint(0, changes)):
            at = rng.randrange(len(words))
            words[at : at + 1] = rng.choice(([rng.choice(WORDS)], [], [words[at], rng.choice(WORDS)]))
        texts.append(" ".join(words))
    return texts


@pytest.mark.parametrize(("first", "second", "similarity"), [
    ("The cat sat on the mat!", "the  CAT sat, on the mat", 1.0),
    (" ".join("abcdefghijklmnopqrst"), " ".join("abcdefghijklmnopqrsx"), 17 / 19),
    (" ".join("abcdefghijklmnopqrst"), " ".join("0123456789éüöäñçøåßþ"), 0.0),
    ("héllo wörld", "héllo wörlds", 7 / 8),
    ("日本語のテキスト", "日本語のテキストだ", 6 / 7),
    ("私は病院へ行きました。薬をもらいました。", "私は病院へ行きました。薬をもらいました！", 1.0),
    ("ok", "OK", 1.0),
    ("!!!", "!!!", 1.0),
    ("ok", "no", 0.0),
    ("", "", 0.0),
])  # fmt: skip
def test_similarity_by_hand(first, second, similarity):
    assert jaccard(first, second) == jaccard(second, first) == pytest.approx(similarity)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("length", [4, SHORT - 1, SHORT + 1, 40])
def test_all_pairs_are_found(threshold, length):
    rng = random.Random(length)
    texts = [text for _ in range(8) for text in variants(rng, rng.choices(WORDS, k=length), 4, 12)]
    texts += ["", " ", "!", "a", "a b", "a b c"] * 2
    rng.shuffle(texts)
    expected = by_comparison(texts, threshold)
    assert neighbours(texts, threshold) == expected
    assert sum(map(len, expected)) > 10


def test_pairs_at_the_threshold_count():
    texts = [" ".join(WORDS[:18]), " ".join([*WORDS[:17], "other"])]  # 15 of 17 shingles in common
    assert neighbours(texts, 15 / 17) == [[], [0]]
    assert neighbours(texts, 15 / 17 + 1e-6) == [[], []]


def test_labels_stand_for_their_texts_and_negative_ones_for_none():
    base = " ".join(WORDS[:40])
    texts = [base, base + " one", "else " * 20, base + " two"]
    index = index_texts(texts, 0.8)
    assert index.adjacent(3, np.array([5, 5, 1, -1])).tolist() == [5]
    assert index.adjacent(3, np.array([5, 2, 1, -1])).tolist() == [2, 5]
    assert index.adjacent(3, np.array([-1, 2, 1, -1])).tolist() == [2]
    assert index.adjacent(3, np.array([-1, -1, 1, -1])).tolist() == []


def test_many_candidates_give_the_labels_of_all_similar_ones():
    rng = random.Random(0)
    base = rng.choices(WORDS, k=40)
    texts = [*variants(rng, base, 6, 2 * MANY), " ".join(base)]
    labels = np.array([rng.randrange(-1, 60) for _ in texts])
    similar = {int(labels[j]) for j, text in enumerate(texts[:-1]) if jaccard(text, texts[-1]) >= 0.8}
    found = index_texts(texts, 0.8).adjacent(len(texts) - 1, labels).tolist()
    assert found == sorted(similar - {-1})
    assert 10 < len(found) < 60


def test_nothing_to_compare():
    assert neighbours([]) == []
    assert neighbours(["", " "]) == [[], []]
    assert neighbours(["only one"]) == [[]]


def test_five_thousand_records_take_seconds():
    rng = random.Random(0)
    base = rng.choices(WORDS, k=60)
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(4000)] + variants(rng, base, 3, 1000)
    started = time.process_time()
    index = index_texts(texts, 0.8)
    labels = np.full(len(texts), -1)
    for number in range(len(texts)):
        found = index.adjacent(number, labels)
        labels[number] = found[0] if len(found) else number
    assert time.process_time() - started < 5
    assert len(np.unique(labels)) < 4200
