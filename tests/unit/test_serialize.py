"""Records as tokens: what stands before and after them, which of them count, and what happens to long ones."""

import copy
from itertools import pairwise

import numpy as np
import pytest

from sordino.config import ModelConfig
from sordino.errors import DataError, ModelError
from sordino.model import load_tokenizer
from sordino.records import Message, Record
from sordino.serialize import Serializer, encode_all, lowercase, render_plain

BOS, EOS = 0, 1
TEXT = (Message("text", "The rain in Spain\nfalls on 27 plains."),)
PAIR = (Message("prompt", "What is the code?"), Message("completion", "It is 4711, as agreed."))
CHAT = (
    Message("system", "Be kind."),
    Message("user", "Hello there"),
    Message("assistant", "Good morning!"),
    Message("user", "And now?"),
    Message("assistant", "Good night."),
)
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}{{ '[' + m.role + '] ' + m.content + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant] ' }}{% endif %}"
)


def record(*messages, name="r"):
    return Record(id=name, unit=name, messages=messages)


def with_template(tokenizer, template):
    made = copy.deepcopy(tokenizer)
    made.chat_template = template
    return made


def framed_once(tokens, tokenizer):
    ids = tokens.ids.tolist()
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] == tokenizer.eos_token_id
    assert ids[1] != tokenizer.bos_token_id
    assert ids[-2] != tokenizer.eos_token_id


def said(tokenizer, tokens):
    return tokenizer.decode(tokens.ids[tokens.target], skip_special_tokens=True)


def test_a_text_is_all_target(tokenizer):
    tokens = Serializer(tokenizer, 512).encode(record(*TEXT))
    framed_once(tokens, tokenizer)
    assert tokens.target.tolist() == [False] + [True] * (len(tokens) - 1)
    assert tokens.text == said(tokenizer, tokens) == TEXT[0].content
    assert (tokens.cut, tokens.ids.dtype) == (0, np.int32)


def test_of_a_pair_the_completion_and_the_end_are_targets(tokenizer):
    tokens = Serializer(tokenizer, 512).encode(record(*PAIR))
    framed_once(tokens, tokenizer)
    assert tokenizer.decode(tokens.ids, skip_special_tokens=True) == "What is the code?\nIt is 4711, as agreed."
    assert tokens.text == said(tokenizer, tokens) == PAIR[1].content
    assert tokens.target[-1]


@pytest.mark.parametrize("prompt", ["Say ", "Say\n", "Say\t"])
def test_a_prompt_that_ends_in_a_blank_gets_no_newline(prompt):
    assert render_plain(record(Message("prompt", prompt), PAIR[1]).messages)[0] == prompt + PAIR[1].content


def test_a_token_that_straddles_the_border_is_a_target(tokenizer):
    pair = (Message("prompt", "She said "), Message("completion", "hello to the man"))
    tokens = Serializer(tokenizer, 512).encode(record(*pair))
    alone = tokenizer("She said", add_special_tokens=False)["input_ids"]
    # Tokenised as a whole: " hello" is one piece that begins in the prompt.
    assert tokens.ids[1 : 1 + len(alone)].tolist() == alone
    assert tokens.target.tolist() == [False] * (1 + len(alone)) + [True] * (len(tokens) - 1 - len(alone))


def test_a_chat_without_a_template_has_a_line_a_turn(tokenizer):
    assert tokenizer.chat_template is None
    tokens = Serializer(tokenizer, 512).encode(record(*CHAT))
    framed_once(tokens, tokenizer)
    assert tokenizer.decode(tokens.ids, skip_special_tokens=True) == (
        "System: Be kind.\nUser: Hello there\nAssistant: Good morning!\nUser: And now?\nAssistant: Good night."
    )
    assert tokens.text == "Good morning!\nGood night."
    # The blank after "Assistant:" belongs to the first token of the answer.
    assert said(tokenizer, tokens).split() == ["Good", "morning!", "Good", "night."]


def test_a_chat_template_is_used_and_frames_nothing_twice(tokenizer):
    templated = with_template(tokenizer, TEMPLATE)
    tokens = Serializer(templated, 512).encode(record(*CHAT))
    framed_once(tokens, templated)
    text = templated.decode(tokens.ids)
    assert text.startswith("<s>[system] Be kind.</s>[user] Hello there</s>[assistant] Good morning!</s>")
    assert said(templated, tokens).split() == ["Good", "morning!", "Good", "night."]
    # Each answer's end-of-turn token is learnt with it; no other turn's is.
    ends = (tokens.ids == EOS) & tokens.target
    assert (int(ends.sum()), int((tokens.ids == EOS).sum())) == (2, 5)


