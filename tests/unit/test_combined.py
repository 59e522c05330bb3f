"""Several adapters read as one model: arithmetic by brute force on separate models, through every way of reading."""

import dataclasses
import json
import math
import shutil

import numpy as np
import pytest
import torch
from generate_fixtures import by_forwards, family, some_requests
from train_fixtures import some_tokens

from sordino.collect import Head, collect
from sordino.config import MethodConfig
from sordino.continuation import Continuation
from sordino.errors import ConfigError, ModelError
from sordino.generate import generate
from sordino.generate.probe import Probe
from sordino.model import attach, restore, save, save_combined, weights_digest
from sordino.model.combined import restore_combined
from sordino.model.methods.rules import uld, whp
from sordino.serialize import Tokens
from sordino.train.objective import Objective

LORA = MethodConfig(kind="lora", rank=2, alpha=4, targets="all-linear")
RULES = {
    "ensemble": (("a", "b", "c"), {"weights": {"a": 1, "b": 2, "c": 5}}),
    "whp": (("model", "reinforced"), {"alpha": 0.7}),
    "uld": (("model", "assistant"), {"weight": 0.8, "filter": 0.01}),
}


def _adapters(make, folder, count):
    """Folders with adapters of random weights on the base that `make` makes, and models that have one of them each."""
    folders, models = [], []
    for number in range(count):
        base = make()
        mamba = base.module.config.model_type == "mamba"  # whose other layers take no adapters
        model = attach(base, dataclasses.replace(LORA, targets=("in_proj",)) if mamba else LORA, seed=number)
        generator = torch.Generator().manual_seed(number + 1)
        for name, parameter in model.module.named_parameters():
            if "lora_" in name:
                parameter.data.normal_(std=0.3, generator=generator)
        save(model, folder / f"adapter{number}")
        folders.append(folder / f"adapter{number}")
        models.append(model)
    return folders, models


@pytest.fixture(params=list(RULES))
def case(request, make_model, tmp_path):
    """A combined model and the separate ones, for every rule."""
    return _case(request.param, lambda: make_model("llama"), tmp_path)


def _case(rule, make, tmp_path):
    parts, settings = RULES[rule]
    folders, models = _adapters(make, tmp_path, len(parts))
    save_combined(tmp_path / "weights", rule, dict(zip(parts, folders, strict=True)), settings)
    combined = restore_combined(make(), tmp_path / "weights")
    return rule, dataclasses.replace(combined, method=LORA), models


def _by_hand(rule, models, ids):
    """Logits (T, V) in double precision, a token and a word of the vocabulary at a time."""
    with torch.no_grad():
        found = [m.module(input_ids=ids[None], use_cache=False).logits[0].double().numpy() for m in models]
    settings = RULES[rule][1]
    if rule == "ensemble":
        weights = [w / 8 for w in settings["weights"].values()]
        shares = [np.exp(z) / np.exp(z).sum(1, keepdims=True) for z in found]
        return np.log(sum(w * p for w, p in zip(weights, shares, strict=True)))
    out, few = found[0].copy(), int(0.01 * found[0].shape[1])
    for row, (z, other) in enumerate(zip(*found, strict=True)):
        order, likeliest, mean = np.argsort(-z), np.exp(z - z.max()), other.mean()
        for v in range(len(z)):
            if rule == "whp":
                out[row, v] = z[v] - 0.7 * max(0.0, other[v] - z[v])
            elif likeliest[v] >= 0.01 or v in order[:few]:
                out[row, v] = z[v] - 0.8 * (other[v] - mean)
    return out


def test_logits_are_the_rule_of_those_of_separate_models(case):
    rule, model, models = case
    ids = torch.arange(12) * 31 % 2048
    with model.active() as module:
        found = module(input_ids=ids[None]).logits[0].double().numpy()
        last = module(input_ids=ids[None], logits_to_keep=1).logits[0].double().numpy()
    np.testing.assert_allclose(found, _by_hand(rule, models, ids), atol=2e-5)
    np.testing.assert_allclose(last, found[-1:], atol=1e-5)


def test_statistics_are_those_of_a_record_at_a_time(case):
    rule, model, models = case
    tokens = some_tokens(6)
    assert Head(model, model.module.eval()).exact
    found = collect(model, tokens)
    wanted = []
    for item in tokens:
        ids = torch.from_numpy(item.ids.astype(np.int64))
        z = _by_hand(rule, models, ids)[:-1]
        logs = z - np.log(np.exp(z).sum(1, keepdims=True))
        wanted.append(logs[np.arange(len(z)), item.ids[1:]])
    np.testing.assert_allclose(found.logprob, np.concatenate(wanted), atol=2e-5)
    after = np.array([5, 9, 40], dtype=np.int32)
    joined = [
        Tokens(ids=np.concatenate([after, t.ids]), target=np.concatenate([[False] * 3, t.target]), text="")
        for t in tokens
    ]
    np.testing.assert_allclose(collect(model, tokens, after=after).logprob, collect(model, joined).logprob, atol=2e-5)


