"""Methods of approximate unlearning on small runs: what they change, what they leave, what they cost."""

import dataclasses

import pytest
import torch
from forgetting_fixtures import both, child_of, files, forgotten, losses, quick
from safetensors.torch import load_file

from sordino.errors import UnlearningError
from sordino.model import restore
from sordino.results import Cost
from sordino.train.reading import serializer_for
from sordino.unlearn import methods
from sordino.unlearn.base import Method
from sordino.unlearn.losses import FORGET
from sordino.unlearn.methods import discover, named
from sordino.unlearn.tuning.trials import Trial, write_trials

APPROXIMATE = (*FORGET, "rmu", "task_vector")


@pytest.fixture(scope="module")
def deletions(make_model, tmp_path_factory):
    """Runs that are asked to forget, one of each kind."""
    return both(make_model, tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def before(deletions):
    """The losses of the runs as they were."""
    return {kind: losses(deletion.run, deletion) for kind, deletion in deletions.items()}


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
    stays = len(deletion.left.training)
    anew = deletion.run.card.training["tokens"] * stays / (stays + len(deletion.forget))
    assert cost.share == pytest.approx((cost.tokens + cost.forwards / 3) / anew)
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
