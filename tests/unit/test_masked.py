"""Neighbours by a masked language model: what is replaced is replaced in kind, and all else stays as it was."""

import dataclasses

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertForMaskedLM, BertTokenizerFast

from sordino.audit.masked import load_masked, masked_identity, rewrite
from sordino.errors import ModelError
from sordino.results import InputPlan

VOCABULARY = (
    "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "amber", "basil", "cedar", "delta", "ember", "fjord", "grove",
    "##s", "##ing", "##ly", "##ed", ".", ",", "!",
)  # fmt: skip
TEXT = "The  ambers, basil deltaing the Fjord! cedarly grove. " * 3
PLAN = InputPlan(neighbours=6)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random masked language model with twenty tokens, as it would be given."""
    place = tmp_path_factory.mktemp("masked")
    (place / "words.txt").write_text("\n".join(VOCABULARY))
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(VOCABULARY), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=18,
    )  # fmt: skip
    BertForMaskedLM(config).save_pretrained(place)
    BertTokenizerFast(vocab=dict(zip(VOCABULARY, range(20), strict=True))).save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def masked(folder):
    return load_masked(str(folder), "cpu")


def words_of(masked, text):
    return masked.tokenizer.tokenize(text)


def test_so_many_tokens_are_replaced_by_others_of_their_kind(masked):
    own = words_of(masked, TEXT)
    wanted = round(PLAN.replaced * len(own))
    found = rewrite(masked, TEXT, PLAN, np.random.default_rng(0))
    assert len(found) == 6 and len(set(found)) > 1
    for text in found:
        other = words_of(masked, text)
        assert len(other) == len(own)
        changed = [(a, b) for a, b in zip(own, other, strict=True) if a != b]
        assert len(changed) == wanted
        assert all(a.startswith("##") == b.startswith("##") for a, b in changed)
        assert not any(b.startswith("[") for _, b in changed)


def test_what_is_not_replaced_keeps_every_character(masked):
    one = dataclasses.replace(PLAN, replaced=0.01, span=1)
    for text in rewrite(masked, TEXT, one, np.random.default_rng(1)):
        before = next(i for i, (a, b) in enumerate(zip(TEXT, text, strict=False)) if a != b)
        after = next(i for i, (a, b) in enumerate(zip(TEXT[::-1], text[::-1], strict=False)) if a != b)
        # One token of at most five characters is all that differs, blanks and capitals elsewhere included.
        assert len(TEXT) - before - after <= 5


def test_neighbours_follow_from_the_generator(masked):
    first, second, other = (rewrite(masked, TEXT, PLAN, np.random.default_rng(seed)) for seed in (3, 3, 4))
    assert first == second != other


@pytest.mark.parametrize("text", ["", "   ", "雪"])
def test_a_text_without_a_token_that_can_be_written_is_left_as_it_is(masked, text):
    assert rewrite(masked, text, PLAN, np.random.default_rng(0)) == [text] * 6


def test_texts_longer_than_the_context_are_read_in_pieces(masked):
    assert len(words_of(masked, TEXT)) > masked.length == 16
    changed = set()
    for seed in range(10):
        for text in rewrite(masked, TEXT, PLAN, np.random.default_rng(seed)):
            pairs = zip(words_of(masked, TEXT), words_of(masked, text), strict=True)
            changed |= {i for i, (a, b) in enumerate(pairs) if a != b}
    assert changed == set(range(len(words_of(masked, TEXT))))


def test_what_is_no_masked_language_model_is_refused(folder, make_model, tmp_path):
    from sordino.model import save

    save(make_model("llama"), tmp_path)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_masked(str(tmp_path), "cpu")
    with pytest.raises(ModelError, match="no model folder"):
        masked_identity(str(folder / "nowhere"))
    assert masked_identity(str(folder)) == masked_identity(str(folder))