def test_text_is_that_of_a_plain_loop_in_rows_that_are_refilled(case):
    _, model, _ = case
    requests = some_requests(9)
    with model.active() as module:
        assert Probe(module, 20, 2048, model.device).slots(common=False) is not None
    for request, made in zip(requests, generate(model, requests, seed=4, rows=3), strict=True):
        ids, logs = by_forwards(model, request, seed=4)
        assert made.ids.tolist() == ids
        np.testing.assert_allclose(made.logprob, logs, atol=2e-5)


def test_continuations_share_the_cache_of_every_part(case):
    _, model, _ = case
    prefix, paths = np.array([3, 8, 4]), np.array([[1, 2], [1, 3], [7, 2]])
    with model.active() as module:
        shared = Continuation(module, prefix, model.device)
        assert shared.shares
        whole = [module(input_ids=torch.tensor([[*prefix, *path]])).logits[0, -1].log_softmax(-1) for path in paths]
        torch.testing.assert_close(shared.every(paths), torch.stack(whole), atol=2e-5, rtol=1e-4)


def test_losses_pick_what_is_scored(case):
    rule, model, models = case
    from sordino.train.collate import collate

    tokens = some_tokens(3, prompt=True)
    objective = Objective(model)
    assert objective.picks
    with torch.no_grad():
        found = float(objective(collate(tokens, 2, model.device)))
    wanted = 0.0
    for item in tokens:
        z = _by_hand(rule, models, torch.from_numpy(item.ids.astype(np.int64)))[:-1]
        logs = z - np.log(np.exp(z).sum(1, keepdims=True))
        wanted -= logs[np.arange(len(z)), item.ids[1:]][item.target[1:]].sum()
    assert math.isclose(found, wanted, rel_tol=1e-5)


@pytest.mark.parametrize("shape", ["gemma2", "bloom", "mamba", "gpt2", "windowed"])
def test_where_shortcuts_give_other_logits_they_are_not_taken(make_model, tokenizer, tmp_path, shape):
    _, model, models = _case("whp", lambda: family(make_model, tokenizer, shape), tmp_path)
    assert Head(model, model.module.eval()).exact == (shape != "gemma2")
    item = some_tokens(1)[0]
    z = _by_hand("whp", models, torch.from_numpy(item.ids.astype(np.int64)))[:-1]
    logs = (z - np.log(np.exp(z).sum(1, keepdims=True)))[np.arange(len(z)), item.ids[1:]]
    np.testing.assert_allclose(collect(model, [item]).logprob, logs, atol=5e-5)
    for request, made in zip(some_requests(4), generate(model, some_requests(4)), strict=True):
        assert made.ids.tolist() == by_forwards(model, request)[0]


def test_the_base_is_the_base_bit_for_bit(case, make_model):
    _, model, _ = case
    base, ids = make_model("llama"), torch.arange(9)[None]
    assert model.base().digest() == base.digest()
    with model.base().active() as module, base.active() as plain:
        torch.testing.assert_close(module(input_ids=ids).logits, plain(input_ids=ids).logits, rtol=0, atol=0)
    tokens = some_tokens(3)
    np.testing.assert_allclose(collect(model.base(), tokens).logprob, collect(base, tokens).logprob, atol=1e-5)
    assert generate(model.base(), some_requests(3))[2].ids.tolist() == generate(base, some_requests(3))[2].ids.tolist()
    with model.active() as module:
        assert not torch.equal(module(input_ids=ids).logits, base.module(input_ids=ids).logits)
    assert not any(p.requires_grad for p in model.module.parameters())


def test_a_combined_run_is_restored_and_digests_see_parts_and_rule(make_model, tmp_path):
    make_model("llama").module.save_pretrained(tmp_path / "base")
    base = make_model("llama")
    base.tokenizer.save_pretrained(tmp_path / "base")
    config = dataclasses.replace(base.config, path=str(tmp_path / "base"))
    folders, _ = _adapters(lambda: make_model("llama"), tmp_path, 2)
    parts = {"model": folders[0], "reinforced": folders[1]}
    seen, digests = set(), set()
    for number, alpha in enumerate((0.0, 0.5)):
        place = tmp_path / f"weights{number}"
        save_combined(place, "whp", parts, {"alpha": alpha}, base.tokenizer)
        seen.add(weights_digest(place))
        digests.add(restore(config, LORA, place).digest())
    assert len(seen) == len(digests) == 2
    before = weights_digest(place)
    shutil.copyfile(folders[0] / "adapter_model.safetensors", place / "part1" / "adapter_model.safetensors")
    assert weights_digest(place) != before
    model = restore(config, LORA, place)
    assert model.method == LORA and (place / "tokenizer.json").is_file()
    with pytest.raises(ConfigError, match="several adapters"):
        save(model, tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="were not tuned by method full"):
        restore(config, MethodConfig(kind="full"), place)


