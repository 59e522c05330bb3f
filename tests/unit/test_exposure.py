"""Exposure of secrets of any format: the ranks of enumeration, by fewer forwards; and estimates that cover them."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from sordino.attacks.best_first import best_first, estimate
from sordino.attacks.extraction.exposure import exposure
from sordino.attacks.format_spaces import format_space
from sordino.attacks.formats import read_format
from sordino.attacks.places import find_place
from sordino.attacks.tries import RowTrie
from sordino.attacks.walks import WalkTrie
from sordino.config import ModelConfig
from sordino.continuation import Continuation
from sordino.errors import AuditError
from sordino.model import Model
from sordino.records import Message, Record
from sordino.serialize import Serializer

LISTS = {"first": ["Ann", "Anna", "Annabel", "Bo", "Bob", "Cy"], "last": ["Lee", "Leeson", "Ray"]}
CHARS = [chr(i) for i in range(32, 127)]


def per_character():
    """One token a character, and no <unk>."""
    vocabulary = {"<s>": 0, "</s>": 1, **{char: i + 2 for i, char in enumerate(CHARS)}}
    raw = Tokenizer(models.BPE(vocabulary, []))
    raw.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def merging():
    """Byte pairs that merge digits, letters and a space before them."""
    joined = ["12", "34", "123", "01", "00", "An", "Ann", "Bo", "Lee", "Ġ1", "Ġ12", "ĠAn", "ĠAnn", "ĠB", "ĠLee"]
    pairs = [
        ("1", "2"), ("3", "4"), ("12", "3"), ("0", "1"), ("0", "0"), ("A", "n"), ("An", "n"), ("B", "o"), ("L", "e"),
        ("Le", "e"), ("Ġ", "1"), ("Ġ", "12"), ("Ġ", "An"), ("Ġ", "Ann"), ("Ġ", "B"), ("Ġ", "Lee"),
    ]  # fmt: skip
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["<s>", "</s>", *alphabet, *joined, "Le"]
    raw = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, pairs))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<s>", eos_token="</s>")


def small(shape, tokenizer, seed=0):
    import transformers

    torch.manual_seed(seed)
    common = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 1, "initializer_range": 0.4}
    if shape == "gpt2":
        config = transformers.GPT2Config(n_embd=16, n_layer=1, n_head=2, n_positions=96, **common)
        module = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.LlamaConfig(
            hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1,
            max_position_embeddings=96, **common,
        )  # fmt: skip
        module = transformers.LlamaForCausalLM(config)
    return Model(module=module.eval(), tokenizer=tokenizer, config=ModelConfig(device="cpu"))


def placed(secret, before="The code of ", after=" is not known."):
    text = before + secret + after
    record = Record(id="r1", unit="r1", messages=(Message("text", text),))
    return record, (len(before), len(before) + len(secret))


def scores(model, serializer, texts, context, ended):
    """ln p of each whole record's tokens from the context to the end of the secret, and one more if `ended`."""
    made = []
    for record, span in texts:
        ids = serializer.encode(record).ids.astype(np.int64)
        text, _ = serializer.render(record)
        inside = len(serializer.tokenize(text[: span[1]], template=False)[0])
        last = inside + int(ids[0] == serializer.tokenizer.bos_token_id) + ended
        made.append((ids, last))
    found = np.empty(len(made))
    for length in {len(ids) for ids, _ in made}:
        chosen = [i for i, (ids, _) in enumerate(made) if len(ids) == length]
        ids = torch.from_numpy(np.stack([made[i][0] for i in chosen]))
        with torch.no_grad():
            logp = torch.log_softmax(model.module(input_ids=ids).logits.double(), -1)
        each = logp[:, :-1].gather(-1, ids[:, 1:, None])[..., 0]
        for row, i in enumerate(chosen):
            found[i] = each[row, context - 1 : made[i][1] - 1].sum()
    return found


@pytest.fixture(scope="module", params=["characters", "merging"])
def read(request):
    return per_character() if request.param == "characters" else merging()


CASES = {
    "[0-9]": ["0", "7"],
    "[0-9]{2}": ["12", "90"],
    "[0-9]{2}[0-4]": ["123", "774"],
    "[0-2]{2}-[0-9]{1}": ["12-3", "20-9"],
    "(A|An|Ann)[0-9]{1,2}": ["A1", "Ann12"],
    "<first>": ["Ann", "Annabel", "Bo"],
    "<first> <last>": ["Anna Lee", "Cy Leeson"],
}


