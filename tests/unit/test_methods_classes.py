"""Every method of tuning on classifiers: the head always goes along, and the untuned model comes back whole."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from classifier_fixtures import CLASSES, write_bert, write_decoder
from test_methods import METHODS, VIRTUAL, prefix_cache, values
from train_fixtures import tune

from sordino.classifier import Classes, class_logits, head_names
from sordino.config import MethodConfig, ModelConfig, TrainConfig
from sordino.errors import ConfigError
from sordino.model import Model, attach, count_parameters, load, restore, save
from sordino.serialize import Tokens
from sordino.train.loop import validation_loss

KINDS = ("llama", "gpt2", "bert")
THREE = Classes(labels=CLASSES, seed=5)
# Besides the head: what a method may train, as a part of a parameter's name.
TRAINED = {
    "lora": "lora_", "rslora": "lora_", "dora": "lora_", "ffa": "lora_B",
    "prefix": "prompt_encoder.", "prompt": "prompt_encoder.", "ia3": "ia3_", "bitfit": "bias",
    "adapters": "sordino_tuning.at.",
}  # fmt: skip
# Decoders are read alike, at the last token: all methods on one of them, and the other pairs with the slow tests.
PAIRS = [
    pytest.param((k, m), marks=() if k != "gpt2" or m in ("full", "lora", "prefix") else pytest.mark.slow)
    for k in KINDS
    for m in METHODS
]
TRAINING = TrainConfig(epochs=6, batch_size=8, learning_rate=0.01, warmup=0.0, schedule="constant")


def labelled(count: int) -> list[Tokens]:
    """Random records of 3 to 12 tokens whose first but one is that of their class."""
    rng, made = np.random.default_rng(0), []
    for i in range(count):
        ids = rng.integers(10, 40, rng.integers(3, 13)).astype(np.int32)
        ids[1] = 5 + i % 3
        made.append(Tokens(ids=ids, target=np.arange(len(ids)) == len(ids) - 1, text="…", label=i % 3))
    return made


TOKENS = labelled(16)


def logits(model: Model) -> torch.Tensor:
    """Class logits of four records in one padded batch."""
    width = max(len(t) for t in TOKENS[:4])
    ids = torch.full((4, width), model.tokenizer.pad_token_id)
    for row, item in enumerate(TOKENS[:4]):
        ids[row, : len(item)] = torch.from_numpy(item.ids.astype(np.int64))
    mask = torch.arange(width) < torch.tensor([[len(t)] for t in TOKENS[:4]])
    with model.active() as module:
        return class_logits(module, ids, mask.long()).clone()


@dataclass(frozen=True)
class Case:
    """A classifier before and after it was tuned a little, and as it was restored."""

    kind: str
    name: str
    folder: Path
    untuned: Model
    started: dict[str, torch.Tensor]
    frozen: dict[str, torch.Tensor]
    losses: tuple[float, float]
    model: Model
    restored: Model


@pytest.fixture(scope="module")
def sources(make_model, tmp_path_factory):
    root, made = tmp_path_factory.mktemp("sources"), {}
    with pytest.MonkeyPatch.context() as patch:
        folders = {k: write_decoder(root / k, make_model, k) for k in KINDS[:2]} | {"bert": write_bert(root / "bert")}
        for kind, folder in folders.items():
            model = load(ModelConfig(path=str(folder), device="cpu"), classes=THREE)
            with torch.no_grad():
                for parameter in model.module.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.linspace(-0.1, 0.1, parameter.numel()))
            # A head for these classes is kept: what is restored begins with this very model.
            save(model, folder)
            made[kind] = load(model.config, classes=THREE)
        tokenizers = {str(folder): made[kind].tokenizer for kind, folder in folders.items()}
        # Reading a tokenizer takes longer than all else here.
        patch.setattr("sordino.model.loading.load_tokenizer", lambda config: tokenizers[config.path])
        yield made


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def case(request, sources, tmp_path_factory):
    kind, name = request.param
    folder, untuned = tmp_path_factory.mktemp("case"), sources[kind]
    model = attach(replace(untuned, module=copy.deepcopy(untuned.module)), METHODS[name], 0)
    frozen, started = values(model, False), values(model, True)
    before = validation_loss(model, TOKENS, 8)
    # Prompts need more, as docs/fine-tuning.md says.
    how = replace(TRAINING, learning_rate=0.1, epochs=12) if name == "prompt" else TRAINING
    tune(folder, model, TOKENS, how)
    after = validation_loss(model, TOKENS, 8)
    save(model, folder / "tuned")
    restored = restore(untuned.config, METHODS[name], folder / "tuned", THREE)
    return Case(kind, name, folder / "tuned", untuned, started, frozen, (before, after), model, restored)


def test_it_learns_and_moves_only_what_it_may(case):
    assert case.losses[1] < case.losses[0] - 0.03
    moved = values(case.model, True)
    heads = head_names(case.untuned.module)
    in_head = {name for name in moved if any(f"{head}." in name for head in heads)}
    sizes = {n: p.numel() for n, p in case.untuned.module.named_parameters() if n.split(".")[0] in heads}
    assert sum(moved[name].numel() for name in in_head) == sum(sizes.values()) > 0
    for name, value in moved.items():
        assert not torch.equal(value, case.started[name]), name
        assert name in in_head or case.name == "full" or TRAINED[case.name] in name
    assert case.name == "head" or set(moved) > in_head
    frozen = values(case.model, False)
    assert frozen.keys() == case.frozen.keys()
    assert all(torch.equal(frozen[name], value) for name, value in case.frozen.items())


def test_what_is_saved_is_found_again(case):
    assert torch.equal(logits(case.restored), logits(case.model))
    assert case.restored.digest() == case.model.digest() != case.untuned.digest()
    assert (logits(case.restored) - logits(case.untuned)).abs().max() > 1e-2
    assert transformers.AutoConfig.from_pretrained(case.folder).id2label == dict(enumerate(CLASSES))
    if case.name != "full":
        # Nothing of the size of an embedding went along.
        assert sum(p.stat().st_size for p in case.folder.glob("*.safetensors")) < 64_000


def test_the_base_is_the_classifier_as_it_was_loaded_with_its_head(case):
    on = {name: p.requires_grad for name, p in case.restored.module.named_parameters()}
    base, tuned = case.restored.base(), logits(case.model)
    assert torch.equal(logits(base), logits(case.untuned))
    assert base.digest() == base.base().digest() == case.untuned.digest() == case.model.base().digest()
    assert base.context == case.restored.context == 64 - (VIRTUAL if case.name in ("prefix", "prompt") else 0)
    assert base.classes == THREE
    # And back again, as if nothing had been.
    assert torch.equal(logits(case.restored), tuned)
    if case.name in ("prefix", "prompt"):
        assert {name: p.requires_grad for name, p in case.restored.module.named_parameters()} == on
    assert count_parameters(case.untuned.config, METHODS[case.name], THREE)["trainable"] == sum(
        value.numel() for value in case.started.values()
    )


def test_before_the_first_step_nothing_has_changed(case):
    if case.name in ("prefix", "prompt"):
        return
    model = attach(replace(case.untuned, module=copy.deepcopy(case.untuned.module)), METHODS[case.name], 0)
    torch.testing.assert_close(logits(model), logits(case.untuned), rtol=0, atol=1e-5)


# Virtual tokens, against the long way


def bert_by_hand(bert: Any, embedded: torch.Tensor, past: Any) -> torch.Tensor:
    """Pooled output of BERT on (1, T, d) embeddings, keys and values of `past` put before each layer's own."""
    x = embedded
    for number, layer in enumerate(bert.encoder.layer):
        inner, parts = layer.attention.self, []
        for name in ("query", "key", "value"):
            part = getattr(inner, name)(x).view(1, -1, 4, 8).transpose(1, 2)
            if past is not None and name != "query":
                part = torch.cat([getattr(past.layers[number], f"{name}s"), part], dim=2)
            parts.append(part)
        query, key, value = parts
        mixed = torch.softmax(query @ key.transpose(2, 3) / 8**0.5, dim=-1) @ value
        y = layer.attention.output(mixed.transpose(1, 2).flatten(2), x)
        x = layer.output(layer.intermediate(y), y)
    return bert.pooler(x)


