"""The mean of adapters as one adapter, against dense matrices and against PEFT."""

import json
import math

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from sordino.errors import ModelError
from sordino.train.shard_merge import linked, merged, tensors_of


def adapter(folder, seed, *, rank=3, rslora=False, alpha=5.0, names=("x",), **more):
    rng = np.random.default_rng(seed)
    tensors = {}
    for name in names:
        tensors[f"base_model.model.{name}.lora_A.weight"] = rng.normal(size=(rank, 7)).astype(np.float32)
        tensors[f"base_model.model.{name}.lora_B.weight"] = rng.normal(size=(6, rank)).astype(np.float32)
    folder.mkdir()
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    said = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "use_rslora": rslora, "target_modules": list(names)}
    (folder / "adapter_config.json").write_text(json.dumps({**said, **more}))
    return folder


def update(folder, name="x"):
    said, tensors = json.loads((folder / "adapter_config.json").read_text()), tensors_of(folder)
    a, b = (tensors[f"base_model.model.{name}.lora_{f}.weight"].astype(np.float64) for f in "AB")
    return said["lora_alpha"] / (math.sqrt(said["r"]) if said["use_rslora"] else said["r"]) * b @ a


@pytest.mark.parametrize("rslora", [False, True])
def test_the_update_is_the_mean_of_the_updates(tmp_path, rslora):
    weights = (0.5, 0.3, 0.2)
    parts = [adapter(tmp_path / str(i), i, rslora=rslora, names=("x", "y")) for i in range(3)]
    (tmp_path / "mean").mkdir()
    merged(list(zip(parts, weights, strict=True)), tmp_path / "mean")
    assert json.loads((tmp_path / "mean" / "adapter_config.json").read_text())["r"] == 9
    for name in ("x", "y"):
        wanted = sum(w * update(p, name) for w, p in zip(weights, parts, strict=True))
        np.testing.assert_allclose(update(tmp_path / "mean", name), wanted, rtol=0, atol=1e-6 * np.abs(wanted).max())


@pytest.mark.parametrize("variant", ["plain", "rslora"])
@pytest.mark.parametrize("shape", ["llama", "gpt2"])
def test_peft_reads_it_as_the_mean(make_model, tmp_path, shape, variant):
    """GPT-2 keeps its linear layers transposed."""
    from peft import PeftModel, set_peft_model_state_dict

    from sordino.config import MethodConfig
    from sordino.model import attach
    from sordino.model.loading import quiet
    from sordino.train.shard_adapters import save_adapter

    method = MethodConfig(rank=4, alpha=8.0, variant=variant)
    torch.manual_seed(0)
    parts = []
    for number in range(3):
        model = attach(make_model(shape), method, 0)
        random = {n: 0.1 * torch.randn_like(p) for n, p in model.module.named_parameters() if p.requires_grad}
        set_peft_model_state_dict(model.module, {n.replace(".default.", "."): p for n, p in random.items()})
        folder = tmp_path / str(number)
        folder.mkdir()
        save_adapter(model, folder)
        parts.append(folder)
    weights = (0.6, 0.3, 0.1)
    (tmp_path / "mean").mkdir()
    merged(list(zip(parts, weights, strict=True)), tmp_path / "mean")

    def changed(folder):
        with quiet():
            whole = PeftModel.from_pretrained(make_model(shape).module, str(folder)).merge_and_unload()
        before = make_model(shape).module.state_dict()
        return {n: (v.double() - before[n].double()) for n, v in whole.state_dict().items()}

    each, mean, moved = [changed(p) for p in parts], changed(tmp_path / "mean"), 0
    for name, value in mean.items():
        wanted = sum(w * found[name] for w, found in zip(weights, each, strict=True))
        moved += bool(wanted.abs().max() > 1e-3)
        torch.testing.assert_close(value, wanted, rtol=0, atol=1e-6)
    assert moved > 3


@pytest.mark.parametrize(
    ("more", "said"),
    [({"use_dora": True}, "use_dora"), ({"peft_type": "IA3"}, "IA3"), ({"modules_to_save": ["head"]}, "modules_to")],
)
def test_what_is_no_product_of_two_factors_is_refused(tmp_path, more, said):
    adapter(tmp_path / "a", 0, **more)
    with pytest.raises(ModelError, match=said):
        merged([(tmp_path / "a", 1.0)], tmp_path)


@pytest.mark.parametrize("other", [{"rank": 4}, {"alpha": 1.0}, {"rslora": True}, {"names": ("y",)}])
def test_adapters_of_different_shapes_or_scales_have_no_mean(tmp_path, other):
    parts = [adapter(tmp_path / "a", 0), adapter(tmp_path / "b", 0, **other)]
    with pytest.raises(ModelError, match="no mean"):
        merged([(p, 0.5) for p in parts], tmp_path)


def test_other_tensors_and_none_and_damaged_ones_are_refused(tmp_path):
    with pytest.raises(ModelError, match="no adapter"):
        merged([], tmp_path)
    folder = adapter(tmp_path / "a", 0)
    save_file({"x.bias": np.ones(3, np.float32)}, folder / "adapter_model.safetensors")
    with pytest.raises(ModelError, match="no factor"):
        merged([(folder, 1.0)], tmp_path)
    (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(ModelError, match="cannot be read"):
        merged([(folder, 1.0)], tmp_path)
    (folder / "adapter_config.json").write_text("{")
    with pytest.raises(ModelError, match="adapter_config"):
        merged([(folder, 1.0)], tmp_path)


def test_a_file_is_linked_or_copied(tmp_path, monkeypatch):
    (tmp_path / "a").write_text("x")
    linked(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").samefile(tmp_path / "a")

    def refused(*paths):
        raise OSError("another disk")

    monkeypatch.setattr("os.link", refused)
    linked(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "x"
    assert not (tmp_path / "c").samefile(tmp_path / "a")
