"""What approximate unlearning refuses, where it stops, and which better answers it asks for."""

import dataclasses
import importlib
import json

import pytest
from forgetting_fixtures import both, changed, child_of, deletion_of, forgotten, learned, losses, quick, refuses

from sordino.errors import UnlearningError
from sordino.model import Model, save
from sordino.records import Message
from sordino.unlearn.methods import named
from sordino.unlearn.tuning.opening import Opened
from sordino.unlearn.tuning.refusals import REFUSALS


@pytest.fixture(scope="module")
def deletions(make_model, tmp_path_factory):
    """Runs that are asked to forget, one of each kind."""
    return both(make_model, tmp_path_factory.mktemp("runs"))


def test_nothing_changed_is_no_success(deletions):
    for name in ("npo", "rmu", "task_vector"):
        child = child_of(deletions["lora"], name, **quick("lora", name) | {"learning_rate": 0.0})
        with pytest.raises(UnlearningError, match=r"[Nn]o weight"):
            named(name).run(deletions["lora"], child)
        assert not child.run.weights.exists()
        forgotten(child)


def test_lost_utility_stops_and_the_weights_before_it_are_kept(deletions):
    deletion, settings = deletions["full"], quick("full", "grad_ascent") | {"epochs": 40, "check_every": 1}
    said = []
    child = child_of(deletion, "grad_ascent", **settings | {"tolerance": 0.05})
    named("grad_ascent").run(deletion, dataclasses.replace(child, say=said.append))
    told, after = child.run.card.unlearning, losses(child.run, deletion)
    assert told["stopped"] and 0 < told["steps"] < 40 and "utility" in said[-1]
    assert told["utility"]["before"] < after[2] <= 1.05 * told["utility"]["before"]
    forgotten(child)
    child = child_of(deletion, "grad_ascent", **settings | {"tolerance": 0.001, "check_every": None, "batch_size": 1})
    with pytest.raises(
        UnlearningError, match=r"more than tolerance \(0\.001\) allows, and no weights before it"
    ) as caught:
        named("grad_ascent").run(deletion, child)
    assert "check_every" in caught.value.hint and not child.run.weights.exists()
    forgotten(child)
    # A task vector is shortened instead.
    child = child_of(deletion, "task_vector", **settings | {"tolerance": 0.05, "epochs": 3, "strength": 40.0})
    named("task_vector").run(deletion, child)
    told = child.run.card.unlearning
    assert told["stopped"] and told["strength"] in [40 / 2**k for k in range(1, 7)]
    assert losses(child.run, deletion)[2] <= 1.05 * told["utility"]["before"]
    forgotten(child)


def test_without_validation_records_some_that_stay_are_held_back(deletions):
    deletion = dataclasses.replace(deletions["lora"], validation=[])
    child = child_of(deletion, "grad_diff", **quick("lora", "grad_diff"))
    named("grad_diff").run(deletion, child)
    held = len(deletion.retain) // 10
    assert f"{held} sequences of {held} records that stay, held back" == child.run.card.unlearning["utility"]["watched"]
    forgotten(child)
    nothing = dataclasses.replace(deletion, retain=[])
    refuses(nothing, "grad_ascent", "there is no record to measure utility on", tolerance=0.1)


def test_a_method_without_the_set_it_needs_is_refused(deletions):
    deletion = deletions["lora"]
    plain = changed(deletion, messages=(Message("text", "a plain text"),))
    for name in ("dpo", "alt_po", "idk_dpo", "idk_nll", "idk_ap"):
        refuses(plain, name, "1 of 4 records are plain text, or do not end in an answer")
    refuses(changed(deletion, rejected=None), "dpo", "1 of 4 records to forget have none")
    alone = dataclasses.replace(deletion, retain=[])
    for name in ("grad_diff", "rmu"):
        refuses(alone, name, "none stays")
    refuses(deletion, "npo", "answer_preservation, which keeps answers against refusals", retain="answer_preservation")
    refuses(dataclasses.replace(deletion, forget=[]), "npo", "no record to forget")


def test_what_has_no_scored_token_is_refused(deletions):
    deletion = deletions["lora"]
    last = deletion.forget[0].record.messages[-1]
    long = changed(deletion, messages=(Message("prompt", "word " * 90), last))
    for name in ("npo", "rmu", "task_vector"):
        refuses(long, name, "1 of 4 records have no scored token: they are masked or cut away whole")
    refuses(long, "idk_nll", "no scored token: it is masked or cut away whole")