def by_hand(case: Case, ids: torch.Tensor) -> torch.Tensor:
    """Class logits (C) of one record, virtual tokens put before it by hand and the tuned head applied."""
    module = case.model.module
    inner, learnt = module.base_model, module.prompt_encoder["default"].embedding.weight
    words = inner.get_input_embeddings()(ids)
    if case.kind == "bert":
        places = inner.bert.embeddings
        whole = torch.cat([learnt, words]) if case.name == "prompt" else words
        start = VIRTUAL if case.name == "prefix" else 0
        at = torch.arange(start, start + len(whole))
        summed = whole + places.position_embeddings(at) + places.token_type_embeddings(torch.zeros_like(at))
        past = prefix_cache(inner, learnt) if case.name == "prefix" else None
        return inner.classifier(bert_by_hand(inner.bert, places.LayerNorm(summed)[None], past))[0]
    trunk = getattr(inner, inner.base_model_prefix)
    if case.name == "prompt":
        hidden = trunk(inputs_embeds=torch.cat([learnt, words])[None], use_cache=False)
    else:
        hidden = trunk(input_ids=ids[None], past_key_values=prefix_cache(inner, learnt))
    return inner.score(hidden.last_hidden_state[0, -1])


def test_virtual_tokens_stand_before_each_record_of_a_padded_batch(case, capfd):
    if case.name not in ("prefix", "prompt"):
        return
    found = logits(case.model)
    with case.model.active():  # without dropout
        expected = [by_hand(case, torch.from_numpy(t.ids.astype(np.int64))) for t in TOKENS[:4]]
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)
    # transformers would warn that it does not look for padding; `class_logits` does.
    assert "padding" not in capfd.readouterr().err


