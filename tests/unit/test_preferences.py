"""Attacks on preferences against a model tuned by direct preference optimisation, whose records are known.

Source of the loss: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
"""

import json
import random

import pytest
import torch
from elsewhere_fixtures import WORDS

from sordino.audit.flow import audit_model
from sordino.model import Model, save

ATTACKS = ("preference_margin", "preference_chosen", "preference_rejected")
BETA = 0.1


def pairs(start: int, count: int) -> list[dict[str, str]]:
    """Questions with two answers, of which a coin preferred one: nothing tells which but having seen it."""
    made = []
    for number in range(start, start + count):
        rng = random.Random(number)
        prompt, first, second = (" ".join(rng.choices(WORDS, k=k)) for k in (4, 5, 5))
        made.append({"prompt": f"{prompt}:", "completion": f" {first}", "rejected": f" {second}"})
    return made


def answered(model: Model, rows: list[dict[str, str]], which: str) -> torch.Tensor:
    """ln p of the answers `which` after their questions (rows)."""
    texts, starts = [row["prompt"] + row[which] for row in rows], [len(row["prompt"]) for row in rows]
    encoded = model.tokenizer(texts, return_tensors="pt", padding=True, return_offsets_mapping=True)
    own = torch.stack([o[:, 1] > s for o, s in zip(encoded["offset_mapping"], starts, strict=True)])
    logits = model.module(input_ids=encoded.input_ids, attention_mask=encoded.attention_mask).logits
    told = logits[:, :-1].log_softmax(-1).gather(-1, encoded.input_ids[:, 1:, None])[..., 0]
    return (told * own[:, 1:]).sum(1)


def optimise(model: Model, rows: list[dict[str, str]], steps: int) -> None:
    """DPO from the model as it is, which is the reference."""
    ways = ("completion", "rejected")
    with torch.no_grad():
        before = [answered(model, rows, w) for w in ways]
    optimizer = torch.optim.Adam(model.module.parameters(), lr=2e-3)
    with torch.enable_grad():
        for _ in range(steps):
            chosen, other = (answered(model, rows, w) - b for w, b in zip(ways, before, strict=True))
            loss = -torch.nn.functional.logsigmoid(BETA * (chosen - other)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


@pytest.fixture(scope="module")
def attempts(make_model, tmp_path_factory):
    """The audit of a model tuned on preferences, beside the model it comes from."""
    folder = tmp_path_factory.mktemp("preferences")
    model, members = make_model("llama", seed=3), pairs(0, 60)
    save(model, folder / "base")
    optimise(model, members, 15)
    save(model, folder / "tuned")
    for name, rows in (("in", members), ("out", pairs(5000, 60))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = audit_model(
        str(folder / "tuned"), members=str(folder / "in.jsonl"), nonmembers=str(folder / "out.jsonl"),
        attacks=[*ATTACKS, "loss"], base=str(folder / "base"), out=str(folder / "runs"), max_length=64,
        data={"prompt": "prompt", "completion": "completion", "rejected": "rejected"},
        audit={"shuffles": 199, "prefix_tokens": 4, "suffix_tokens": 4, "fpr": [0.1]},
    )  # fmt: skip
    return {a.name: a for a in run.audit.attempts if a.name in (*ATTACKS, "loss")}


def test_the_margin_finds_whose_preferences_were_learnt(attempts):
    margin = attempts["preference_margin"]
    assert margin.estimates["auc"].low > 0.75
    # Neither answer alone tells as much: DPO moves the two apart, wherever both go.
    others = [attempts[name].estimates["auc"].value for name in (*ATTACKS[1:], "loss")]
    assert margin.estimates["auc"].value > max(others)


@pytest.mark.parametrize("name", ATTACKS)
def test_the_model_before_tells_nothing(attempts, name):
    control = attempts[name].control["auc"]
    assert control.low <= 0.5 <= control.high