def test_nothing_that_is_subtracted_leaves_the_model(make_model, tmp_path):
    folders, models = _adapters(lambda: make_model("llama"), tmp_path, 1)
    ids = torch.arange(9)[None]
    wanted = models[0].module(input_ids=ids).logits
    for rule, settings in (("whp", {"alpha": 0}), ("uld", {"weight": 0, "filter": 0.0}), ("ensemble", {})):
        names = {"ensemble": ("only",)}.get(rule) or RULES[rule][0]
        save_combined(tmp_path / rule, rule, dict.fromkeys(names, folders[0]), settings)
        with restore_combined(make_model("llama"), tmp_path / rule).active() as module:
            found = module(input_ids=ids).logits.log_softmax(-1)
        torch.testing.assert_close(found, wanted.log_softmax(-1), atol=1e-5, rtol=1e-5)


def test_a_uniform_assistant_changes_nothing_and_what_is_unlikely_stays():
    z = torch.tensor([[4.0, 3.0, -9.0, -10.0]])
    torch.testing.assert_close(uld(z, torch.full_like(z, 7.0), weight=0.8, filter=0.25), z)
    found = uld(z, torch.tensor([[8.0, 0.0, 0.0, 0.0]]), weight=0.5, filter=0.25)
    torch.testing.assert_close(found, torch.tensor([[4 - 3.0, 3 + 1.0, -9.0, -10.0]]))
    torch.testing.assert_close(
        whp(z, torch.tensor([[5.0, 2.0, -8.0, -10.0]]), alpha=2.0), torch.tensor([[2.0, 3.0, -11.0, -10.0]])
    )


@pytest.mark.parametrize(
    ("rule", "parts", "settings", "message"),
    [
        ("ensembel", ("a",), {}, "ensembel"),
        ("ensemble", (), {}, "no parts"),
        ("ensemble", ("a", "b"), {"weights": {"a": 1}}, "not one a part"),
        ("ensemble", ("a",), {"weights": {"a": 0}}, "one above 0"),
        ("ensemble", ("a",), {"weights": {"a": float("nan")}}, "one above 0"),
        ("ensemble", ("a",), {"alpha": 1}, "no setting 'alpha'"),
        ("whp", ("model", "other"), {"alpha": 1}, "the parts model, other"),
        ("whp", ("model", "reinforced"), {}, "lacks alpha"),
        ("whp", ("model", "reinforced"), {"alpha": -1}, "alpha of rule whp is -1"),
        ("whp", ("model", "reinforced"), {"alpha": True}, "alpha of rule whp is True"),
        ("uld", ("model", "assistant"), {"weight": 1, "filter": 2}, "filter of rule uld is 2"),
    ],
)
def test_what_cannot_be_combined_is_refused(tmp_path, rule, parts, settings, message):
    with pytest.raises(ModelError, match=message):
        save_combined(tmp_path / "w", rule, dict.fromkeys(parts, tmp_path), settings)


def test_damaged_folders_are_expected_errors(make_model, tmp_path):
    folders, _ = _adapters(lambda: make_model("llama"), tmp_path, 1)
    with pytest.raises(ModelError, match="no weights"):
        (tmp_path / "empty").mkdir()
        save_combined(tmp_path / "w", "ensemble", {"a": tmp_path / "empty"}, {})
    save_combined(tmp_path / "w", "ensemble", {"a": folders[0]}, {})
    said = tmp_path / "w" / "combined.json"
    whole = json.loads(said.read_text())
    for wrong, message in (
        ("{", "damaged"), ("{}", "damaged"), (json.dumps(whole | {"format": 2}), "format 2"),
        (json.dumps(whole | {"rule": "x"}), "rule 'x'"),
    ):  # fmt: skip
        said.write_text(wrong)
        with pytest.raises(ModelError, match=message):
            restore_combined(make_model("llama"), tmp_path / "w")
    said.write_text(json.dumps(whole))
    (tmp_path / "w" / "part0" / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelError, match="no weights"):
        restore_combined(make_model("llama"), tmp_path / "w")