# Other encoders


def encoder(kind: str) -> Model:
    sizes = {"vocab_size": 48, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"intermediate_size": 64, "max_position_embeddings": 64, "num_labels": 3, "pad_token_id": 0}
    if kind == "DistilBert":
        sizes = {"vocab_size": 48, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "num_labels": 3}
    if kind == "ModernBert":
        sizes |= {"bos_token_id": 1, "eos_token_id": 2, "cls_token_id": 1, "sep_token_id": 2}
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**sizes)
    module = getattr(transformers, f"{kind}ForSequenceClassification")(config).eval()
    return Model(module=module, tokenizer=None, config=ModelConfig(device="cpu"), classes=THREE)


ENCODERS = {
    "Bert": ("attention.output.dense", "output.dense"),
    "Roberta": ("attention.output.dense", "output.dense"),
    "Electra": ("attention.output.dense", "output.dense"),
    "DebertaV2": ("attention.output.dense", "output.dense"),
    "DistilBert": ("attention.out_lin", "ffn.lin2"),
    "ModernBert": ("attn.Wo", "mlp.Wo"),
    "MPNet": ("attention.attn.o", "output.dense"),
}


def hooked(module: Any) -> list[str]:
    return [name for name, m in module.named_modules() if m._forward_hooks]


@pytest.mark.parametrize("kind", ENCODERS)
def test_adapters_stand_behind_both_sub_layers_of_an_encoder(kind):
    model = encoder(kind)
    before = hooked(model.module)
    made = attach(model, MethodConfig(kind="adapters", bottleneck=4), 0)
    added = [name for name in hooked(made.module) if name not in before]
    assert len(added) == 4
    assert all(f"{number}.{end}" in " ".join(added) for number in (0, 1) for end in ENCODERS[kind])


@pytest.mark.parametrize("kind", ENCODERS)
def test_ia3_scales_the_input_of_one_feed_forward_module_a_block(kind):
    made = attach(encoder(kind), MethodConfig(kind="ia3"), 0).module
    scaled = {name.rpartition(".ia3_l.")[0]: p for name, p in made.named_parameters() if ".ia3_l." in name}
    wide = [name for name, p in scaled.items() if p.shape == (1, 64)]
    assert len(wide) == 2 and all(name.endswith(ENCODERS[kind][1]) for name in wide)
    assert not any(name.endswith(ENCODERS[kind][0]) and "attention" in name for name in scaled)


@pytest.mark.parametrize("kind", ENCODERS)
def test_prefixes_are_refused_where_keys_and_values_cannot_be_given(kind):
    ids, mask = torch.arange(4, 12)[None], torch.ones(1, 8, dtype=torch.long)
    model, how = encoder(kind), MethodConfig(kind="prefix", virtual_tokens=VIRTUAL)
    if kind not in ("Bert", "Roberta", "Electra"):
        with pytest.raises(ConfigError, match=f"kind is prefix, but {kind}ForSequenceClassification has layers"):
            attach(model, how, 0)
        how = replace(how, kind="prompt")
    before = class_logits(model.module, ids, mask)
    made = attach(model, how, 0)
    with made.active() as module:
        assert not torch.allclose(class_logits(module, ids, mask), before, atol=1e-6)
    with made.base().active() as module:
        assert torch.equal(class_logits(module, ids, mask), before)


def test_blocks_of_unknown_layout_are_refused():
    sizes = {"vocab_size": 48, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2, "num_labels": 3}
    shape = transformers.AlbertConfig(num_attention_heads=4, intermediate_size=64, **sizes)
    module = transformers.AlbertForSequenceClassification(shape)
    model = Model(module=module, tokenizer=None, config=ModelConfig(device="cpu"), classes=THREE)
    for kind in ("adapters", "ia3"):
        with pytest.raises(ConfigError, match=rf"method\.kind is {kind}, but no stack of 2 blocks is found in Albert"):
            attach(model, MethodConfig(kind=kind), 0)
