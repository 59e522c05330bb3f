"""Unlearning that is killed goes on bit for bit; adapters are opened again, and negated exactly."""

import dataclasses
import importlib

import numpy as np
import pytest
import torch
from forgetting_fixtures import both, child_of, deletion_of, files, forgotten, learned, quick

from sordino.config import MethodConfig, recorded
from sordino.model import attach, restore, save
from sordino.train.checkpoint import trainable
from sordino.train.progress import Progress
from sordino.unlearn.methods import named
from sordino.unlearn.methods.task_vector import negated
from sordino.unlearn.tuning.opening import make_tunable


@pytest.fixture(scope="module")
def deletions(make_model, tmp_path_factory):
    """Runs that are asked to forget, one of each kind."""
    return both(make_model, tmp_path_factory.mktemp("runs"))


def interrupted(deletion, name, stop, **settings):
    """The tensors of a child made in one go, and of one that was killed after `stop` progress and made again."""
    whole = child_of(deletion, name, **settings)
    named(name).run(deletion, whole)
    broken = child_of(deletion, name, **settings)
    seen = [0]

    def killing(label, total):
        def advance(done):
            seen[0] += done
            if seen[0] >= stop:
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        named(name).run(deletion, dataclasses.replace(broken, ticker=killing))
    assert not broken.run.weights.exists() and (broken.run.private / "unlearning" / "private" / "checkpoints").exists()
    torch.manual_seed(99)
    named(name).run(deletion, broken)
    found = files(whole), files(broken)
    forgotten(whole)
    forgotten(broken)
    return found


@pytest.mark.parametrize(
    ("kind", "name", "more"),
    [
        ("lora", "npo", {"retain": "kl"}), ("full", "undial", {"retain": "kl"}), ("lora", "alt_po", {}),
        ("full", "rmu", {}), ("lora", "task_vector", {}),
    ],
)  # fmt: skip
def test_what_was_killed_goes_on_bit_for_bit(monkeypatch, deletions, kind, name, more):
    # The loop keeps a checkpoint after each epoch; two batches an epoch, so the kill falls between.
    settings = quick(kind, name) | {"batch_size": 3, "epochs": 3} | more
    if name == "task_vector":
        module = importlib.import_module("sordino.unlearn.methods.task_vector")
        made = module.train_config
        monkeypatch.setattr(module, "train_config", lambda *of: dataclasses.replace(made(*of), checkpoint_every=2))
    first, second = interrupted(deletions[kind], name, 3, **settings)
    assert first.keys() == second.keys() and all(torch.equal(first[n], t) for n, t in second.items())


def test_what_was_begun_with_other_settings_is_not_gone_on_with(deletions):
    deletion, settings = deletions["full"], quick("full", "npo")
    child, seen = child_of(deletion, "npo", **settings), []

    def killing(label, total):
        def advance(done):
            seen.append(done)
            if len(seen) == 2:  # a checkpoint of the first epoch is there
                raise KeyboardInterrupt

        return advance

    with pytest.raises(KeyboardInterrupt):
        named("npo").run(deletion, dataclasses.replace(child, ticker=killing))
    other = settings | {"learning_rate": 1e-4}
    named("npo").run(deletion, dataclasses.replace(child, settings=other))
    whole = child_of(deletion, "npo", **other)
    named("npo").run(deletion, whole)
    assert all(torch.equal(files(whole)[n], t) for n, t in files(child).items())
    forgotten(child)
    forgotten(whole)


def test_recomputed_activations_train_the_same_weights(deletions):
    for kind, name in (("lora", "npo"), ("full", "rmu")):
        found = []
        for on in (False, True):
            deletion = dataclasses.replace(deletions[kind])
            train = dataclasses.replace(deletion.config.train, gradient_checkpointing=on)
            deletion.__dict__["config"] = dataclasses.replace(deletion.config, train=train)
            child = child_of(
                deletion, name, **quick(kind, name) | {"retain": "kl"} if name == "npo" else quick(kind, name)
            )
            named(name).run(deletion, child)
            found.append(files(child))
            forgotten(child)
        for tensor, value in found[0].items():
            torch.testing.assert_close(found[1][tensor], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("variant", "rank"), [("plain", 3), ("rslora", 30), ("ffa", 30)])
