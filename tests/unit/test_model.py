"""The model handle: what is loaded and what refused, adapters that leave the base alone, digests that mean it."""

import json
import shutil

import numpy as np
import pytest
import torch
from train_fixtures import fresh, some_tokens, tune

from sordino.config import MethodConfig, ModelConfig, TrainConfig
from sordino.errors import ConfigError, ModelError
from sordino.evidence import digest_files
from sordino.model import (
    attach,
    count_parameters,
    load,
    load_tokenizer,
    pick_device,
    resolve,
    restore,
    save,
    tokenizer_digest,
    tokenizer_digest_of,
    weights_digest,
)

LORA, FULL = MethodConfig(rank=2), MethodConfig(kind="full")
IDS = torch.arange(3, 23)[None]
SHAPES = ("llama", "gpt2", "gpt_neox")


def logits(model):
    with model.active() as module:
        return module(input_ids=IDS).logits.clone()


@pytest.fixture
def folder(make_model, tmp_path):
    """A saved model that tests may damage."""
    model = make_model("llama")
    save(model, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("shape", SHAPES)
def test_lora_leaves_the_base_alone(make_model, tmp_path, shape):
    untuned = make_model(shape)
    model = attach(fresh(untuned), LORA, 0)
    before = {k: v.clone() for k, v in untuned.module.state_dict().items()}
    tune(tmp_path, model, some_tokens(16), TrainConfig(epochs=2, batch_size=4, learning_rate=0.05))
    state = {
        k.removeprefix("base_model.model.").replace(".base_layer.", "."): v
        for k, v in model.module.state_dict().items()
        if "lora_" not in k
    }
    assert state.keys() == before.keys()
    assert all(torch.equal(state[k], before[k]) for k in before)
    assert torch.equal(logits(model.base()), logits(untuned))
    assert model.base().digest() == untuned.digest()
    assert (logits(model) - logits(untuned)).abs().max() > 1e-2
    assert model.digest() != untuned.digest()


@pytest.mark.parametrize("shape", SHAPES)
def test_a_new_adapter_changes_nothing(make_model, shape):
    untuned = make_model(shape)
    torch.testing.assert_close(logits(attach(fresh(untuned), LORA, 0)), logits(untuned), rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_saved_and_restored_is_the_same_model(folder, tmp_path, method):
    config = ModelConfig(path=str(folder), device="cpu")
    untuned = load(config)
    model = attach(load(config), method, 0)
    tune(tmp_path, model, some_tokens(8), TrainConfig(epochs=1, batch_size=4, learning_rate=0.05))
    save(model, tmp_path / "tuned")
    assert not (tmp_path / "tuned" / "README.md").exists()
    again = restore(config, method, tmp_path / "tuned")
    assert torch.equal(logits(again), logits(model))
    assert again.digest() == model.digest() != untuned.digest()
    assert torch.equal(logits(again.base()), logits(untuned))
    assert again.base().digest() == untuned.digest()
    assert again.base().base().digest() == untuned.digest()


def test_saving_twice_writes_the_same_bytes(make_model, tmp_path):
    model = attach(fresh(make_model("llama")), LORA, 0)
    for name in "ab":
        save(model, tmp_path / name)
    assert digest_files((tmp_path / "a").iterdir()) == digest_files((tmp_path / "b").iterdir())
    targets = json.loads((tmp_path / "a" / "adapter_config.json").read_text())["target_modules"]
    assert targets == sorted(targets)


def test_the_seed_decides_the_adapter(make_model):
    digests = [attach(fresh(make_model("llama")), LORA, seed).digest() for seed in (0, 0, 1)]
    assert digests[0] == digests[1] != digests[2]


def test_active_is_evaluation_without_gradients_and_gives_the_mode_back(make_model):
    model = attach(fresh(make_model("llama")), LORA, 0)
    model.module.train()
    with model.base().active() as module:
        assert not module.training
        assert not module(input_ids=IDS).logits.requires_grad
    assert model.module.training


def test_digests_change_exactly_when_weights_do(make_model):
    model = fresh(make_model("llama"))
    first = model.digest()
    assert fresh(model).digest() == first
    parameter = model.module.model.layers[1].mlp.up_proj.weight
    with torch.no_grad():
        value = parameter[3, 5].clone()
        parameter[3, 5] = float(np.nextafter(np.float32(value), np.float32(np.inf)))
        assert model.digest() != first
        parameter[3, 5] = value
    assert model.digest() == first
    model.module.half()
    assert model.digest() != first


def test_a_digest_takes_scalars_and_other_types(make_model):
    model = fresh(make_model("llama"))
    model.module.register_buffer("scale", torch.tensor(2.0))
    model.module.register_buffer("flag", torch.tensor([True]))
    first = model.digest()
    model.module.scale.fill_(3.0)
    assert model.digest() != first


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_the_digest_of_a_folder_sees_weights_and_how_they_are_used(folder, name):
    first = weights_digest(folder)
    (folder / "notes.txt").write_text("nothing to do with it")
    assert weights_digest(folder) == first
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[:-2] + bytes([data[-2] ^ 1, data[-1]]))
    assert weights_digest(folder) != first


def test_the_digest_of_an_adapter_sees_its_scale(make_model, tmp_path):
    save(attach(fresh(make_model("llama")), LORA, 0), tmp_path)
    first, path = weights_digest(tmp_path), tmp_path / "adapter_config.json"
    path.write_text(path.read_text().replace('"lora_alpha": 32', '"lora_alpha": 64'))
    assert weights_digest(tmp_path) != first


def test_the_tokenizer_has_a_digest_of_its_own(make_model, tokenizer):
    model = make_model("llama")
    first = tokenizer_digest(model)
    other = load_tokenizer(ModelConfig())
    other.add_tokens(["<new>"])
    assert tokenizer_digest(type(model)(module=None, tokenizer=other, config=ModelConfig())) != first


@pytest.mark.parametrize("targets", [("q_proj", "v_porj"), "v_porj"])
def test_targets_that_name_no_module(make_model, targets):
    with pytest.raises(ConfigError, match="'v_porj'") as error:
        attach(fresh(make_model("llama")), MethodConfig(targets=targets), 0)
    assert "v_proj" in error.value.hint


def test_targets_that_cannot_have_an_adapter(make_model):
    with pytest.raises(ConfigError, match=r"method.targets is .*mlp") as error:
        attach(fresh(make_model("llama")), MethodConfig(targets=("mlp",)), 0)
    assert "q_proj" in error.value.hint


def test_targets_choose_what_is_trained(make_model):
    model = attach(fresh(make_model("llama")), MethodConfig(targets=("q_proj",)), 0)
    tuned = [name for name, p in model.module.named_parameters() if p.requires_grad]
    assert len(tuned) == 4 and all(".q_proj.lora_" in name for name in tuned)


@pytest.mark.parametrize("method", [LORA, FULL], ids=["lora", "full"])
def test_parameters_are_counted_without_weights(folder, method):
    model = attach(load(ModelConfig(path=str(folder), device="cpu")), method, 0)
    (folder / "model.safetensors").write_bytes(b"poison")
    counted = count_parameters(ModelConfig(path=str(folder)), method)
    sizes = [(p.numel(), p.requires_grad) for p in model.module.parameters()]
    assert counted == {
        "parameters": sum(n for n, _ in sizes), "trainable": sum(n for n, on in sizes if on), "context": 64,
    }  # fmt: skip


def test_pickled_weights_are_never_opened(folder, monkeypatch):
    (folder / "model.safetensors").unlink()
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: pytest.fail("a pickle was opened"))
    with pytest.raises(ModelError, match="no weights"):
        load(ModelConfig(path=str(folder), device="cpu"))
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/pwned'\ntR.")
    with pytest.raises(ModelError, match=r"pickle \(pytorch_model.bin\), which can run code") as error:
        load(ModelConfig(path=str(folder), device="cpu"))
    assert "safetensors" in error.value.hint


