"""Every method of tuning on every family of models: what moves, what stays, and what is found again."""

import copy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from brute_statistics import NAMES, brute, near
from train_fixtures import some_tokens, tune

from sordino.collect import Head, collect
from sordino.config import MethodConfig, ModelConfig, TrainConfig
from sordino.continuation import Continuation
from sordino.generate import greedy
from sordino.model import Model, attach, count_parameters, load, restore, save, weights_digest
from sordino.train.loop import validation_loss

FAMILIES = ("gpt2", "llama", "qwen2", "mistral", "gpt_neox", "opt", "gemma", "gemma2")
VIRTUAL = 6
METHODS = {
    "full": MethodConfig(kind="full"),
    "lora": MethodConfig(rank=2),
    "rslora": MethodConfig(rank=2, variant="rslora"),
    "dora": MethodConfig(rank=2, variant="dora"),
    "ffa": MethodConfig(rank=2, variant="ffa"),
    "prefix": MethodConfig(kind="prefix", virtual_tokens=VIRTUAL),
    "prompt": MethodConfig(kind="prompt", virtual_tokens=VIRTUAL),
    "ia3": MethodConfig(kind="ia3"),
    "bitfit": MethodConfig(kind="bitfit"),
    "head": MethodConfig(kind="head"),
    "adapters": MethodConfig(kind="adapters", bottleneck=4),
}
# What a method is allowed to train, as a part of a parameter's name; the others train all or nothing else.
TRAINED = {
    "lora": "lora_", "rslora": "lora_", "dora": "lora_", "ffa": "lora_B",
    "prefix": "prompt_encoder.", "prompt": "prompt_encoder.", "ia3": "ia3_", "bitfit": "bias",
    "adapters": "sordino_tuning.",
}  # fmt: skip
# Every method where projections are apart (Llama) and where they are one transposed matrix (GPT-2), for they are named
# and found by layout; elsewhere the methods that have to know a layout. All other pairs are tried with the slow tests.
ALWAYS = {
    "gpt2": tuple(METHODS), "llama": tuple(METHODS), "gpt_neox": ("lora", "prefix", "ia3", "bitfit", "adapters"),
    "opt": ("full", "prefix", "ia3", "adapters"), "gemma2": ("lora", "prompt", "adapters"),
    "qwen2": ("lora", "bitfit"), "mistral": ("full", "prefix"), "gemma": ("prompt", "head"),
}  # fmt: skip
PAIRS = [pytest.param((f, m), marks=() if m in ALWAYS[f] else pytest.mark.slow) for f in FAMILIES for m in METHODS]
TRAINING = TrainConfig(epochs=4, batch_size=8, learning_rate=0.02, warmup=0.0, schedule="constant")
TOKENS = some_tokens(8)
IDS = torch.arange(3, 43).reshape(2, 20)


