"""Classifiers: new heads from the seed, class logits that padding cannot change, and their statistics."""

import dataclasses

import numpy as np
import pytest
import torch
import transformers
from classifier_fixtures import CLASSES, bert_tokenizer, write_bert, write_decoder

from sordino.classifier import Classes, class_logits
from sordino.collect_classes import collect_classes, others_entropy
from sordino.config import MethodConfig, ModelConfig
from sordino.errors import DataError, ModelError
from sordino.model import attach, count_parameters, load, restore, save
from sordino.records import Message, Record
from sordino.serialize import Serializer, encode_all
from sordino.train.collate import collate

KINDS = ("llama", "gpt2", "gpt_neox", "bert")
THREE = Classes(labels=CLASSES, seed=5)


@pytest.fixture(scope="module")
def folders(tmp_path_factory, make_model):
    root = tmp_path_factory.mktemp("models")
    decoders = {shape: write_decoder(root / shape, make_model, shape) for shape in KINDS[:3]}
    return decoders | {"bert": write_bert(root / "bert")}


def config_of(folders, kind):
    return ModelConfig(path=str(folders[kind]), device="cpu")


@pytest.fixture(scope="module", params=KINDS)
def classifier(request, folders):
    return load(config_of(folders, request.param), classes=THREE)


def record(text, label="billing", number=0):
    return Record(id=f"r{number}", unit=f"r{number}", messages=(Message("text", text),), label=label)


def alone(model, ids):
    return class_logits(model.module, torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0]


def test_class_logits_are_those_of_each_record_alone(classifier):
    pad, rng = classifier.tokenizer.pad_token_id, np.random.default_rng(0)
    rows = [rng.integers(4, 40, n).tolist() for n in (1, 2, 5, 9, 20)]
    # Texts that hold, end in, or are nothing but the padding token are texts like any other.
    rows += [[7, pad, 9], [7, 8, pad], [7, 8, pad, pad, pad], [pad], [pad, pad]]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with classifier.active() as module:
        together = class_logits(module, ids, mask)
        each = torch.stack([alone(classifier, row) for row in rows])
    assert together.shape == (len(rows), 3)
    torch.testing.assert_close(together, each, atol=1e-5, rtol=1e-5)


def test_a_decoder_is_read_at_its_last_real_token(folders):
    model = load(config_of(folders, "llama"), classes=THREE)
    pad = model.tokenizer.pad_token_id
    ids, mask = torch.tensor([[7, 8, pad]]), torch.ones(1, 3, dtype=torch.long)
    with model.active() as module:
        hidden = module.model(input_ids=ids, attention_mask=mask).last_hidden_state
        own = module(input_ids=ids, attention_mask=mask).logits
        found = class_logits(module, ids, mask)
        ends = [module.score(hidden[0, at]) for at in (1, 2)]
    torch.testing.assert_close(found[0], ends[1])
    # Why `class_logits` exists: the architecture itself stops before a real token that looks like padding.
    torch.testing.assert_close(own[0], ends[0])
    assert not torch.allclose(own, found, atol=1e-3)


def test_the_head_is_drawn_from_the_seed_alone(folders):
    torch.manual_seed(1)
    first = load(config_of(folders, "bert"), classes=THREE)
    torch.manual_seed(2)
    again = load(config_of(folders, "bert"), classes=THREE)
    other = load(config_of(folders, "bert"), classes=dataclasses.replace(THREE, seed=6))
    assert first.digest() == again.digest() != other.digest()
    weight = first.module.classifier.weight
    assert 0.03 < float(weight.detach().std()) < 0.3
    assert not first.module.classifier.bias.any()
    assert first.module.config.id2label == dict(enumerate(CLASSES))


@pytest.mark.parametrize("method", ["lora", "full"])
@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_the_head_is_tuned_saved_and_the_untuned_model_restored(folders, tmp_path, kind, method):
    how = MethodConfig(kind="lora", rank=2) if method == "lora" else MethodConfig(kind="full")
    config = config_of(folders, kind)
    untuned = load(config, classes=THREE)
    before, ids = untuned.digest(), [5, 6, 7, 8]
    with untuned.active():
        plain = alone(untuned, ids)
    model = attach(untuned, how, seed=3)
    head = [p for n, p in model.module.named_parameters() if p.requires_grad and ("score" in n or "classifier" in n)]
    assert head
    with torch.no_grad():
        for parameter in head:
            parameter.add_(1.0)
    with model.active():
        tuned = alone(model, ids)
    save(model, tmp_path / "w")
    back = restore(config, how, tmp_path / "w", THREE)
    with back.active():
        torch.testing.assert_close(alone(back, ids), tuned)
    base = back.base()
    with base.active():
        torch.testing.assert_close(alone(base, ids), plain)
    assert base.digest() == before
    assert back.classes == base.classes == THREE
    saved = transformers.AutoConfig.from_pretrained(tmp_path / "w")
    assert saved.id2label == dict(enumerate(CLASSES))