def test_code_that_comes_with_a_model_is_refused(folder, tmp_path):
    marker = tmp_path / "ran"
    (folder / "evil.py").write_text(f"open({str(marker)!r}, 'w')\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {
        "model_type": "evil", "architectures": ["Evil"],
        "auto_map": {"AutoConfig": "evil.EvilConfig", "AutoModelForCausalLM": "evil.Evil"},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load(ModelConfig(path=str(folder), device="cpu"))
    assert "remote_code" in error.value.hint
    assert not marker.exists()


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (lambda f: (f / "config.json").write_text("{"), "cannot be loaded"),
        (lambda f: (f / "config.json").unlink(), "cannot be loaded"),
        (lambda f: (f / "model.safetensors").write_bytes(b"not weights at all"), "cannot be loaded"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "cannot be loaded"),
        (lambda f: shutil.rmtree(f), "There is no model folder"),
    ],
    ids=["config damaged", "config missing", "weights damaged", "tokenizer damaged", "nothing"],
)
def test_damaged_models_are_expected_errors(folder, damage, text):
    damage(folder)
    with pytest.raises(ModelError, match=text) as error:
        load(ModelConfig(path=str(folder), device="cpu"))
    assert str(folder) in error.value.message and error.value.hint


def test_names_of_models(tmp_path):
    assert resolve("owner/name") == "owner/name"
    assert resolve("sordino-tiny").endswith("tiny")
    (tmp_path / "file.bin").touch()
    with pytest.raises(ModelError, match="is a file, not a model folder"):
        resolve(str(tmp_path / "file.bin"))
    for name in ("./nowhere", "/nowhere", "a/b/c"):
        with pytest.raises(ModelError, match="There is no model folder"):
            resolve(name)


def test_devices():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device("auto").type in ("cpu", "cuda", "mps")
    for name in ("cuda:99", "nonsense"):
        with pytest.raises(ConfigError, match=f"model.device is '{name}'"):
            pick_device(name)


def test_a_tokenizer_without_padding_gets_one(folder):
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings.pop("pad_token", None)
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = load_tokenizer(ModelConfig(path=str(folder)))
    assert tokenizer.pad_token_id is not None


def test_padding_and_truncation_that_a_tokenizer_came_with_are_no_part_of_its_digest():
    tokenizer = load_tokenizer(ModelConfig())
    plain = tokenizer_digest_of(tokenizer)
    tokenizer.backend_tokenizer.enable_truncation(8, stride=2)
    tokenizer.backend_tokenizer.enable_padding(length=12)
    before = tokenizer.backend_tokenizer.to_str()
    assert tokenizer_digest_of(tokenizer) == plain
    assert tokenizer.backend_tokenizer.to_str() == before  # and they are left as they were