def test_texts_and_pairs_do_not_go_through_the_template(tokenizer):
    templated = Serializer(with_template(tokenizer, TEMPLATE), 512)
    for messages in (TEXT, PAIR):
        tokens = templated.encode(record(*messages))
        np.testing.assert_array_equal(tokens.ids, Serializer(tokenizer, 512).encode(record(*messages)).ids)


def test_a_template_that_rewrites_the_past_is_refused(tokenizer):
    last_only = "{% for m in messages %}{{ loop.revindex ~ m.content }}{% endfor %}"
    with pytest.raises(ModelError, match=r"chat template renders a conversation differently.*Use prompt"):
        Serializer(with_template(tokenizer, last_only), 512).encode(record(*CHAT))


@pytest.mark.parametrize(
    "text",
    ["<s>He wrote</s>", "</s>", "<s>", "<s></s>", "a <pad> b</s> c <s> d", "</s></s> end", "x</s>\n"],
)
def test_control_tokens_in_private_text_are_only_text(tokenizer, text):
    tokens = Serializer(tokenizer, 512).encode(record(Message("text", text)))
    assert tokens.ids[0] == BOS
    assert tokens.ids[-1] == EOS
    assert not {BOS, EOS} & set(tokens.ids[1:-1].tolist())
    assert tokenizer.decode(tokens.ids[1:-1]) == text
    assert not tokens.target[0]
    assert tokens.target[1:].all()


def test_a_tokenizer_without_ends_adds_none(tokenizer):
    bare = copy.deepcopy(tokenizer)
    bare.bos_token = bare.eos_token = None
    tokens = Serializer(bare, 512).encode(record(*TEXT))
    assert tokens.ids.tolist() == bare(TEXT[0].content, add_special_tokens=False)["input_ids"]
    assert not tokens.target[0]


@pytest.fixture
def long(tokenizer):
    made = record(Message("text", "one day the old man went home " * 20), name="long")
    return made, Serializer(tokenizer, 10_000).encode(made)


def test_truncate_cuts_the_end_off_and_counts(tokenizer, long):
    tokens = Serializer(tokenizer, 50).encode(long[0])
    assert len(tokens) == 50
    assert tokens.cut == len(long[1]) - 50
    assert tokens.ids.tolist() == long[1].ids[:50].tolist()
    assert tokens.ids[-1] != EOS


def test_split_keeps_everything(tokenizer, long):
    tokens = Serializer(tokenizer, 50, "split").encode(long[0])
    np.testing.assert_array_equal(tokens.ids, long[1].ids)
    assert tokens.cut == 0


def test_refuse_names_the_record_and_the_limit(tokenizer, long):
    with pytest.raises(DataError, match=rf"Record long has {len(long[1])} tokens; the limit is 50.*train.too_long"):
        Serializer(tokenizer, 50, "refuse").encode(long[0])
    exact = Serializer(tokenizer, len(long[1]), "refuse").encode(long[0])
    assert len(exact) == len(long[1])


@pytest.mark.parametrize("length", [2, 3, 7, 50, 51, 10_000])
def test_pieces_cover_every_target_once(tokenizer, long, length):
    pair = Serializer(tokenizer, 10_000, "split").encode(record(Message("prompt", "Say it: " * 9), PAIR[1]))
    for whole in (long[1], pair):
        pieces = list(whole.pieces(length))
        assert all(2 <= len(piece) <= length for piece in pieces)
        assert all(before.ids[-1] == after.ids[0] for before, after in pairwise(pieces))
        rebuilt = [pieces[0].ids[:1], *(piece.ids[1:] for piece in pieces)]
        np.testing.assert_array_equal(np.concatenate(rebuilt), whole.ids)
        learnt = [pieces[0].target[:1], *(piece.target[1:] for piece in pieces)]
        np.testing.assert_array_equal(np.concatenate(learnt), whole.target)
        assert sum(int(piece.target.sum()) for piece in pieces) == int(whole.target.sum())
        assert whole.target.sum() > 0


def test_what_was_cut_split_or_left_without_a_target_is_counted(tokenizer, long):
    buried = record(Message("prompt", "Please tell me more " * 30), Message("completion", "No."), name="buried")
    records = [record(*TEXT), long[0], buried]
    tokens, notices = encode_all(records, Serializer(tokenizer, 50))
    assert [(n.kind, n.count) for n in notices] == [("truncated", 2), ("no-target", 1)]
    assert f"{sum(t.cut for t in tokens):,} tokens" in notices[0].message
    assert "buried" in notices[1].message
    assert not tokens[2].target.any()
    tokens, notices = encode_all(records, Serializer(tokenizer, 50, "split"))
    assert [(n.kind, n.count) for n in notices] == [("split", 2)]
    assert said(tokenizer, tokens[2]).strip() == "No."
    assert encode_all(records, Serializer(tokenizer, 10_000))[1] == []