def test_a_head_for_the_same_classes_is_kept_and_for_others_drawn_anew(folders, tmp_path):
    first = attach(load(config_of(folders, "bert"), classes=THREE), MethodConfig(kind="full"), seed=0)
    with torch.no_grad():
        first.module.classifier.weight.fill_(0.25)
    save(first, tmp_path / "c")
    config = ModelConfig(path=str(tmp_path / "c"), device="cpu")
    assert (load(config, classes=THREE).module.classifier.weight == 0.25).all()
    for labels in (("a", "b", "c"), ("a", "b")):
        other = load(config, classes=Classes(labels=labels, seed=0)).module.classifier.weight
        assert other.shape[0] == len(labels)
        assert not (other == 0.25).any()


def test_damaged_and_unfit_models_are_refused(folders, tmp_path):
    first = attach(load(config_of(folders, "bert"), classes=THREE), MethodConfig(kind="full"), seed=0)
    save(first, tmp_path / "w")
    with pytest.raises(ModelError, match=r"lacks weights of the classifier it should hold, such as classifier"):
        restore(config_of(folders, "bert"), MethodConfig(kind="full"), folders["bert"], THREE)
    small = transformers.T5Config(vocab_size=48, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8)
    transformers.T5ForConditionalGeneration(small).save_pretrained(tmp_path / "t5")
    bert_tokenizer().save_pretrained(tmp_path / "t5")
    with pytest.raises(ModelError, match=r"encoder-decoder \(t5\), which is not supported as a classifier"):
        load(ModelConfig(path=str(tmp_path / "t5")), classes=THREE)


def test_parameters_are_counted_without_weights(folders):
    config, how = config_of(folders, "bert"), MethodConfig(rank=2)
    counted = count_parameters(config, how, THREE)
    model = attach(load(config, classes=THREE), how, seed=0)
    assert counted["parameters"] == sum(p.numel() for p in model.module.parameters())
    assert counted["trainable"] == sum(p.numel() for p in model.module.parameters() if p.requires_grad)
    assert counted["context"] == 64


def test_roberta_has_fewer_places_than_positions():
    shape = transformers.RobertaConfig(
        vocab_size=48, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=34, pad_token_id=1, num_labels=3,
    )  # fmt: skip
    module = transformers.RobertaForSequenceClassification(shape).eval()
    from sordino.model import Model

    model = Model(module, None, ModelConfig(device="cpu"), classes=THREE)
    assert model.context == 32
    assert alone(model, [5] * 32).shape == (3,)
    with pytest.raises((IndexError, RuntimeError)):
        alone(model, [5] * 33)


# Serializing


def test_an_encoder_gets_its_own_special_tokens_and_keeps_them_when_cut():
    serializer = Serializer(bert_tokenizer(), 6, labels=CLASSES)
    short = serializer.encode(record("kana lose", "delivery"))
    words = serializer.tokenizer.convert_ids_to_tokens(short.ids.tolist())
    assert words == ["[CLS]", "kana", "lose", "[SEP]"]
    assert (short.label, short.cut, short.target.tolist()) == (1, 0, [False, False, False, True])
    assert short.text == "kana lose\ndelivery"
    long = serializer.encode(record("kana lose mido tuki veru zona"))
    words = serializer.tokenizer.convert_ids_to_tokens(long.ids.tolist())
    assert (words, long.cut) == (["[CLS]", "kana", "lose", "mido", "tuki", "[SEP]"], 2)
    assert list(long.pieces(6)) == [long]