def logits(model: Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with model.active() as module:
        return module(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.clone()


def reference(model: Model, ids: torch.Tensor) -> torch.Tensor:
    """Logits (T, V) of one record, virtual tokens put before it by hand."""
    kind = model.method.kind if model.tuned and model.method else ""
    with model.active() as module:
        if kind not in ("prefix", "prompt"):
            return module(input_ids=ids[None]).logits[0]
        inner, learnt = module.get_base_model(), module.prompt_encoder["default"].embedding.weight
        if kind == "prompt":
            embedded = torch.cat([learnt, inner.get_input_embeddings()(ids)])[None]
            return inner(inputs_embeds=embedded, use_cache=False).logits[0, VIRTUAL:]
        return inner(input_ids=ids[None], past_key_values=prefix_cache(inner, learnt)).logits[0]


def prefix_cache(inner: Any, learnt: torch.Tensor) -> Any:
    from transformers import DynamicCache

    config, cache = inner.config, DynamicCache()
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    layers = learnt.view(VIRTUAL, config.num_hidden_layers, 2, heads, -1).permute(1, 2, 3, 0, 4)
    for number, (keys, values) in enumerate(layers):
        cache.update(keys[None], values[None], number)
    return cache


@dataclass(frozen=True)
class Case:
    """A model before and after it was tuned a little, and as it was restored."""

    family: str
    name: str
    folder: Path
    untuned: Model
    frozen: dict[str, torch.Tensor]
    started: dict[str, torch.Tensor]
    losses: tuple[float, float]
    model: Model
    restored: Model

    @property
    def method(self) -> MethodConfig:
        return METHODS[self.name]

    @property
    def readers(self) -> list[Model]:
        """The models whose way of reading differs: also the base, where virtual tokens must be gone."""
        return [self.restored, self.restored.base()] if self.name in ("prefix", "prompt") else [self.restored]


def values(model: Model, trained: bool) -> dict[str, torch.Tensor]:
    return {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad == trained}


@pytest.fixture(scope="module")
def sources(make_model, tokenizer, tmp_path_factory):
    """Each family as loaded from a folder, to be read only; biases and norms are such that they matter."""
    folder, made = tmp_path_factory.mktemp("families"), {}
    with pytest.MonkeyPatch.context() as patch:
        # Reading a tokenizer takes longer than all else here, and it is the same for all.
        patch.setattr("sordino.model.loading.load_tokenizer", lambda *args: tokenizer)
        for family in FAMILIES:
            model = make_model(family)
            generator = torch.Generator().manual_seed(1)
            with torch.no_grad():
                for parameter in model.module.parameters():
                    if parameter.ndim == 1:
                        parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.1)
            save(model, folder / family)
            made[family] = load(ModelConfig(path=str(folder / family), device="cpu"))
        yield made


def copied(model: Model) -> Model:
    return replace(model, module=copy.deepcopy(model.module))


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def case(request, sources, tmp_path_factory):
    family, name = request.param
    folder, untuned = tmp_path_factory.mktemp("case"), sources[family]
    model = attach(copied(untuned), METHODS[name], 0)
    frozen, started = values(model, False), values(model, True)
    before = validation_loss(model, TOKENS, 8)
    tune(folder, model, TOKENS, TRAINING)
    after = validation_loss(model, TOKENS, 8)
    save(model, folder / "tuned")
    restored = restore(untuned.config, METHODS[name], folder / "tuned")
    return Case(family, name, folder / "tuned", untuned, frozen, started, (before, after), model, restored)


def test_it_learns_and_moves_only_what_it_may(case):
    assert case.losses[1] < case.losses[0] - 0.01
    assert values(case.model, True).keys() == case.started.keys() != set()
    for name, value in values(case.model, True).items():
        assert not torch.equal(value, case.started[name]), name
        assert TRAINED.get(case.name, "") in name
    frozen = values(case.model, False)
    assert frozen.keys() == case.frozen.keys()
    assert all(torch.equal(frozen[name], value) for name, value in case.frozen.items())
    if case.name == "head":
        head = case.model.module.get_output_embeddings().weight
        assert set(case.started) == {n for n, p in case.model.module.named_parameters() if p is head}


def test_what_is_saved_is_found_again(case):
    assert torch.equal(logits(case.restored), logits(case.model))
    assert case.restored.digest() == case.model.digest() != case.untuned.digest()
    assert (logits(case.restored) - logits(case.untuned)).abs().max() > 1e-2
    assert not (case.folder / "README.md").exists()
    if case.family == "gpt2":
        save(case.restored, case.folder.parent / "again")
        assert weights_digest(case.folder.parent / "again") == weights_digest(case.folder)
    if case.method.kind not in ("full", "head"):
        # Nothing of the size of an embedding went along.
        assert sum(p.stat().st_size for p in case.folder.glob("*.safetensors")) < 64_000


def test_the_base_is_the_model_as_it_was_loaded(case):
    base, tuned = case.restored.base(), logits(case.model)
    assert torch.equal(logits(base), logits(case.untuned))
    assert base.digest() == base.base().digest() == case.untuned.digest()
    assert base.context == case.restored.context
    # And back again; and the one that was trained here has the same base as the one read from disk.
    assert torch.equal(logits(case.restored), tuned)
    assert case.model.base().digest() == case.untuned.digest()


def test_parameters_are_counted_without_weights(case):
    sizes = [(p.numel(), p.requires_grad) for p in case.model.module.parameters()]
    virtual = VIRTUAL if case.name in ("prefix", "prompt") else 0
    assert count_parameters(case.untuned.config, case.method) == {
        "parameters": sum(n for n, _ in sizes), "trainable": sum(n for n, on in sizes if on), "context": 64 - virtual,
    }  # fmt: skip
    assert case.model.context == case.restored.context == 64 - virtual


def test_the_fused_pass_equals_a_record_at_a_time(case):
    tokens = some_tokens(4, seed=1, prompt=True)
    for model in case.readers:
        columns = []
        for item in tokens:
            where, ids = np.flatnonzero(item.target), torch.from_numpy(item.ids.astype(np.int64))
            columns.append(brute(reference(model, ids)[where - 1], ids[where]))
        with model.active() as module:
            # The head is split off; only Gemma 2 caps its logits behind it.
            assert Head(model, module).exact == (case.family != "gemma2")
        made = collect(model, tokens)
        near([getattr(made, n) for n in NAMES], [np.concatenate(c) for c in zip(*columns, strict=True)], 5e-5)


def by_forwards(model: Model, prefix: np.ndarray, length: int) -> list[int]:
    ids = torch.from_numpy(prefix.astype(np.int64))
    for _ in range(length):
        ids = torch.cat([ids, reference(model, ids)[-1].argmax()[None]])
    return ids[len(prefix) :].tolist()


def test_greedy_decoding_is_that_of_plain_forwards(case):
    prefixes = [TOKENS[0].ids[:3], TOKENS[1].ids[:3], TOKENS[2].ids[:4]]
    for model in case.readers:
        made = greedy(model, prefixes, [4, 2, 2])
        expected = [by_forwards(model, p, n) for p, n in zip(prefixes, [4, 2, 2], strict=True)]
        assert [m.tolist() for m in made] == expected


def continued(model: Model, prefix: np.ndarray, paths: np.ndarray, *, shares: bool) -> None:
    """Holds `Continuation` against plain forwards, and says whether it shares what paths have in common."""
    parent, token = np.repeat(np.arange(len(paths)), 3), np.tile(np.array([5, 700, 2000]), len(paths))
    expected = []
    for path in paths:
        ids = torch.from_numpy(np.concatenate([prefix, path]).astype(np.int64))
        expected.append(torch.log_softmax(reference(model, ids)[-1].double(), -1)[[5, 700, 2000]].numpy())
    with model.active() as module:
        following = Continuation(module, prefix, model.device)
        found = following.logprob(paths, parent, token)
    assert following.shares == shares
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-4, atol=1e-4)


