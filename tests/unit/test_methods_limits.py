"""Methods that cannot do what is asked say so, and small things about single methods."""

import copy
import json

import numpy as np
import pytest
import torch
import transformers
from train_fixtures import fresh, new_run, some_tokens, tune

from sordino.config import MethodConfig, ModelConfig, RunConfig, TrainConfig
from sordino.config import load as read_config
from sordino.continuation import Continuation
from sordino.errors import ConfigError, ModelError
from sordino.generate import greedy
from sordino.model import Model, attach, load, restore, save, weights_digest
from sordino.records import DataConfig
from sordino.train.reading import serializer_for

HEAD, BITFIT, ADAPTERS = (MethodConfig(kind=kind) for kind in ("head", "bitfit", "adapters"))
PREFIX, PROMPT = (MethodConfig(kind=kind, virtual_tokens=6) for kind in ("prefix", "prompt"))
IDS = torch.arange(3, 23)[None]


def logits(model):
    with model.active() as module:
        return module(input_ids=IDS).logits.clone()


def nudged(model):
    """The model with all that is trained moved a little."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.module.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
    return model


@pytest.mark.parametrize(
    ("key", "value", "kind", "owner"),
    [
        ("rank", 8, "full", "lora"),
        ("variant", "dora", "ia3", "lora"),
        ("targets", ("q_proj",), "bitfit", "lora"),
        ("dropout", 0.1, "adapters", "lora"),
        ("virtual_tokens", 5, "lora", "prefix and prompt"),
        ("bottleneck", 8, "prompt", "adapters"),
    ],
)
def test_a_setting_without_a_use_is_an_error(make_model, key, value, kind, owner):
    settings = {"kind": kind, key: value}
    with pytest.raises(ConfigError, match=rf"method\.{key} is .*method\.kind {kind}") as error:
        read_config(values={"data": {"path": "x"}, "method": settings}, environment={})
    assert owner in error.value.hint
    with pytest.raises(ConfigError, match=rf"method\.{key} is "):
        attach(fresh(make_model("llama")), MethodConfig(**settings), 0)


@pytest.mark.parametrize(("key", "kind"), [("virtual_tokens", "prefix"), ("bottleneck", "adapters")])
def test_sizes_are_at_least_one(key, kind):
    with pytest.raises(ConfigError, match=rf"method\.{key} is 0"):
        read_config(values={"data": {"path": "x"}, "method": {"kind": kind, key: 0}}, environment={})


@pytest.mark.parametrize("kind", ["prefix", "prompt"])
def test_virtual_tokens_must_leave_room_for_records(make_model, kind):
    with pytest.raises(ConfigError, match="virtual_tokens is 57, and the model's context 64"):
        attach(fresh(make_model("llama")), MethodConfig(kind=kind, virtual_tokens=57), 0)


@pytest.mark.parametrize("method", [PREFIX, PROMPT], ids=["prefix", "prompt"])
def test_records_are_cut_to_what_virtual_tokens_leave(make_model, method):
    model = attach(fresh(make_model("llama")), method, 0)
    config = RunConfig(data=DataConfig(path="x"), method=method)
    assert serializer_for(config, model.tokenizer, model.context).max_length == 58
    longer = RunConfig(data=DataConfig(path="x"), method=method, train=TrainConfig(max_length=60))
    with pytest.raises(ConfigError, match="max_length is 60, but the model's context is 58"):
        serializer_for(longer, model.tokenizer, model.context)


@pytest.mark.parametrize("method", [MethodConfig(kind="full"), MethodConfig(variant="dora")], ids=["full", "dora"])
def test_quantised_weights_are_refused_where_it_would_not_be_exact(make_model, method):
    model = fresh(make_model("llama"))
    model.module.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(ConfigError, match="quantised"):
        attach(model, method, 0)


@pytest.mark.parametrize("kind", ["ia3", "adapters"])
def test_blocks_of_unknown_layout_are_refused(tokenizer, kind):
    config = transformers.MixtralConfig(
        vocab_size=64, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=2, max_position_embeddings=64,
    )  # fmt: skip
    model = Model(module=transformers.MixtralForCausalLM(config), tokenizer=tokenizer, config=ModelConfig())
    with pytest.raises(ConfigError, match=rf"method\.kind is {kind}, but in model\.layers\.0") as error:
        attach(model, MethodConfig(kind=kind), 0)
    assert "o_proj" in error.value.hint


@pytest.fixture
def folder(make_model, tmp_path):
    save(make_model("llama"), tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("kind", ["bitfit", "head", "adapters", "ia3", "prefix", "lora"])
def test_weights_of_another_method_are_refused(folder, tmp_path, kind):
    config = ModelConfig(path=str(folder), device="cpu")
    other = "head" if kind in ("bitfit", "adapters") else "bitfit" if kind == "head" else "prompt"
    save(attach(load(config), MethodConfig(kind=other), 0), tmp_path / "tuned")
    with pytest.raises(ModelError, match=f"not tuned by method {kind}"):
        restore(config, MethodConfig(kind=kind), tmp_path / "tuned")


@pytest.mark.parametrize(
    ("saved", "asked"),
    [(PROMPT, MethodConfig(kind="prompt")), (ADAPTERS, MethodConfig(kind="adapters", bottleneck=8))],
    ids=["virtual_tokens", "bottleneck"],
)
def test_weights_of_other_settings_are_refused(folder, tmp_path, saved, asked):
    config = ModelConfig(path=str(folder), device="cpu")
    save(attach(load(config), saved, 0), tmp_path / "tuned")
    with pytest.raises(ModelError, match="with these settings"):
        restore(config, asked, tmp_path / "tuned")


@pytest.mark.parametrize("name", ["tuned.safetensors", "method.json"])
def test_damaged_weights_are_noticed(folder, tmp_path, name):
    config = ModelConfig(path=str(folder), device="cpu")
    save(attach(load(config), BITFIT, 0), tmp_path / "tuned")
    first = weights_digest(tmp_path / "tuned")
    path = tmp_path / "tuned" / name
    path.write_bytes(path.read_bytes()[: -len(path.read_bytes()) // 2])
    assert weights_digest(tmp_path / "tuned") != first
    with pytest.raises(ModelError, match="cannot be loaded"):
        restore(config, BITFIT, tmp_path / "tuned")


@pytest.mark.parametrize("method", [HEAD, BITFIT, ADAPTERS], ids=lambda m: m.kind)
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_a_copy_is_tuned_and_switched_on_its_own(make_model, family, method):
    untuned = make_model(family)
    model = nudged(attach(fresh(untuned), method, 0))
    other = copy.deepcopy(model)
    expected = logits(model)
    assert torch.equal(logits(other), expected)
    nudged(other)
    assert not torch.equal(logits(other), expected) and torch.equal(logits(model), expected)
    with model.base().active():
        assert not torch.equal(logits(other), logits(untuned))
    assert torch.equal(logits(other.base()), logits(untuned))


def test_the_switch_goes_back_after_an_error(make_model):
    for method in (HEAD, BITFIT, ADAPTERS, PROMPT):
        model = nudged(attach(fresh(make_model("llama")), method, 0))
        expected = logits(model)
        with pytest.raises(ZeroDivisionError), model.base().active():
            raise ZeroDivisionError
        assert torch.equal(logits(model), expected)


def test_a_tuned_head_is_untied_from_the_embedding_for_good(make_model, tmp_path):
    model = nudged(attach(fresh(make_model("gpt2")), HEAD, 0))
    head, embedding = model.module.get_output_embeddings(), model.module.get_input_embeddings()
    assert head.weight is not embedding.weight and not torch.equal(head.weight, embedding.weight)
    model.module.save_pretrained(tmp_path)
    again = transformers.GPT2LMHeadModel.from_pretrained(tmp_path)
    assert torch.equal(again(input_ids=IDS).logits, logits(model))


def test_bitfit_uses_the_biases_there_are_and_makes_some_only_where_there_are_none(make_model):
    def tuned(family):
        module = attach(fresh(make_model(family)), BITFIT, 0).module
        return {n.split(".", 2)[-1] for n, p in module.named_parameters() if p.requires_grad}

    assert tuned("qwen2") == {f"{i}.self_attn.{n}_proj.bias" for i in (0, 1) for n in "qkv"}
    mlp = [f"mlp.{n}_proj" for n in ("gate", "up", "down")]
    linear = [*(f"self_attn.{n}_proj" for n in "qkvo"), *mlp]
    assert tuned("llama") == {f"{i}.{name}.bias" for i in (0, 1) for name in linear}
    assert any("layernorm" in name for name in tuned("gpt_neox"))


@pytest.mark.parametrize(
    ("family", "scaled", "feedforward"),
    [
        ("gpt2", {"attn.c_attn", "mlp.c_proj"}, {"mlp.c_proj"}),
        ("gpt_neox", {"attention.query_key_value", "mlp.dense_4h_to_h"}, {"mlp.dense_4h_to_h"}),
        ("opt", {"self_attn.k_proj", "self_attn.v_proj", "fc2"}, {"fc2"}),
        ("gemma2", {"self_attn.k_proj", "self_attn.v_proj", "mlp.down_proj"}, {"mlp.down_proj"}),
    ],
)
def test_ia3_scales_keys_values_and_activations(make_model, family, scaled, feedforward):
    config = attach(fresh(make_model(family)), MethodConfig(kind="ia3"), 0).module.active_peft_config
    assert (set(config.target_modules), set(config.feedforward_modules)) == (scaled, feedforward)


@pytest.mark.parametrize("family", ["gpt2", "opt"])
def test_an_adapter_is_what_the_paper_says(make_model, family):
    untuned = make_model(family)
    model = nudged(attach(fresh(untuned), MethodConfig(kind="adapters", bottleneck=4), 0))
    adapters = list(model.module.sordino_tuning.at)
    names = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "opt": ("self_attn.out_proj", "fc2")}[family]
    outputs = [n for n, _ in untuned.module.named_modules() if n.endswith(names)]
    assert len(adapters) == len(outputs) == 4
    plain = fresh(untuned).module
    for name, a in zip(outputs, adapters, strict=True):

        def adapted(module, args, x, a=a):
            inner = torch.nn.functional.gelu(x @ a.down.weight.T + a.down.bias)
            return x + inner @ a.up.weight.T + a.up.bias

        plain.get_submodule(name).register_forward_hook(adapted)
    torch.testing.assert_close(plain(input_ids=IDS).logits, logits(model), rtol=0, atol=1e-4)


@pytest.mark.parametrize("family", ["gpt2", "llama"])
@pytest.mark.parametrize("variant", ["plain", "rslora", "dora"])
def test_lora_is_what_the_papers_say(make_model, family, variant):
    untuned = make_model(family)
    model = nudged(attach(fresh(untuned), MethodConfig(rank=4, alpha=6.0, variant=variant), 0))
    plain = fresh(untuned).module
    for name, found in model.module.get_base_model().named_modules():
        if not hasattr(found, "lora_A"):
            continue
        weight = plain.get_submodule(name).weight
        transposed = family == "gpt2"
        old = weight.detach().T if transposed else weight.detach()
        change = found.lora_B["default"].weight @ found.lora_A["default"].weight
        new = old + change * (6.0 / 4**0.5 if variant == "rslora" else 6.0 / 4)
        if variant == "dora":
            magnitude = found.lora_magnitude_vector["default"].weight
            new = new * (magnitude / new.norm(dim=1))[:, None]
        with torch.no_grad():
            weight.copy_(new.T if transposed else new)
    torch.testing.assert_close(plain(input_ids=IDS).logits, logits(model), rtol=0, atol=2e-4)


def test_settings_are_written_in_one_order(make_model, tmp_path):
    for kind in ("ia3", "adapters", "prompt"):
        for name in "ab":
            save(attach(fresh(make_model("llama")), MethodConfig(kind=kind), 0), tmp_path / kind / name)
        assert weights_digest(tmp_path / kind / "a") == weights_digest(tmp_path / kind / "b")
    assert json.loads((tmp_path / "adapters" / "a" / "method.json").read_text()) == {
        "bottleneck": 64, "format": 1, "kind": "adapters",
    }  # fmt: skip


@pytest.mark.parametrize("method", [BITFIT, PREFIX], ids=["bitfit", "prefix"])
def test_an_interrupted_run_goes_on_with_the_same_weights(make_model, tmp_path, method):
    from sordino.train.checkpoint import trainable
    from sordino.train.loop import train

    tokens, config = some_tokens(8), TrainConfig(epochs=2, batch_size=4, learning_rate=0.01, checkpoint_every=1)
    whole = attach(fresh(make_model("llama")), method, 0)
    tune(tmp_path / "whole", whole, tokens, config)
    run = new_run(tmp_path / "cut")

    def stop(progress, steps):
        if progress.step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(run, attach(fresh(make_model("llama")), method, 0), (tokens, []), config, seed=3, monitor=stop)
    model = attach(fresh(make_model("llama")), method, 0)
    train(run, model, (tokens, []), config, seed=3)
    for name, value in trainable(whole.module).items():
        assert torch.equal(trainable(model.module)[name], value), name


def test_no_setting_that_came_with_a_model_bends_greedy_decoding(make_model):
    model = fresh(make_model("llama"))
    prefix = np.arange(3, 9, dtype=np.int32)
    expected = greedy(model, [prefix], [6])[0]
    model.module.generation_config.repetition_penalty = 50.0
    model.module.generation_config.suppress_tokens = expected.tolist()
    assert greedy(model, [prefix], [6])[0].tolist() == expected.tolist()


def test_relative_positions_are_read_whole(tokenizer):
    """ALiBi knows nothing of the positions that a tree gives its tokens."""
    torch.manual_seed(0)
    config = transformers.BloomConfig(vocab_size=2048, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2)
    model = Model(module=transformers.BloomForCausalLM(config).eval(), tokenizer=tokenizer, config=ModelConfig())
    prefix, paths = np.arange(3, 9), np.array([[5, 6], [5, 7], [8, 6]])
    with model.active() as module:
        following = Continuation(module, prefix, model.device)
        found = following.logprob(paths, np.arange(3), np.full(3, 9))
        rows = torch.from_numpy(np.concatenate([np.tile(prefix, (3, 1)), paths], axis=1))
        expected = torch.log_softmax(module(input_ids=rows).logits[:, -1], -1)[:, 9]
    assert not following.shares
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
