"""Methods of approximate unlearning on small runs: what they change, what they leave, and what they refuse."""

import dataclasses
import importlib
import json

import numpy as np
import pytest
import torch
from forgetting_fixtures import child_of, deletion_of, forgotten, learned, rows
from safetensors.torch import load_file

from sordino.config import MethodConfig, recorded
from sordino.errors import UnlearningError
from sordino.model import Model, attach, restore, save
from sordino.records import Message
from sordino.results import Cost
from sordino.train.checkpoint import trainable
from sordino.train.progress import Progress
from sordino.train.reading import serializer_for
from sordino.train.validation import validation_loss
from sordino.unlearn import methods
from sordino.unlearn.base import Method
from sordino.unlearn.losses import FORGET
from sordino.unlearn.methods import discover, named
from sordino.unlearn.methods.task_vector import negated
from sordino.unlearn.opening import Opened, make_tunable
from sordino.unlearn.refusals import REFUSALS
from sordino.unlearn.trials import Trial, write_trials

APPROXIMATE = (*FORGET, "rmu", "task_vector")
RATES = {"lora": 2e-3, "full": 5e-4}
# What a random model of two blocks takes.
OWN = {"rmu": {"steering": 40.0, "alpha": 1.0, "epochs": 8}}


@pytest.fixture(scope="module")
def runs(make_model, tmp_path_factory):
    """A LoRA run and one tuned whole, of questions with answers, of which each has another that was liked less."""
    folder = tmp_path_factory.mktemp("runs")
    save(make_model("llama", seed=3), folder / "model")
    return {kind: learned(folder / kind, folder / "model", kind, rows=rows(rejected=True)) for kind in RATES}


@pytest.fixture(scope="module")
def deletions(runs):
    """Four subjects ask each run to forget them."""
    return {kind: deletion_of(run) for kind, run in runs.items()}


@pytest.fixture(scope="module")
def before(deletions):
    """The losses of the runs as they were."""
    return {kind: losses(deletion.run, deletion) for kind, deletion in deletions.items()}


def losses(run, deletion):
    """Mean NLL a token of what is to be forgotten, of what stays, and of validation records."""
    config = recorded(run.card.config, "-")
    model = restore(config.model, config.method, run.weights)
    serializer = serializer_for(config, model.tokenizer, model.context)
    parts = (deletion.forget, deletion.retain, deletion.validation)
    return [validation_loss(model, [serializer.encode(e.record) for e in part], 32) for part in parts]


def quick(kind, name):
    settings = {"learning_rate": RATES[kind], "epochs": 3, "batch_size": 4, "schedule": "constant", "warmup": 0.0}
    return settings | {"tolerance": None} | OWN.get(name, {})


def files(child):
    """The tensors of a run."""
    found = {}
    for path in sorted(child.run.weights.glob("*.safetensors")):
        found |= load_file(path)
    return found


@pytest.mark.parametrize("kind", ["lora", "full"])
@pytest.mark.parametrize("name", APPROXIMATE)
def test_what_is_to_be_forgotten_gets_less_likely_and_what_stays_stays(deletions, before, kind, name):
    deletion, before = deletions[kind], before[kind]
    child = child_of(deletion, name, **quick(kind, name))
    cost = named(name).run(deletion, child)
    after = losses(child.run, deletion)
    assert after[0] > before[0] + 0.02, (before, after)
    assert after[0] - before[0] > 1.2 * (after[1] - before[1]), (before, after)
    assert after[2] < 1.1 * before[2]
    told = child.run.card.unlearning
    assert told["utility"]["before"] == pytest.approx(before[2], rel=1e-4)
    assert told["utility"]["after"] == pytest.approx(after[2], rel=1e-4)
    assert not told["stopped"] and told["steps"] == (8 if name == "rmu" else 3)
    assert cost.share == pytest.approx((cost.tokens + cost.forwards / 3) / deletion.run.card.training["tokens"])
    # States of optimizers and made-up answers are gone.
    assert not (child.run.private / "unlearning").exists()
    forgotten(child)


