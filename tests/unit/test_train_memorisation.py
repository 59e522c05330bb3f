"""Goldfish loss, dropout and stopping at a loss: what they change, what they refuse, and resuming with them."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from train_fixtures import fresh, new_run, some_tokens, weights

from sordino.config import MethodConfig, TrainConfig, load
from sordino.errors import ConfigError, TrainingError
from sordino.model import Model, attach, save
from sordino.model import load as load_model
from sordino.serialize import Tokens
from sordino.train.dropout import set_dropout, with_dropout
from sordino.train.flow import create, plan_of, prepare, train_run
from sordino.train.goldfish import CONTEXT, goldfish, left_out
from sordino.train.loop import train


def tokens_of(ids):
    ids = np.asarray(ids, dtype=np.int32)
    return Tokens(ids=ids, target=np.arange(len(ids)) > 0, text="…")


def test_a_target_is_left_out_by_the_13_tokens_before_it_and_nothing_else():
    rng = np.random.default_rng(0)
    passage = rng.integers(0, 512, 200)
    out = left_out(tokens_of(passage), 4)
    assert not out[:CONTEXT].any() and 0.15 < out[CONTEXT:].mean() < 0.35
    # Wherever the passage stands, in whatever company, the same of its tokens are out.
    elsewhere = left_out(tokens_of([*rng.integers(0, 512, 31), *passage, 7]), 4)[31:-1]
    np.testing.assert_array_equal(elsewhere[CONTEXT:], out[CONTEXT:])
    # The token itself has no say; each of the 13 before it has.
    for back in range(CONTEXT + 1):
        changed = [
            left_out(tokens_of([*passage[: i - back], (passage[i - back] + j) % 512, *passage[i - back + 1 :]]), 2)[i]
            for i in range(60, 70)
            for j in range(8)
        ]
        same = np.array(changed).reshape(10, 8)
        assert (same == same[:, :1]).all() == (back == 0)


@pytest.mark.parametrize("k", [2, 3, 8])
def test_one_in_k_is_left_out_for_every_kind_of_text(k):
    rng = np.random.default_rng(1)
    assert left_out(tokens_of(rng.integers(0, 200_000, 50_000)), k).mean() == pytest.approx(1 / k, abs=0.01)
    # Few distinct tokens, as in text: 2^13 contexts.
    assert left_out(tokens_of(rng.integers(0, 2, 50_000)), k).mean() == pytest.approx(1 / k, abs=0.03)


def test_goldfish_keeps_prompts_out_counts_and_leaves_its_argument_alone():
    made = [tokens_of(np.arange(40) * 7 % 100), tokens_of([1, 2, 3])]
    only = Tokens(ids=made[0].ids, target=left_out(made[0], 2), text="…")  # every target of it is left out
    kept, [notice] = goldfish([*made, only], 2)
    lost = int(left_out(made[0], 2).sum())
    assert lost > 5 and made[0].target.sum() == 39
    np.testing.assert_array_equal(kept[0].target, made[0].target & ~left_out(made[0], 2))
    assert kept[1].target.tolist() == [False, True, True]
    assert (notice.kind, notice.count) == ("goldfish", 2 * lost)
    assert "1 records have no other" in notice.message


@pytest.fixture
def records(tmp_path, make_model):
    save(make_model("llama"), tmp_path / "base")
    rng = np.random.default_rng(0)
    with (tmp_path / "r.jsonl").open("w") as file:
        for _ in range(80):
            file.write(json.dumps({"text": " ".join(rng.choice([f"name{n}" for n in range(20)], 12))}) + "\n")
    return tmp_path / "r.jsonl"


def config(records, train, **more):
    values = {
        "data": {"path": str(records)}, "out": str(records.parent / "runs"),
        "model": {"path": str(records.parent / "base"), "device": "cpu"},
        "canaries": {"per_level": 1}, "split": {"candidates": 0.8}, "method": {"rank": 2},
        "train": {"epochs": 2, "batch_size": 8, "learning_rate": 5e-3, **train},
    }  # fmt: skip
    return load(values={**values, **more}, environment={})


def test_a_run_trains_on_fewer_targets_and_validates_on_all(records):
    runs = {k: train_run(create(c := config(records, {"goldfish": k}, name=f"k{k}"), prepare(c))) for k in (0, 3)}
    plain, fish = (runs[k].card for k in (0, 3))
    [notice] = [n for n in fish.notices if n.kind == "goldfish"]
    assert not [n for n in plain.notices if n.kind == "goldfish"]
    per_epoch = plain.training["tokens"] // 2
    assert notice.count and fish.training["tokens"] == 2 * (per_epoch - notice.count)
    assert f"of {per_epoch:,} targets" in notice.message
    # The dry run says so before; both validate on the same tokens: the untuned loss is the same.
    planned = plan_of(config(records, {"goldfish": 3}), prepare(config(records, {"goldfish": 3})))
    assert (planned["targets left out"], planned["tokens an epoch"]) == (notice.count, per_epoch - notice.count)
    assert fish.training["validation"] != plain.training["validation"]


def gpt2(tokenizer):
    made = transformers.GPT2Config(vocab_size=len(tokenizer), n_embd=32, n_layer=2, n_head=4, n_positions=64)
    return transformers.GPT2LMHeadModel(made)


def opt(tokenizer):
    made = transformers.OPTConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=4, ffn_dim=64,
        word_embed_proj_dim=32, max_position_embeddings=64, pad_token_id=2, attention_dropout=0.3,
    )  # fmt: skip
    return transformers.OPTForCausalLM(made)


@pytest.mark.parametrize("make", [gpt2, opt])
def test_dropout_is_set_wherever_the_model_has_any(tokenizer, make):
    module = make(tokenizer).eval()
    ids = torch.arange(32)[None]
    before = module(input_ids=ids).logits
    [notice] = with_dropout(module, 0.2)
    assert notice.count > 4 and "attention weights alone" not in notice.message and not module.training
    assert {p.p for p in module.modules() if isinstance(p, torch.nn.Dropout)} <= {0.2}
    numbers = {v for part in module.modules() for k, v in vars(part).items() if "dropout" in k and isinstance(v, float)}
    assert numbers <= {0.2}
    assert torch.equal(module(input_ids=ids).logits, before)
    # Switched off, training computes what evaluation does.
    assert with_dropout(module, 0.0) == []
    assert torch.equal(module.train()(input_ids=ids).logits, before)


def test_attention_dropout_is_said_to_be_all_a_llama_has(make_model):
    module = fresh(make_model("llama")).module
    state = torch.get_rng_state()
    [notice] = with_dropout(module, 0.1)
    assert "on attention weights alone: llama has no other dropout" in notice.message
    assert torch.equal(torch.get_rng_state(), state)


class Plain(torch.nn.Module):
    """A model that has a number called dropout, and no use for it."""

    def __init__(self):
        super().__init__()
        self.embed, self.head, self.dropout = torch.nn.Embedding(64, 8), torch.nn.Linear(8, 64), 0.1
        text = SimpleNamespace(vocab_size=64)
        self.config = SimpleNamespace(model_type="plain", get_text_config=lambda: text)

    def forward(self, input_ids, attention_mask):
        return SimpleNamespace(logits=self.head(self.embed(input_ids)))


def test_dropout_that_would_do_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"train.dropout is 0.1, and the code of plain has no dropout to set"):
        with_dropout(Plain(), 0.1)
    assert with_dropout(Plain(), 0.0) == []


def test_an_adapters_own_dropout_stays(make_model):
    model = attach(fresh(make_model("llama")), MethodConfig(rank=2, dropout=0.3), 0)
    assert not any("lora" in name for name in set_dropout(model.module, 0.1))
    parts = dict(model.module.named_modules())
    own = [m.p for name, m in parts.items() if "lora_dropout" in name and isinstance(m, torch.nn.Dropout)]
    assert own and set(own) == {0.3}


def test_a_run_with_dropout_differs_and_saves_a_model_without(records):
    runs = {}
    for p in (None, 0.0, 0.4):
        c = config(records, {"dropout": p}, name=f"p{str(p)[-1]}", method={"kind": "full"})
        runs[p] = train_run(create(c, prepare(c)))
    assert [n.kind for n in runs[0.4].card.notices].count("dropout") == 1
    losses = {p: run.card.training["loss"] for p, run in runs.items()}
    assert losses[None] == losses[0.0] != losses[0.4]
    again = load_model(config(records, {}).model, str(runs[0.4].weights)).module.train()
    assert set_dropout(again, 0.0) and again.config.attention_dropout == 0.0


STOPPING = TrainConfig(epochs=3, batch_size=4, learning_rate=1e-2, validate_every=2, checkpoint_every=100)
TOKENS = (some_tokens(16), some_tokens(4))


def trained(make_model, run, config, monitor=lambda progress, steps: None):
    model = attach(fresh(make_model("llama")), MethodConfig(kind="full"), 0)
    return train(run, model, TOKENS, config, seed=0, monitor=monitor), model


def losses_in(run):
    lines = [json.loads(line) for line in (run.private / "losses.jsonl").read_text().splitlines()]
    return {line["step"]: line["validation"] for line in lines if "validation" in line}


def replaced(**values):
    return dataclasses.replace(STOPPING, **values)


def test_training_stops_at_the_first_loss_that_is_low_enough(make_model, tmp_path):
    whole = new_run(tmp_path, "whole")
    end, _ = trained(make_model, whole, STOPPING)
    found = losses_in(whole)
    assert list(found) == [2, 4, 6, 8, 10, 12] and not end.stopped
    early, rates = new_run(tmp_path, "early"), []
    progress, model = trained(make_model, early, replaced(stop_loss=found[6]), lambda p, n: rates.append((p.loss, n)))
    # The way there is that of the whole training, schedule and all.
    assert losses_in(early) == {step: found[step] for step in (2, 4, 6)}
    assert progress.stopped and progress.step == 6 and {n for _, n in rates} == {12}
    # Resumed, as after a crash just before the weights were saved, it stays where it is.
    again, same = trained(make_model, early, replaced(stop_loss=found[6]))
    assert again == progress
    for name, value in weights(model).items():
        assert torch.equal(weights(same)[name], value), name


def test_a_crash_before_the_end_does_not_move_it(make_model, tmp_path):
    whole, broken = new_run(tmp_path, "whole"), new_run(tmp_path, "broken")
    _, _ = trained(make_model, whole, STOPPING)
    config = replaced(stop_loss=losses_in(whole)[8], checkpoint_every=3)

    def die(progress, steps):
        if progress.step == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(make_model, broken, config, die)
    progress, _ = trained(make_model, broken, config)
    assert (progress.step, progress.stopped) == (8, True)


def test_a_loss_that_is_never_reached_and_validation_that_is_not_there(make_model, tmp_path):
    progress, _ = trained(make_model, new_run(tmp_path), replaced(stop_loss=1e-6))
    assert (progress.step, progress.stopped) == (12, False)
    model: Model = attach(fresh(make_model("llama")), MethodConfig(rank=2), 0)
    with pytest.raises(TrainingError, match=r"train.stop_loss is 1, and no validation record"):
        train(new_run(tmp_path, "none"), model, (TOKENS[0], []), replaced(stop_loss=1.0), seed=0)


def test_a_run_says_where_it_stopped(records):
    said = []
    for name, loss in (("far", 50.0), ("near", 1e-6)):
        c = config(records, {"stop_loss": loss, "validate_every": 1}, name=name)
        run = train_run(create(c, prepare(c)), say=said.append)
        assert run.card.training["stopped"] == (name == "far")
        assert (run.card.training["step"] == 1) == (name == "far")
    assert any(line.startswith("stopped at step 1: the validation loss") for line in said)
    assert any(line.startswith("the validation loss never came down to train.stop_loss (1e-06)") for line in said)


REFUSED = [
    ({"train": {"goldfish": 1}}, "train.goldfish is 1"),
    ({"train": {"goldfish": -4}}, "train.goldfish is -4"),
    ({"train": {"goldfish": 4}, "task": "classification", "data": {"path": "x", "label": "y"}}, "a classifier learns"),
    ({"train": {"dropout": 1.0}}, "train.dropout is 1.0"),
    ({"train": {"stop_loss": 0.0}}, "train.stop_loss is 0.0"),
    ({"train": {"stop_loss": 2.0}, "dp": {"epsilon": 8}}, "read off private losses"),
    ({"train": {"stop_loss": 2.0}, "split": {"validation": 0}}, "there is no validation loss"),
]


@pytest.mark.parametrize(("values", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_makes_no_sense_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        load(values={"data": {"path": "x"}, **values}, environment={})