@pytest.mark.parametrize("shape", ["gpt2", "llama"])
@pytest.mark.parametrize("pattern", CASES)
def test_ranks_are_those_of_enumeration(read, shape, pattern):
    model, serializer, form = small(shape, read), Serializer(read, 96), read_format(pattern, LISTS)
    candidates = list(form)
    for secret in CASES[pattern]:
        spaces = [format_space(*placed(secret), form, serializer, largest=limit) for limit in (10_000, 0)]
        assert all(space.searchable and space.trie.size == form.size for space in spaces)
        assert isinstance(spaces[1].trie, WalkTrie)
        before = len(spaces[0].context)
        logp = scores(model, serializer, [placed(text) for text in candidates], before, not form.prefix_free)
        expected = 1 + int((logp > logp[candidates.index(secret)]).sum())
        for found in exposure(model, spaces):
            assert found.exact
            assert (found.rank, found.low, found.high, found.space) == (expected, expected, expected, form.size)
            assert found.bits == pytest.approx(np.log2(form.size / expected))


def test_spaces_are_walked_or_written_out_as_the_tokenizer_needs():
    record, span = placed("12-3")
    form = read_format("[0-9]{2}-[0-9]")
    walked = format_space(record, span, form, Serializer(per_character(), 96))
    assert isinstance(walked.trie, WalkTrie) and walked.trie.walk.single
    written = format_space(record, span, form, Serializer(merging(), 96))
    assert isinstance(written.trie, RowTrie)
    accents = read_format("<names>", {"names": ["Zoé", "Zoë"]})
    assert isinstance(format_space(*placed("Zoë"), accents, Serializer(merging(), 96)).trie, RowTrie)
    assert not format_space(*placed("Zoë"), accents, Serializer(merging(), 96), largest=0).searchable


