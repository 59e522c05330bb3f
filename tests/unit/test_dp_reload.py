"""One private step moves the weights, and what is saved and read again is what was trained, to the last bit."""

import json

import numpy as np
import pytest
import torch
from dp_models import a_batch, prepared, row_losses

from sordino.config import DPConfig, load
from sordino.dp.mechanism import Mechanism
from sordino.dp.plan import DPPlan
from sordino.ledger import Journal
from sordino.model import restore
from sordino.model import save as save_model
from sordino.run import Run
from sordino.train.flow import create, prepare, train_run

IDS, MASK = a_batch(rows=3, length=9)


def logits(model):
    with model.active() as module:
        return module(input_ids=IDS, attention_mask=MASK, use_cache=False).logits.clone()


METHODS = [
    {"rank": 4}, {"kind": "full"}, {"kind": "ia3"}, {"kind": "prefix", "virtual_tokens": 4},
    # Saved and read like one of those.
    *(pytest.param(method, marks=pytest.mark.slow) for method in (
        {"rank": 4, "variant": "dora"}, {"kind": "bitfit"}, {"kind": "prompt", "virtual_tokens": 4}, {"kind": "head"},
    )),
]  # fmt: skip


@pytest.mark.parametrize(
    "method",
    METHODS,
    ids=lambda method: "-".join(map(str, method.values())),
)
def test_a_step_moves_the_weights_and_they_are_read_again(tmp_path, monkeypatch, method):
    rng = np.random.default_rng(0)
    lines = [{"text": " ".join(rng.choice(["red", "blue", "green", "brown"], 8))} for _ in range(60)]
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    values = {
        "data": {"path": str(tmp_path / "r.jsonl")}, "out": str(tmp_path / "runs"), "model": {"device": "cpu"},
        "canaries": {"per_level": 0}, "split": {"near_duplicates": 0, "candidates": 0}, "method": method,
        "train": {"batch_size": 8, "learning_rate": 1e-2}, "dp": {"noise_multiplier": 0.5},
    }  # fmt: skip
    config = load(values=values, environment={})
    seen = {}

    def save(model, folder):
        seen["tuned"], seen["base"] = logits(model), logits(model.base())
        save_model(model, folder)

    with monkeypatch.context() as patch:
        patch.setattr("sordino.model.save", save)
        patch.setattr("sordino.train.promise.steps_of", lambda *_: 1)
        path = train_run(create(config, prepare(config))).path
    run = Run.open(path)
    assert run.card.training["step"] == run.card.privacy["steps"] == 1
    found = logits(restore(config.model, config.method, run.weights))
    assert torch.equal(found, seen["tuned"])
    assert float((found - seen["base"]).abs().max()) > 1e-3


@pytest.mark.parametrize("method", ["lora", "full", "prefix", "bitfit"])
def test_weights_that_were_moved_are_the_ones_that_learn(make_model, tmp_path, method):
    # As after `.to("cuda")`: the mechanism and the optimizer were there first.
    module = prepared(make_model("llama"), method, torch.float32)
    plan = DPPlan(
        settings=DPConfig(noise_multiplier=0.01), units=9, batch=3, steps=1, delta=1e-3, noise_multiplier=0.01
    )
    mechanism = Mechanism(plan, module, b"0" * 32, Journal(tmp_path / "steps"))
    tuned = {name: p for name, p in module.named_parameters() if p.requires_grad}
    optimizer = torch.optim.SGD(tuned.values(), lr=0.1)
    module.to(torch.float64)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    losses = row_losses(module, IDS, MASK).detach()
    mechanism.sample(0)
    mechanism.clip(lambda: row_losses(module, IDS, MASK), units=3)
    mechanism.release()
    optimizer.step()
    after = dict(module.named_parameters())
    assert {name for name in before if not torch.equal(before[name], after[name])} == set(tuned)
    # They are the model's own, not copies of what was there before.
    assert all(after[name].dtype == torch.float64 for name in tuned)
    assert not torch.equal(row_losses(module, IDS, MASK).detach(), losses)