def test_special_tokens_in_a_text_are_text(tokenizer):
    bert = Serializer(bert_tokenizer(), 32, labels=CLASSES)
    assert bert.encode(record("kana [SEP] [PAD] lose")).ids.tolist().count(3) == 1
    assert 0 not in bert.encode(record("kana [PAD]")).ids
    found = Serializer(tokenizer, 32, labels=CLASSES).encode(record("paid <pad></s>"))
    assert tokenizer.pad_token_id not in found.ids
    assert found.ids.tolist().count(tokenizer.eos_token_id) == 1
    assert (found.ids[0], found.ids[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)


def test_a_decoders_text_is_cut_before_its_end_token(tokenizer):
    found = Serializer(tokenizer, 8, labels=CLASSES).encode(record("a long text " * 20))
    assert len(found) == 8
    assert found.ids[-1] == tokenizer.eos_token_id
    _, notices = encode_all([record("a long text " * 20)], Serializer(tokenizer, 8, labels=CLASSES))
    assert notices[0].kind == "truncated"
    assert "split" not in notices[0].message
    with pytest.raises(DataError, match=r"Set train.too_long to truncate, or raise"):
        Serializer(tokenizer, 8, "refuse", CLASSES).encode(record("a long text " * 20))


def test_a_label_that_is_no_class_is_an_error(tokenizer):
    with pytest.raises(DataError, match=r"Record r0 has the label 'fraud', which is none of the run's classes"):
        Serializer(tokenizer, 32, labels=CLASSES).encode(record("text", "fraud"))


def test_the_rule_depends_on_the_classes_only_where_there_are_some(tokenizer):
    plain = Serializer(tokenizer, 32)
    rules = {plain.rule, Serializer(tokenizer, 32, labels=CLASSES).rule, Serializer(tokenizer, 32, labels=("a",)).rule}
    assert len(rules) == 3
    assert Serializer(tokenizer, 32, labels=()).rule == plain.rule


def test_batches_have_one_label_a_record(tokenizer):
    serializer = Serializer(tokenizer, 32, labels=CLASSES)
    tokens = [serializer.encode(record(f"text {'x' * n}", CLASSES[n % 3])) for n in (1, 5, 2)]
    batch = collate(tokens, tokenizer.pad_token_id, torch.device("cpu"))
    assert batch.wanted.tolist() == [1, 2, 2]
    assert batch.targets == 3
    assert batch.attention_mask.sum(dim=1).tolist() == [len(t) for t in tokens]


# Statistics


def test_statistics_are_those_of_each_record_alone(classifier):
    serializer = Serializer(classifier.tokenizer, 32, labels=CLASSES)
    texts = ["kana", "invoice lose mido tuki", "zona " * 15, "parcel [PAD]", "password kana lose"]
    tokens = [serializer.encode(record(text, CLASSES[i % 3], i)) for i, text in enumerate(texts)]
    done = []
    found = collect_classes(classifier, tokens, tick=done.append)
    assert sum(done) == len(tokens)
    assert found.offsets.tolist() == [0, 1, 2, 3, 4, 5]
    assert found.token.tolist() == [0, 1, 2, 0, 1]
    with classifier.active():
        logits = torch.stack([alone(classifier, t.ids.tolist()) for t in tokens]).double()
    logp = torch.log_softmax(logits, dim=1).numpy()
    p, own = np.exp(logp), logp[np.arange(5), found.token]
    mean = (p * logp).sum(axis=1)
    np.testing.assert_allclose(found.logprob, own, atol=1e-5)
    np.testing.assert_allclose(found.mean, mean, atol=1e-5)
    np.testing.assert_allclose(found.variance, (p * (logp - mean[:, None]) ** 2).sum(axis=1), atol=1e-5)
    assert found.rank.tolist() == (logp > own[:, None]).sum(axis=1).tolist()
    assert found.top.tolist() == logp.argmax(axis=1).tolist()


def test_records_without_a_token_have_no_row(folders):
    model = load(config_of(folders, "llama"), classes=THREE)
    whole = Serializer(model.tokenizer, 32, labels=CLASSES).encode(record("text"))
    none = dataclasses.replace(whole, ids=whole.ids[:0], target=whole.target[:0])
    assert collect_classes(model, [none, whole, none]).offsets.tolist() == [0, 0, 1, 1]
    assert collect_classes(model, [none]).offsets.tolist() == [0, 0]


def _published_mentr(p, y):
    """Song and Mittal's published code, a record at a time: `_m_entr_comp` of privacyml/mia."""
    log = lambda x: -np.log(np.maximum(x, 1e-300))  # noqa: E731
    probabilities, logs = p.copy(), log(1 - p)
    probabilities[y] = 1 - p[y]
    logs[y] = log(p)[y]
    return float((probabilities * logs).sum())


def test_modified_entropy_is_the_published_one():
    from sordino.attacks.membership.modified_entropy import modified_entropy
    from sordino.signals import Signals, Statistics

    rng = np.random.default_rng(0)
    logits, y = torch.tensor(rng.normal(0, 3, (50, 7))), torch.tensor(rng.integers(0, 7, 50))
    logp = torch.log_softmax(logits, dim=1).numpy()
    rows = {"mean": np.zeros(50), "variance": np.zeros(50), "logprob": logp[np.arange(50), y.numpy()]}
    whole = {k: np.zeros(50, np.int32) for k in ("position", "token", "rank", "top")}
    statistics = Statistics(
        offsets=np.arange(51), others=others_entropy(logits, y).numpy(), **rows, **whole
    )  # fmt: skip
    found = modified_entropy(Signals(record_ids=[str(i) for i in range(50)], texts=[""] * 50, statistics=statistics))
    expected = [-_published_mentr(np.exp(row), int(label)) for row, label in zip(logp, y, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_the_sum_over_other_classes_keeps_what_rounding_would_lose():
    from fractions import Fraction
    from math import exp, log

    logits, y = torch.tensor([[60.0, 0.0, 1.0]]), torch.tensor([1])
    # 1 − p of the likeliest class is e⁻⁶⁰ + e⁻⁵⁹, which float64 cannot tell from 0 by subtraction.
    left = float(Fraction(exp(-60)) + Fraction(exp(-59)))
    expected = log(left) + exp(-59) * log(1 - exp(-59))
    assert float(others_entropy(logits, y)[0]) == pytest.approx(expected, rel=1e-12)
    assert torch.isfinite(others_entropy(torch.tensor([[5000.0, 0.0]]), torch.tensor([1]))).all()