def test_an_adapter_is_all_that_is_written(deletions):
    child = child_of(deletions["lora"], "grad_diff", **quick("lora", "grad_diff"))
    named("grad_diff").run(deletions["lora"], child)
    ours, before = files(child), load_file(deletions["lora"].run.weights / "adapter_model.safetensors")
    assert ours.keys() == before.keys() and not any(torch.equal(before[n], t) for n, t in ours.items())
    forgotten(child)


def test_what_it_costs_is_counted_in_scored_tokens(deletions):
    deletion = deletions["lora"]
    config = deletion.config
    serializer = serializer_for(config, restore(config.model, config.method, deletion.run.weights).tokenizer, 64)
    forget, watched = (
        sum(int(serializer.encode(e.record).target[1:].sum()) for e in part)
        for part in (deletion.forget, deletion.validation)
    )
    for name, often in (("grad_ascent", 0), ("npo", 1), ("undial", 3)):
        child = child_of(deletion, name, **quick("lora", name) | {"alpha": 0})
        write_trials(child.run, [Trial(settings={}, cost=Cost(seconds=1e3, tokens=7, forwards=11))])
        cost = named(name).run(deletion, child)
        assert cost.tokens == 3 * forget + 7
        # Utility is measured before, after each epoch, and after all.
        assert cost.forwards == often * forget + 5 * watched + 11
        assert cost.seconds > 1e3
        forgotten(child)


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


def refuses(deletion, name, match, **settings):
    child = child_of(deletion, name, **settings)
    with pytest.raises(UnlearningError, match=match) as caught:
        named(name).run(deletion, child)
    assert caught.value.hint and not child.run.weights.exists()
    forgotten(child)
    return caught.value


def changed(deletion, **record):
    """The deletion with the first record to forget changed."""
    first, *rest = deletion.forget
    return dataclasses.replace(
        deletion, forget=[dataclasses.replace(first, record=dataclasses.replace(first.record, **record)), *rest]
    )


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


def test_methods_are_found_by_name(monkeypatch):
    found = discover()
    assert set(APPROXIMATE) <= set(found) and all(found[n].tier == "approximate" for n in APPROXIMATE)
    assert all(m.name == n and m.summary and m.paper.startswith("arXiv:") for n, m in found.items() if n in APPROXIMATE)
    with pytest.raises(UnlearningError, match="no method of unlearning 'simmpo'") as caught:
        named("simmpo")
    assert caught.value.hint == "Did you mean 'simnpo'?"

    class Entry:
        value = "other:npo"

        def load(self):
            return made

    monkeypatch.setattr(methods, "entry_points", lambda group: [Entry()])
    made = Method(name="mine", tier="approximate", run=found["npo"].run, summary="mine")
    assert discover()["mine"] is made
    made = dataclasses.replace(made, name="npo")
    with pytest.raises(UnlearningError, match="Two methods of unlearning are named 'npo'"):
        discover()


def test_defaults_are_the_published_ones():
    found = {name: dict(named(name).defaults) for name in APPROXIMATE}
    for name, settings in found.items():
        rates = {"undial": 1e-4, "rmu": 5e-5}
        assert settings["learning_rate"] == rates.get(name, 1e-5) and settings["epochs"] == 10
    assert {n: s["gamma"] for n, s in found.items() if s.get("gamma", 1) != 1} == {"simnpo": 0.125}
    assert {n: s["alpha"] for n, s in found.items() if s.get("alpha", 1) != 1} == {"grad_ascent": 0, "rmu": 1200}
    assert [found[n]["beta"] for n in ("npo", "simnpo", "dpo", "idk_dpo", "undial", "wga")] == [
        0.1,
        4.5,
        0.1,
        0.1,
        10,
        1,
    ]
    assert (found["simnpo"]["delta"], found["satimp"]["beta1"], found["satimp"]["beta2"]) == (0, 5, 1)
    assert (found["rmu"]["steering"], found["task_vector"]["strength"], found["alt_po"]["alternatives"]) == (2, 1, 5)
    assert found["idk_ap"]["retain"] == "answer_preservation" and found["npo"]["retain"] == "nll"
    assert not any("quirks" in s for s in found.values())


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
    from sordino.unlearn import alternatives

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