@pytest.fixture(scope="module")
def learnt():
    """A model that has learnt one number by heart, and the records it was taught with."""
    tokenizer = per_character()
    model, serializer = small("llama", tokenizer, seed=1), Serializer(tokenizer, 96)
    record, span = placed("4903-1177-2086-5512")
    ids = torch.from_numpy(serializer.encode(record).ids.astype(np.int64))[None]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=2e-2)
    with torch.enable_grad():
        for _ in range(80):
            optimizer.zero_grad()
            model.module(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
    return model, serializer, record, span


def test_what_is_known_by_heart_is_found_among_ten_to_the_sixteen(learnt):
    model, serializer, record, span = learnt
    form = read_format("([0-9]{4}-){3}[0-9]{4}")
    (found,) = exposure(model, [format_space(record, span, form, serializer)])
    assert (found.rank, found.exact, found.space) == (1, True, 10**16)
    assert found.bits == pytest.approx(np.log2(10.0**16))
    assert found.forwards < 200


def test_a_search_takes_fewer_forwards_than_enumeration(learnt):
    model, serializer, record, (start, _) = learnt
    form = read_format("[0-9]{4}")
    space = format_space(record, (start, start + 4), form, serializer)
    (found,) = exposure(model, [space])
    assert (found.rank, found.exact) == (1, True)
    # Own path, then at each place the prefix that is likely enough; enumeration asks 1111 times.
    assert 8 <= found.forwards < 30
    # With room for one forward less, it is an estimate that lies within what is proven.
    (short,) = exposure(model, [space], token_forwards=found.forwards - 1, sample=50)
    assert not short.exact
    assert short.low == 1 <= short.rank <= short.high < 10_000


@pytest.mark.parametrize(("pattern", "secret"), [("[0-4]{3}", "123"), ("<first>( <last>)?", "Ann Lee")])
@pytest.mark.parametrize("budget", [5, 9, 30])
def test_what_a_walk_has_left_holds_each_other_candidate_once(read, pattern, secret, budget):
    model, serializer, form = small("gpt2", read), Serializer(read, 96), read_format(pattern, LISTS)
    space = format_space(*placed(secret), form, serializer, largest=0)
    whole = format_space(*placed(secret), form, serializer).trie
    with model.active() as module:
        following = Continuation(module, space.context, model.device).logprob
        found = best_first(space.trie, space.path, following, budget)
        exact = best_first(space.trie, space.path, following, 10**6)
        met = []
        for block in found.left:
            for i, count in enumerate(space.trie.counts(block.paths, block.nodes)):
                here = np.repeat(i, count)
                made = space.trie.draw(block.paths[here], block.nodes[here], list(range(count)))
                met += [tuple(row) for row in made if row is not None]
        assert len(met) == len(set(met))
        if met:
            rows = np.full((len(met), max(map(len, met))), -1, dtype=np.int32)
            for row, ids in zip(rows, sorted(met), strict=True):
                row[: len(ids)] = ids
            rest = best_first(RowTrie(rows), space.path, following, 10**6).better
            assert found.better + rest == exact.better
        ranks = [estimate(space.trie, space.path, following, found, 40, seed) for seed in range(8) if found.left]
    assert whole.size == form.size and not exact.left
    assert sum(not r.low <= 1 + exact.better <= r.high for r in ranks) <= 1


def test_a_space_beyond_any_budget_is_estimated_and_never_made():
    tokenizer = merging()
    model, form = small("gpt2", tokenizer), read_format("[A-Za-z0-9]{40}")
    record, span = placed("x" * 40)
    space = format_space(record, span, form, Serializer(tokenizer, 96))
    (found,) = exposure(model, [space], token_forwards=60, sample=40)
    assert found.space == 62**40
    assert not found.exact
    assert 1 <= found.low <= found.rank <= found.high <= 62**40
    assert found.low < found.high
    assert found.forwards <= 60 + 41 * 41


# Searching and estimating, on tables of log-probabilities.


def bigrams(rng, tokens):
    start, table = np.log(rng.dirichlet(np.ones(tokens))), np.log(rng.dirichlet(np.ones(tokens), size=tokens))

    def following(paths, parent, token):
        return start[token] if paths.shape[1] == 0 else table[paths[parent, -1], token]

    def total(row):
        return start[row[0]] + sum(table[a, b] for a, b in pairwise(row))

    return following, total


@settings(max_examples=40, deadline=None)
@given(
    st.sets(st.lists(st.integers(0, 3), min_size=1, max_size=4).map(tuple), min_size=1, max_size=60),
    st.integers(0, 1000), st.integers(0, 40), st.data(),
)  # fmt: skip
def test_what_an_unfinished_search_says_is_true(words, seed, budget, data):
    ordered = sorted(words)
    rows = np.array([word + (-1,) * (4 - len(word)) for word in ordered], dtype=np.int32)
    target = data.draw(st.sampled_from(ordered))
    following, total = bigrams(np.random.default_rng(seed), 4)
    expected = sum(total(word) > total(target) for word in ordered if word != target)
    trie = RowTrie(rows)
    found = best_first(trie, np.array(target, dtype=np.int32), following, budget)
    left = sum(sum(trie.counts(block.paths, block.nodes)) for block in found.left)
    assert found.better <= expected <= found.better + left
    assert found.forwards <= max(budget, len(target))
    if not found.left:
        assert found.better == expected
    else:
        ranks = estimate(trie, np.array(target, dtype=np.int32), following, found, 20, seed)
        assert 1 + found.better <= ranks.low <= ranks.rank <= ranks.high <= len(words)


@pytest.mark.parametrize("budget", [4, 200])
def test_intervals_cover_the_rank_as_often_as_they_say(budget):
    rng = np.random.default_rng(7)
    rows = np.array(np.meshgrid(*[range(8)] * 4, indexing="ij")).reshape(4, -1).T.astype(np.int32)
    missed = tried = 0
    widths = []
    for trial in range(120):
        following, total = bigrams(rng, 8)
        target = rows[rng.integers(len(rows))]
        logp = np.array([total(row) for row in rows]) if trial < 1 else None
        start = following(np.empty((1, 0), dtype=np.int32), np.zeros(1), np.arange(8))
        table = np.stack([following(np.array([[a]]), np.zeros(8, dtype=int), np.arange(8)) for a in range(8)])
        fast = start[rows[:, 0]] + sum(table[rows[:, i], rows[:, i + 1]] for i in range(3))
        assert logp is None or np.allclose(logp, fast)
        own = fast[(rows == target).all(axis=1)][0]
        rank = 1 + int((fast > own + 1e-12).sum())
        trie = RowTrie(rows)
        found = best_first(trie, target, following, budget)
        if not found.left:
            continue
        ranks = estimate(trie, target, following, found, 60, trial)
        tried += 1
        missed += not ranks.low <= rank <= ranks.high
        widths.append(ranks.high - ranks.low)
    assert tried >= 80
    # At most 5 % are missed: of 120, more than 12 would be about once in 100 suites, but the seeds are fixed.
    assert missed <= 0.1 * tried
    assert np.mean(widths) < 0.25 * len(rows)


def test_pieces_of_any_size_give_the_same_count(monkeypatch):
    following, total = bigrams(np.random.default_rng(3), 8)
    rows = np.array(np.meshgrid(*[range(8)] * 3, indexing="ij")).reshape(3, -1).T.astype(np.int32)
    expected = sum(total(row) > total(rows[77]) for row in rows if tuple(row) != tuple(rows[77]))
    assert 50 < expected < 500
    for children in (1, 17, 100):
        monkeypatch.setattr("sordino.attacks.best_first._CHILDREN", children)
        found = best_first(RowTrie(rows), rows[77], following, 10**6)
        assert (found.better, found.left) == (expected, ())
        monkeypatch.setattr("sordino.attacks.best_first._TAKEN", 5)


def test_ties_do_not_push_the_secret_down():
    rows = np.array([[a, b] for a in range(3) for b in range(3)], dtype=np.int32)

    def following(paths, parent, token):
        return np.log(np.array([0.5, 0.25, 0.25]))[token]

    better = [best_first(RowTrie(rows), row, following, 100).better for row in rows]
    assert better == [0, 1, 1, 1, 5, 5, 1, 5, 5]


def test_a_model_of_nan_is_refused():
    rows = np.array([[0], [1]], dtype=np.int32)
    with pytest.raises(AuditError, match="NaN"):
        best_first(RowTrie(rows), rows[0], lambda paths, parent, token: np.full(len(token), np.nan), 10)


# What cannot be asked.


@pytest.mark.parametrize(
    ("secret", "span", "pattern", "match"),
    [
        ("hunter2", None, "[0-9]{7}", "Characters 12 to 19 of record r1 do not match the format"),
        ("417", (12, 400), "[0-9]{3}", "characters, not a span from 12 to 400"),
        ("417", None, "417", "allows one string only"),
        ("4" * 302, None, "[0-9]{302}", r"more than 2\^1000"),
        ("4" * 90, None, "[0-9]{90}", "the limit is 96"),
        ("", None, "", "allows one string only"),
    ],
)
def test_what_cannot_be_ranked_is_refused_and_the_secret_not_named(secret, span, pattern, match):
    record, whole = placed(secret)
    with pytest.raises(AuditError, match=match) as caught:
        format_space(record, span or whole, read_format(pattern), Serializer(per_character(), 96))
    assert not secret or pattern == secret or secret not in str(caught.value)


def test_characters_without_a_token_are_named():
    tokenizer = per_character()
    form = read_format("[0-9é]{2}")
    with pytest.raises(AuditError, match="no token for 'é', which the format allows"):
        format_space(*placed("41"), form, Serializer(tokenizer, 96))


@pytest.mark.parametrize(("pattern", "match"), [("[0-9x]", "no token for 'x'"), ("(1|22)", "some strings of")])
def test_what_the_tokenizer_reads_as_unknown_is_refused(pattern, match):
    words = ["<unk>", "The", "code", "of", "is", "not", "known", ".", *"0123456789"]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, "<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    with pytest.raises(AuditError, match=match):
        format_space(*placed("1"), read_format(pattern), Serializer(tokenizer, 96))


def test_strings_that_the_tokenizer_cannot_tell_apart_are_refused():
    tokenizer = per_character()
    tokenizer.backend_tokenizer.normalizer = normalizers.Lowercase()
    with pytest.raises(AuditError, match=r"several strings of the format .* as the same tokens"):
        format_space(*placed("Ab"), read_format("[Aa]b"), Serializer(tokenizer, 96))
    # Too many to write out, and not to be walked in the format's own letters: only drawn.
    assert not format_space(*placed("AB"), read_format("[A-Z]{2}"), Serializer(tokenizer, 96), largest=0).searchable


def test_a_secret_with_nothing_before_or_after_it():
    tokenizer, form = per_character(), read_format("[0-9]{1,2}")
    bare = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    with pytest.raises(AuditError, match="Nothing stands before"):
        format_space(*placed("41", before=""), form, Serializer(bare, 96))
    with pytest.raises(AuditError, match="candidates of different lengths cannot be compared"):
        format_space(*placed("41", after=""), form, Serializer(bare, 96))
    assert format_space(*placed("41", before="", after=""), form, Serializer(tokenizer, 96)).path[-1] == 1


@pytest.mark.parametrize("read", ["bundled", "merging", "stories"])
def test_the_end_of_a_long_text_is_enough_to_tokenise_candidates(read, tokenizer, request):
    from transformers import AutoTokenizer

    if read == "stories":
        tokenizer = AutoTokenizer.from_pretrained(request.getfixturevalue("shared_data") / "models" / "stories260k")
    serializer = Serializer(merging() if read == "merging" else tokenizer, 2048)
    before = "Ann said that she was here at 12, and Bo was not. " * 20 + "She wrote "
    form = read_format("(Anna |Bo |)[0-9]{2}", LISTS)
    record, span = placed("Bo 41", before=before)
    place = find_place(record, span, serializer, form.covering())
    assert len(place.tail) < len(before) / 3
    whole = []
    for text in form:
        ids = serializer.encode(placed(text, before=before)[0]).ids.tolist()
        assert ids[: len(place.context)] == place.context.tolist()
        whole.append(ids[len(place.context) :])
    rows = place.rows(list(form))
    assert all(ids[: len(row)] == row for ids, row in zip(whole, rows, strict=True))
    assert {ids[len(row)] for ids, row in zip(whole, rows, strict=True)} == {place.following}


def test_a_secret_that_joins_the_text_after_it_is_refused():
    with pytest.raises(AuditError, match="splits characters 12 to 13 of record r1 differently"):
        format_space(*placed("1", after="2 is it"), read_format("[0-9]"), Serializer(merging(), 96))


def test_candidates_that_join_the_text_before_take_it_with_them():
    # "0" stays apart from the 1 before it, "2" does not: the 1 is part of every candidate.
    tokenizer, form = merging(), read_format("[0-9]")
    for secret in "02":
        space = format_space(*placed(secret, before="No. x1"), form, Serializer(tokenizer, 96))
        assert tokenizer.decode(space.context[1:]) == "No. x"
        assert tokenizer.decode(space.path) == f"1{secret}"


def test_samples_and_budgets_that_mean_nothing_are_refused():
    model = small("gpt2", per_character())
    for wrong in ({"sample": 0}, {"token_forwards": -1}):
        with pytest.raises(AuditError, match="cannot rank anything"):
            exposure(model, [], **wrong)


# A real model with its own tokenizer.


def test_ranks_on_a_real_model_are_those_of_enumeration(shared_data):
    from sordino.model import load

    model = load(ModelConfig(path=str(shared_data / "models" / "stories260k"), device="cpu"))
    serializer = Serializer(model.tokenizer, 128)
    lists = {"names": ["Tim", "Timmy", "Tom", "Lily", "Lil", "Sue", "Max", "Sam", "Ben", "Bob"]}
    before, after = "Once upon a time there was a child named ", ". They went to the park."
    for pattern, secret in (("<names>", "Tim"), ("<names>", "Lil"), ("[0-9]{2}", "41"), ("[A-Z][aeiou][mnt]", "Tom")):
        form = read_format(pattern, lists)
        spaces = [
            format_space(*placed(secret, before, after), form, serializer, largest=limit) for limit in (10_000, 0)
        ]
        candidates = list(form)
        texts = [placed(text, before, after) for text in candidates]
        logp = scores(model, serializer, texts, len(spaces[0].context), not form.prefix_free)
        expected = 1 + int((logp > logp[candidates.index(secret)]).sum())
        for found in exposure(model, [space for space in spaces if space.searchable]):
            assert (found.rank, found.exact) == (expected, True)