def test_a_setting_that_cannot_be_is_refused(deletions):
    deletion = deletions["lora"]
    error = refuses(deletion, "npo", "The method npo has no setting 'betta'", betta=1)
    assert error.hint == "Did you mean 'beta'?"
    for name, key, value in (
        ("npo", "learning_rate", -1.0), ("npo", "learning_rate", float("nan")), ("npo", "epochs", 0),
        ("npo", "epochs", 2.5), ("npo", "batch_size", True), ("npo", "beta", 0), ("npo", "retain", "mse"),
        ("npo", "alpha", -0.1), ("npo", "gamma", "1"), ("npo", "tolerance", -1), ("npo", "warmup", 1),
        ("npo", "schedule", "step"), ("ce_u", "skipped", -1), ("task_vector", "strength", 0), ("npo", "beta", None),
        ("rmu", "layer", 2), ("alt_po", "alternatives", 0),
    ):  # fmt: skip
        refuses(deletion, name, f"{key} (of {name} )?is {value!r}", **{key: value})
    refuses(deletion, "npo", "gamma and alpha are both 0", gamma=0, alpha=0.0)


def test_weights_that_are_not_those_of_the_run_are_refused(make_model, tmp_path):
    save(make_model("llama", seed=3), tmp_path / "model")
    run = learned(tmp_path, tmp_path / "model", train={"epochs": 1})
    deletion, path = deletion_of(run), run.weights / "adapter_model.safetensors"
    kept = path.read_bytes()
    path.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    refuses(deletion, "npo", "The weights of the run have another digest")
    path.write_bytes(kept)
    model = tmp_path / "model" / "model.safetensors"
    kept = model.read_bytes()
    model.write_bytes(kept[:-1] + bytes([kept[-1] ^ 1]))
    refuses(deletion, "npo", "The base of the run have another digest")
    card = run.card
    deletion.__dict__["config"] = dataclasses.replace(deletion.config, task="classification")
    refuses(deletion, "npo", "task is classification")
    assert run.card == card


def spied(monkeypatch, deletion, name, seed):
    """The texts of better answers that a method asks for, by the record's place."""
    module, seen = importlib.import_module("sordino.unlearn.methods.losses"), []

    class Enough(Exception):
        pass

    def steps(**given):
        seen.extend(given["forget"])
        raise Enough

    monkeypatch.setattr(module, "LossSteps", steps)
    child = child_of(deletion, name, seed=seed, tolerance=None)
    with pytest.raises(Enough):
        named(name).run(deletion, child)
    path = child.run.private / "unlearning" / "private" / "alternatives.json"
    made = json.loads(path.read_text()) if path.exists() else None
    forgotten(child)
    return [[b.text for b in item.better] for item in seen], made


def test_better_answers_are_drawn_by_the_seed_of_the_child(monkeypatch, deletions):
    deletion = deletions["lora"]
    refused, _ = spied(monkeypatch, deletion, "idk_dpo", 1)
    assert len(set(REFUSALS)) == 40 and all(len(own) == 1 and own[0] in REFUSALS for own in refused)
    assert refused == spied(monkeypatch, deletion, "idk_nll", 1)[0] != spied(monkeypatch, deletion, "idk_nll", 2)[0]
    given, _ = spied(monkeypatch, deletion, "dpo", 1)
    assert given == [[e.record.rejected] for e in deletion.forget]
    texts, made = spied(monkeypatch, deletion, "alt_po", 1)
    assert texts == made and all(1 <= len(own) <= 5 and len({*own}) == len(own) for own in made)
    truth = [e.record.messages[-1].content.casefold() for e in deletion.forget]
    assert not any(t in [" ".join(a.casefold().split()) for a in own] for t, own in zip(truth, made, strict=True))
    assert made == spied(monkeypatch, deletion, "alt_po", 1)[1]


def test_a_model_that_knows_nothing_but_the_answer_makes_up_none(monkeypatch, deletions):
    from sordino.unlearn.tuning import alternatives

    asked = []

    def parrot(opened, examples, temperature, count, seed):
        assert isinstance(opened, Opened) and isinstance(opened.model, Model)
        asked.append(temperature)
        return [[f" {e.record.messages[-1].content.upper()} "] * count for e in examples]

    monkeypatch.setattr(alternatives, "_asked", parrot)
    refuses(
        deletions["lora"], "alt_po", "For 4 of 4 records the model writes nothing but the true answer", tolerance=None
    )
    assert asked == sorted(asked) and len(asked) > 1
