"""Near-duplicates: every pair that a direct comparison finds, and no other; signatures that do as they say."""

import random
import subprocess
import sys
import time

import numpy as np
import pytest

from sordino import minhash
from sordino.records import clusters as clusters_module
from sordino.records.clusters import (
    MISS,
    PATIENCE,
    SHORT,
    _char_tokens,
    _Keys,
    _sets,
    _word_tokens,
    _words,
    bands,
    index_texts,
    jaccard,
)  # fmt: skip

WORDS = [f"w{n}" for n in range(4000)]
HASHES = ["0x32fc4ede55019e5b", "0xb712704428edf115", "0xef35fc3e5bf791d0"]


def neighbours(texts, threshold=0.8):
    index = index_texts(texts, threshold)
    found = []
    for number in range(len(texts)):
        found.append(sorted(index.adjacent(number)))
        index.add(number)
    return found


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


def clusters(texts, threshold=0.8):
    """The group of each text where all near-duplicates are joined, as `split` does it."""
    parent = np.full(len(texts), -1, dtype=np.int64)
    index = index_texts(texts, threshold, parent)
    for number in range(len(texts)):
        near = index.adjacent(number)
        parent[[*near, number]] = min(near, default=number)
        index.add(number)
    return [minhash.find_root(parent, number) for number in range(len(texts))]


def joined(texts, pairs):
    """The smallest text that each is connected with."""
    root = list(range(len(texts)))
    for i, others in enumerate(pairs):
        old = {root[j] for j in others} | {i}
        root = [min(old) if r in old else r for r in root]
    return root


def test_groups_are_those_of_their_roots_and_texts_not_added_have_none():
    base = " ".join(WORDS[:40])
    parent = np.array([0, 1, 2, -1, -1])
    index = index_texts([base, base + " one", "else " * 20, base + " two", base + " three"], 0.8, parent)
    for number in (0, 1, 2):
        index.add(number)
    assert index.adjacent(3) == index.adjacent(4) == {0, 1}
    parent[1] = 0
    assert index.adjacent(4) == {0}
    parent[0] = 2
    assert index.adjacent(3) == {2}


@pytest.mark.parametrize("patience", [-(10**6), 5, PATIENCE])  # through all groups: always, soon, never
@pytest.mark.parametrize("seed", range(3))
def test_clusters_are_those_of_a_direct_comparison(seed, patience, monkeypatch):
    monkeypatch.setattr(clusters_module, "PATIENCE", patience)
    rng = random.Random(seed)
    bases = [rng.choices(WORDS, k=rng.choice((8, 30, 60))) for _ in range(5)]
    texts = [text for base in bases for text in variants(rng, base, 6, 24)]
    rng.shuffle(texts)
    found = clusters(texts)
    assert found == joined(texts, by_comparison(texts))
    assert 10 < len(set(found)) < 110


def test_a_template_longer_than_patience_is_searched_to_its_end():
    rng = random.Random(0)
    template = rng.choices(WORDS, k=40)
    # Alike enough to share buckets, too different to be near: only the last one has a twin.
    texts = [" ".join([*template, *rng.choices(WORDS, k=14)]) for _ in range(PATIENCE)]
    texts.append(texts[PATIENCE // 2] + " more")
    assert 0.4 < jaccard(texts[0], texts[1]) < 0.7
    found = clusters(texts)
    assert found[-1] == PATIENCE // 2
    assert len(set(found)) == PATIENCE


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.4, 0.5, 0.8, 0.95, 1.0])
@pytest.mark.parametrize("permutations", [16, 128, 256])
def test_bands_keep_the_chance_of_a_miss(threshold, permutations):
    count, rows = bands(threshold, permutations)
    assert (1 - threshold**rows) ** count < MISS
    # One row more a band would miss too many.
    assert rows == permutations or (1 - threshold ** (rows + 1)) ** (permutations // (rows + 1)) >= MISS
    assert count * rows <= permutations or rows == 1
    assert bands(0.8) == (32, 4)


def test_bands_agree_as_often_as_the_formula_says():
    """Over 1,500 pairs of similarity 0.5: the share of agreeing bands is 0.5², as good as independent."""
    count, rows = bands(0.5)
    rng, agreeing = np.random.default_rng(0), []
    keys = _Keys(count, rows)
    for _ in range(1500):
        numbers = rng.integers(0, 2**64, 40, dtype=np.uint64)
        sets = [np.sort(numbers[:30]), np.sort(numbers[10:])]  # 20 of 40 in common
        found = np.empty((2, count), dtype=np.uint32)
        minhash.band_keys(np.concatenate(sets), np.array([0, 30, 60]), keys.seeds, rows, found)
        agreeing.append(int((found[0] == found[1]).sum()))
    assert np.mean(agreeing) == pytest.approx(count * 0.5**rows, rel=0.02)
    assert np.var(agreeing) == pytest.approx(count * 0.5**rows * (1 - 0.5**rows), rel=0.25)


def test_signatures_agree_with_an_independent_implementation():
    """The similarity that our minima estimate and that datasketch estimates are those of the sets."""
    datasketch = pytest.importorskip("datasketch")
    rng = random.Random(1)
    keys = _Keys(512, 1)
    for first, second in zip(*[iter(variants(rng, rng.choices(WORDS, k=80), 20, 20))] * 2, strict=True):
        exact = jaccard(first, second)
        theirs = []
        for text in (first, second):
            words = text.split()
            sketch = datasketch.MinHash(num_perm=512, seed=7)
            sketch.update_batch([" ".join(words[at : at + 3]).encode() for at in range(len(words) - 2)])
            theirs.append(sketch)
        ours = np.empty((2, 512), dtype=np.uint32)
        minhash.band_keys(*_sets(_word_tokens([_words(first), _words(second)]), 3), keys.seeds, 1, ours)
        assert np.mean(ours[0] == ours[1]) == pytest.approx(exact, abs=0.1)
        assert theirs[0].jaccard(theirs[1]) == pytest.approx(exact, abs=0.1)


def test_hashes_are_the_same_in_every_process():
    """Published values: coins of old runs must not change under a new version or on another machine."""
    values, _ = _sets(_char_tokens(["Sordino"]), 5)
    assert [hex(value) for value in values.tolist()] == HASHES
    code = "from sordino.records.clusters import _seeds; print(_seeds(2)[1])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    # The second number of SplitMix64 with seed 0, as its authors' code gives it.
    assert int(done.stdout) == 0x6E789E6AA1B965F4


def test_nothing_to_compare():
    assert neighbours([]) == []
    assert neighbours(["", " "]) == [[], []]
    assert neighbours(["only one"]) == [[]]


def test_five_thousand_records_take_seconds():
    rng = random.Random(0)
    base = rng.choices(WORDS, k=60)
    texts = [" ".join(rng.choices(WORDS, k=60)) for _ in range(4000)] + variants(rng, base, 3, 1000)
    started = time.process_time()
    found = clusters(texts)
    assert time.process_time() - started < 5
    assert len(set(found)) < 4200


def test_ten_thousand_copies_of_one_text_take_seconds():
    rng = random.Random(0)
    texts = variants(rng, rng.choices(WORDS, k=60), 2, 10_000)
    clusters(texts[:10])  # whatever must be compiled is
    started = time.process_time()
    found = clusters(texts)
    assert time.process_time() - started < 10
    assert len(set(found)) < 10