def test_a_view_changes_contents_and_not_roles(tokenizer):
    serializer = Serializer(tokenizer, 512)
    assert serializer.render(record(*CHAT), lowercase)[0].startswith("System: be kind.\nUser: hello there")
    tokens = serializer.encode(record(*PAIR), lowercase)
    assert tokens.text == "it is 4711, as agreed."


def test_the_rule_is_a_digest_of_what_decides_about_tokens(tokenizer):
    rules = {
        Serializer(tokenizer, 50).rule,
        Serializer(tokenizer, 51).rule,
        Serializer(tokenizer, 50, "split").rule,
        Serializer(with_template(tokenizer, TEMPLATE), 50).rule,
    }
    assert len(rules) == 4
    assert Serializer(copy.deepcopy(tokenizer), 50).rule in rules


def test_truncation_and_padding_stored_with_a_tokenizer_have_no_say(tokenizer, tmp_path):
    stored = copy.deepcopy(tokenizer)
    stored.backend_tokenizer.enable_truncation(8)
    stored.backend_tokenizer.enable_padding(length=12)
    stored.save_pretrained(tmp_path)
    record = Record(id="a", unit="a", messages=(Message("text", "one two three four five six seven eight nine ten"),))
    made = Serializer(load_tokenizer(ModelConfig(), str(tmp_path)), 64)
    first, before = made.encode(record), made.rule
    made.tokenizer.save_pretrained(tmp_path)
    assert Serializer(load_tokenizer(ModelConfig(), str(tmp_path)), 64).rule == before == Serializer(tokenizer, 64).rule
    assert first.ids.tolist() == Serializer(tokenizer, 64).encode(record).ids.tolist()
    assert len(first) > 8


def test_a_tokenizer_without_offsets_is_refused():
    class Slow:
        is_fast = False

    with pytest.raises(ModelError, match=r"Slow gives no character offsets.*tokenizer.json"):
        Serializer(Slow(), 50)


HARD = (
    Message("user", "naïve  café — 17:30\n\n\tok?"),
    Message("assistant", " 日本語 and 😀 emoji\n\nend  "),
    Message("user", "x"),
    Message("assistant", "\n\n1234567"),
)


@pytest.fixture(params=["bundled", "stories260k", "gpt2"])
def foreign(request, tokenizer):
    """Tokenizers of three kinds: byte-level BPE of our own, SentencePiece with bytes, GPT-2's."""
    if request.param == "bundled":
        return tokenizer
    shared = request.getfixturevalue("shared_data")
    if request.param == "stories260k":
        return load_tokenizer(ModelConfig(path=str(shared / "models" / "stories260k")))
    from transformers import GPT2Tokenizer

    folder = shared / "data" / "tokenizers" / "gpt2"
    return GPT2Tokenizer(vocab=str(folder / "vocab.json"), merges=str(folder / "merges.txt"))


@pytest.mark.parametrize("messages", [TEXT, PAIR, CHAT, HARD], ids=["text", "pair", "chat", "hard"])
def test_targets_are_the_tokens_with_a_character_in_a_span(foreign, messages):
    serializer = Serializer(foreign, 2048)
    made = record(*messages)
    text, spans = serializer.render(made)
    tokens = serializer.encode(made)
    framed_once(tokens, foreign)
    encoded = foreign(text, add_special_tokens=False, return_offsets_mapping=True)
    inside = {i for start, stop in spans for i in range(start, stop)}
    expected = [any(i in inside for i in range(*offset)) for offset in encoded["offset_mapping"]]
    assert tokens.ids[1:-1].tolist() == encoded["input_ids"]
    assert tokens.target[1:-1].tolist() == expected
    covered = {i for o, hit in zip(encoded["offset_mapping"], expected, strict=True) if hit for i in range(*o)}
    missed = inside - covered
    assert all(text[i].isspace() for i in missed)


def test_texts_are_let_go_where_only_tokens_are_wanted(tokenizer, long):
    serializer = Serializer(tokenizer, 16)
    whole, notices = encode_all([long[0]], serializer)
    bare, same = encode_all(iter([long[0]]), serializer, texts=False)
    assert notices == same and whole[0].text and bare[0].text == ""
    assert bare[0].ids.tolist() == whole[0].ids.tolist()