def test_an_adapter_is_negated_as_the_update_that_it_makes(make_model, tmp_path, monkeypatch, variant, rank):
    """Against dense weights: W + BA − λ (B′A′ − BA), also where twice the rank is more than a matrix can have."""
    save(make_model("llama", seed=3), tmp_path / "model")
    method = {"variant": variant, "rank": rank, "alpha": 7.0}
    run = learned(tmp_path, tmp_path / "model", method=method, train={"epochs": 1})
    deletion, states = deletion_of(run), []

    def updates(model):
        layers = {n: m for n, m in model.module.named_modules() if hasattr(m, "lora_A") and hasattr(m, "base_layer")}
        return {n: m.get_delta_weight("default").detach().double() for n, m in layers.items()}

    def fine_tuned(work, settings):
        model = work.opened.model
        states.append(updates(model))
        torch.manual_seed(5)
        with torch.no_grad():
            for p in trainable(model.module).values():
                p += 0.1 * torch.randn_like(p)
        states.append(updates(model))
        return Progress(step=1, tokens=1)

    monkeypatch.setattr(importlib.import_module("sordino.unlearn.methods.task_vector"), "_fine_tuned", fine_tuned)
    child = child_of(deletion, "task_vector", strength=1.7, tolerance=None)
    named("task_vector").run(deletion, child)
    config = recorded(child.run.card.config, "-")
    assert config.method.rank == min(2 * rank, 32 if rank > 16 else 2 * rank)
    made = updates(restore(config.model, config.method, child.run.weights))
    assert made and made.keys() == states[0].keys()
    for name, found in made.items():
        wanted = states[0][name] - 1.7 * (states[1][name] - states[0][name])
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    sizes = child.run.card.model
    model = restore(config.model, config.method, child.run.weights)
    make_tunable(model)
    assert sizes["trainable"] == sum(p.numel() for p in trainable(model.module).values())


def test_factors_of_a_negated_update():
    rng = np.random.default_rng(0)
    for rank, shape in ((2, (6, 5)), (3, (6, 5)), (5, (4, 9))):
        down = tuple(torch.tensor(rng.normal(size=(rank, shape[1]))) for _ in range(2))
        up = tuple(torch.tensor(rng.normal(size=(shape[0], rank))) for _ in range(2))
        a, b = negated(down, up, 0.5)
        assert len(a) == min(2 * rank, *shape)
        torch.testing.assert_close(b @ a, up[0] @ down[0] - 0.5 * (up[1] @ down[1] - up[0] @ down[0]))


@pytest.mark.parametrize("method", [
    MethodConfig(kind="full"), MethodConfig(rank=2), MethodConfig(rank=2, variant="dora"),
    MethodConfig(rank=2, variant="ffa"), MethodConfig(kind="ia3"), MethodConfig(kind="bitfit"),
    MethodConfig(kind="head"), MethodConfig(kind="adapters", bottleneck=2),
    MethodConfig(kind="prefix", virtual_tokens=3), MethodConfig(kind="prompt", virtual_tokens=3),
], ids=lambda m: f"{m.kind}-{m.variant}")  # fmt: skip
def test_what_was_tuned_is_tuned_again_and_nothing_else(make_model, tmp_path, method):
    base = make_model("llama")
    save(base, tmp_path / "model")
    config = dataclasses.replace(base.config, path=str(tmp_path / "model"))
    tuned = attach(dataclasses.replace(base, config=config), method, 0)
    save(tuned, tmp_path / "weights")
    wanted = {n: p.numel() for n, p in trainable(tuned.module).items()}
    again = restore(config, method, tmp_path / "weights")
    make_tunable(again)
    assert {n: p.numel() for n, p in trainable(again.module).items()} == wanted