PATHS = np.array([[3, 9, 4], [3, 9, 7], [3, 11, 4], [800, 9, 4]])


def test_continuations_are_those_of_plain_forwards(case):
    prefix = TOKENS[3].ids[:4]
    for model in case.readers:
        continued(model, prefix, PATHS, shares=True)


@pytest.mark.parametrize("name", ["lora", "prefix", "prompt"])
@pytest.mark.parametrize("family", ["mistral", "gemma2"])
def test_a_window_on_attention_is_kept(make_model, family, name):
    model = make_model(family)
    model.module.config.sliding_window = 8
    tuned = attach(model, METHODS[name], 0)
    # What stands behind the window must not be seen, whether or not keys and values are shared.
    continued(tuned, TOKENS[4].ids[:7], PATHS, shares=False)
    prefixes = [TOKENS[4].ids[:7], TOKENS[5].ids[:4]]
    assert [m.tolist() for m in greedy(tuned, prefixes, [6, 6])] == [by_forwards(tuned, p, 6) for p in prefixes]


@pytest.mark.parametrize("name", ["prefix", "prompt"])
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_virtual_tokens_take_away_from_the_windows_of_long_documents(make_model, family, name):
    model = attach(make_model(family), METHODS[name], 0)
    ids = np.random.default_rng(0).integers(3, 2048, 100).astype(np.int32)
    item = type(TOKENS[0])(ids=ids, target=np.arange(100) > 0, text="…")
    made, base = collect(model, [item]), collect(model.base(), [item])
    first = 64 - VIRTUAL
    whole = torch.from_numpy(ids.astype(np.int64))
    near(
        [getattr(made, n)[: first - 1] for n in NAMES], brute(reference(model, whole[:first])[:-1], whole[1:first]),
        5e-5,
    )  # fmt: skip
    np.testing.assert_array_equal(made.position, base.position)
    # The base reads the same windows as the tuned model, though it would have room for more.
    expected = brute(reference(model.base(), whole[:first])[:-1], whole[1:first])[:1]
    near([base.logprob[: first - 1]], expected, 5e-5, NAMES[:1])


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["lora", "rslora", "dora", "ia3", "bitfit", "head", "adapters"])
def test_before_the_first_step_nothing_has_changed(sources, family, name):
    model = attach(copied(sources[family]), METHODS[name], 0)
    torch.testing.assert_close(logits(model), logits(sources[family]), rtol=0, atol=1e-5)
