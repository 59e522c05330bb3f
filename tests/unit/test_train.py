"""The training loop: its batches, its rate, its arithmetic against loops written by hand, and how it fails."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import cross_entropy, log_softmax
from train_fixtures import fresh, new_run, some_tokens, tune, weights

from sordino.config import MethodConfig, TrainConfig
from sordino.errors import RunError, TrainingError
from sordino.evidence import digest_files
from sordino.model import attach
from sordino.train import loop
from sordino.train.checkpoint import load_checkpoint, save_checkpoint
from sordino.train.collate import collate, epoch_batches
from sordino.train.loop import learning_rate, train, validation_loss

FULL = MethodConfig(kind="full")


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=300), size=st.integers(1, 20),
    seed=st.integers(0, 2**40), epoch=st.integers(0, 5),
)  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_an_epoch_has_every_record_once_and_is_a_pure_function(lengths, size, seed, epoch):
    batches = epoch_batches(lengths, size, seed, epoch)
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert len(batches) == math.ceil(len(lengths) / size)
    assert batches == epoch_batches(lengths, size, seed, epoch)


def test_epochs_and_seeds_differ_and_batches_hold_records_of_similar_length():
    lengths = np.random.default_rng(0).integers(5, 500, 2000).tolist()
    first = epoch_batches(lengths, 8, 0, 0)
    assert first != epoch_batches(lengths, 8, 0, 1)
    assert first != epoch_batches(lengths, 8, 1, 0)
    padded = sum(len(b) * max(lengths[i] for i in b) for b in first) / sum(lengths)
    assert padded < 1.1
    # Short batches do not come first: lengths sort within a bucket, batches are shuffled after.
    order = [min(lengths[i] for i in batch) for batch in first]
    assert abs(np.corrcoef(order, range(len(order)))[0, 1]) < 0.2


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_learning_rate_by_hand(schedule):
    config = TrainConfig(learning_rate=0.5, warmup=0.1, schedule=schedule)
    rates = [learning_rate(step, 100, config) for step in range(100)]
    assert rates[:10] == pytest.approx([0.05 * (k + 1) for k in range(10)])
    shapes = {
        "linear": [0.5 * (1 - k / 90) for k in range(90)],
        "cosine": [0.25 * (1 + math.cos(math.pi * k / 90)) for k in range(90)],
        "constant": [0.5] * 90,
    }
    assert rates[10:] == pytest.approx(shapes[schedule])


def test_learning_rate_of_a_single_step_and_without_warmup():
    assert learning_rate(0, 1, TrainConfig(learning_rate=0.5, warmup=0.0)) == 0.5
    assert learning_rate(0, 1, TrainConfig(learning_rate=0.5, warmup=0.05)) == 0.5


def test_collate_pads_on_the_right_and_scores_targets_only():
    tokens = some_tokens(3, prompt=True)
    batch = collate(tokens, 2, torch.device("cpu"))
    for row, item in enumerate(tokens):
        n = len(item)
        assert batch.input_ids[row, :n].tolist() == item.ids.tolist()
        assert batch.input_ids[row, n:].eq(2).all() and batch.attention_mask[row].sum() == n
    assert batch.targets == sum(int(t.target.sum()) for t in tokens)
    assert batch.padded and not collate(tokens[:1], 2, torch.device("cpu")).padded
    rows, columns = np.divmod(batch.positions.numpy(), batch.input_ids.shape[1])
    wanted = [(row, t - 1, item.ids[t]) for row, item in enumerate(tokens) for t in np.flatnonzero(item.target)]
    assert list(zip(rows, columns, batch.wanted.tolist(), strict=True)) == wanted


def bare_loop(module, tokens, config, steps):
    """Train one record at a time, unpadded, with nothing but torch; returns the losses."""
    module.train()
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.0, weight_decay=config.weight_decay)
    losses = []
    warmup = math.ceil(config.warmup * steps)
    for epoch in range(config.epochs):
        for batch in epoch_batches([len(t) for t in tokens], config.batch_size, 3, epoch):
            number = len(losses)
            scored = sum(int(tokens[i].target.sum()) for i in batch)
            optimizer.zero_grad()
            total = 0.0
            for i in batch:
                ids = torch.tensor(tokens[i].ids[None].astype(np.int64))
                logp = log_softmax(module(input_ids=ids).logits[0, :-1], dim=-1)
                wanted = np.flatnonzero(tokens[i].target)
                loss = -sum(logp[t - 1, ids[0, t]] for t in wanted) / scored
                loss.backward()
                total += loss.item()
            squares = sum(float((p.grad**2).sum()) for p in module.parameters())
            if config.clip and math.sqrt(squares) > config.clip:
                for p in module.parameters():
                    p.grad.mul_(config.clip / (math.sqrt(squares) + 1e-6))
            done = (number - warmup) / (steps - warmup)
            ramp = (number + 1) / warmup if number < warmup else (1 + math.cos(math.pi * done)) / 2
            optimizer.param_groups[0]["lr"] = config.learning_rate * ramp
            optimizer.step()
            losses.append(total)
    return losses


@pytest.mark.parametrize("clip", [0.0, 0.5])
@pytest.mark.parametrize("prompt", [False, True])
def test_the_loop_is_a_bare_torch_loop(make_model, tmp_path, prompt, clip):
    tokens = some_tokens(30, prompt=prompt)
    config = TrainConfig(
        epochs=2, batch_size=8, accumulation=2, learning_rate=1e-3, weight_decay=0.1, clip=clip, warmup=0.2
    )
    model, bare = (fresh(make_model("llama")) for _ in range(2))
    for each in (model, bare):
        each.module.double()
    expected = bare_loop(bare.module, tokens, config, 8)
    _, losses = tune(tmp_path, attach(model, FULL, 0), tokens, config)
    assert losses == pytest.approx(expected, rel=1e-12)
    for name, value in bare.module.named_parameters():
        torch.testing.assert_close(weights(model)[name], value.detach(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("parts", [2, 5, 8])
def test_accumulated_parts_are_one_big_batch(make_model, tmp_path, parts):
    tokens = some_tokens(24, prompt=True)
    ends = []
    for accumulation in (1, parts):
        model = attach(fresh(make_model("gpt2")), FULL, 0)
        model.module.double().eval()
        for layer in model.module.modules():
            if isinstance(layer, torch.nn.Dropout):
                layer.p = 0.0
        config = TrainConfig(epochs=1, batch_size=8, accumulation=accumulation, learning_rate=1e-3)
        _, losses = tune(tmp_path, model, tokens, config)
        ends.append((losses, weights(model)))
    assert ends[0][0] == pytest.approx(ends[1][0], rel=1e-12)
    for name, value in ends[0][1].items():
        torch.testing.assert_close(ends[1][1][name], value, rtol=0, atol=1e-9)


def test_prompts_are_read_but_not_learned(make_model):
    model = make_model("llama")
    tokens = some_tokens(6, prompt=True)
    expected, count = 0.0, 0
    for item in tokens:
        ids = torch.tensor(item.ids[None].astype(np.int64))
        with torch.no_grad():
            logits = model.module(input_ids=ids).logits[0]
        half = len(item) // 2
        expected += float(cross_entropy(logits[half - 1 : -1], ids[0, half:], reduction="sum"))
        count += len(item) - half
    assert validation_loss(model, tokens, 4) == pytest.approx(expected / count, rel=1e-5)
    assert validation_loss(model, [], 4) is None


def test_clipping_bounds_what_a_step_sees(make_model, tmp_path, monkeypatch):
    norms = []
    original = torch.optim.AdamW.step

    def spy(self, *args, **kwargs):
        squares = [float((p.grad**2).sum()) for group in self.param_groups for p in group["params"]]
        norms.append(math.sqrt(sum(squares)))
        return original(self, *args, **kwargs)

    monkeypatch.setattr(torch.optim.AdamW, "step", spy)
    for clip in (0.0, 0.01):
        model = attach(fresh(make_model("llama")), FULL, 0)
        tune(tmp_path, model, some_tokens(16), TrainConfig(epochs=1, batch_size=8, clip=clip))
    assert min(norms[:2]) > 0.1
    assert max(norms[2:]) <= 0.01 + 1e-6


@pytest.mark.parametrize(("select", "kept"), [("last", 6), ("best", 4)])
def test_the_weights_kept_are_the_last_or_the_best(make_model, tmp_path, monkeypatch, select, kept):
    measured = iter([3.0, 1.0, 2.0])
    monkeypatch.setattr(loop, "validation", lambda *args: (next(measured), None))
    model, seen = attach(fresh(make_model("llama")), MethodConfig(rank=2), 0), {}
    config = TrainConfig(epochs=3, batch_size=8, learning_rate=0.01, select=select)
    run = new_run(tmp_path)
    progress = train(
        run, model, (some_tokens(16), some_tokens(4, 1)), config, seed=0,
        monitor=lambda progress, steps: seen.update({progress.step: weights(model)}),
    )  # fmt: skip
    assert sorted(seen) == [1, 2, 3, 4, 5, 6]
    assert (progress.step, progress.best, progress.best_step) == (6, 1.0, 4)
    for name, value in weights(model).items():
        assert torch.equal(value, seen[kept][name])
    assert any(not torch.equal(a, b) for a, b in zip(seen[4].values(), seen[6].values(), strict=True))
    lines = [json.loads(line) for line in (run.private / "losses.jsonl").read_text().splitlines()]
    assert [line["validation"] for line in lines if "validation" in line] == [3.0, 1.0, 2.0]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2, 3, 4, 5, 6]


def test_a_loss_that_is_no_number_stops_before_it_does_harm(make_model, tmp_path):
    model, run = attach(fresh(make_model("llama")), MethodConfig(rank=2), 0), new_run(tmp_path)
    kept = {}

    def poison(progress, steps):
        if progress.step == 5:
            kept["state"] = digest_files((run.checkpoints / "last").iterdir())
            with torch.no_grad():
                next(iter(model.module.parameters())).fill_(math.nan)

    config = TrainConfig(epochs=2, batch_size=4, checkpoint_every=2)
    with pytest.raises(TrainingError, match=r"loss is nan .* at step 6 of 8 .*learning rate") as error:
        train(run, model, (some_tokens(16), []), config, seed=0, monitor=poison)
    assert "learning_rate" in error.value.hint and "checkpoint" in error.value.hint
    assert digest_files((run.checkpoints / "last").iterdir()) == kept["state"]
    assert json.loads((run.checkpoints / "last" / "progress.json").read_text())["step"] == 4
    assert '"step": 6' not in (run.private / "losses.jsonl").read_text()


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"), MemoryError(),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
    ],
)  # fmt: skip
def test_running_out_of_memory_says_what_to_do(make_model, tmp_path, monkeypatch, error):
    def fail(*args):
        raise error

    monkeypatch.setattr(loop.Objective, "__call__", fail)
    model = attach(fresh(make_model("llama")), FULL, 0)
    with pytest.raises(TrainingError, match="Out of memory with 8 records a step in 2 parts") as caught:
        tune(tmp_path, model, some_tokens(8), TrainConfig(batch_size=8, accumulation=2))
    assert "accumulation" in caught.value.hint and "max_length" in caught.value.hint


def test_other_errors_are_not_called_a_lack_of_memory(make_model, tmp_path, monkeypatch):
    monkeypatch.setattr(loop.Objective, "__call__", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        tune(tmp_path, attach(fresh(make_model("llama")), FULL, 0), some_tokens(8), TrainConfig())


def test_nothing_to_train_on_is_an_error(make_model, tmp_path):
    with pytest.raises(TrainingError, match="No record has a token to train on") as error:
        tune(tmp_path, attach(fresh(make_model("llama")), FULL, 0), [], TrainConfig())
    assert "max_length" in error.value.hint


def test_a_checkpoint_is_everything_the_next_step_needs(make_model, tmp_path):
    model = attach(fresh(make_model("llama")), MethodConfig(rank=2), 0)
    run, _ = tune(tmp_path, model, some_tokens(16), TrainConfig(epochs=1, batch_size=4))
    other = attach(fresh(make_model("llama")), MethodConfig(rank=2), 99)
    optimizer = torch.optim.AdamW([p for p in other.module.parameters() if p.requires_grad])
    torch.manual_seed(123)
    progress = load_checkpoint(run.checkpoints / "last", other.module, optimizer)
    assert progress.step == 4
    for name, value in weights(model).items():
        assert torch.equal(weights(other)[name], value)
    assert all(float(state["step"]) == 4 for state in optimizer.state.values())
    drawn = torch.rand(3)
    save_checkpoint(tmp_path / "again", other.module, optimizer, progress)
    torch.rand(7)
    load_checkpoint(run.checkpoints / "last", other.module, optimizer)
    assert torch.equal(torch.rand(3), drawn)


@pytest.mark.parametrize("damage", ["progress.json", "state.safetensors"])
def test_a_damaged_checkpoint_is_refused(make_model, tmp_path, damage):
    model = attach(fresh(make_model("llama")), MethodConfig(rank=2), 0)
    run, _ = tune(tmp_path, model, some_tokens(8), TrainConfig(epochs=1))
    path = run.checkpoints / "last" / damage
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(RunError, match=r"checkpoint .*last is damaged"):
        train(run, model, (some_tokens(8), []), TrainConfig(epochs=1), seed=0)
