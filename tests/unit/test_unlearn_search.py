"""The search for settings: what it may see, what it chooses, and that it goes on where it was."""

import dataclasses

import numpy as np
import pytest
from forgetting_fixtures import child_of, deletion_of, forgotten, learned

from sordino.errors import RunError, TrainingError, UnlearningError
from sordino.model import save
from sordino.results import Cost
from sordino.unlearn.methods import named
from sordino.unlearn.tuning import searching
from sordino.unlearn.tuning.searching import search, search_half, search_validation
from sordino.unlearn.tuning.trials import read_trials, spent_searching

GRID = {"learning_rate": (1e-4, 1e-3, 1e-2), "epochs": (1, 4)}
FAST = {"batch_size": 4, "schedule": "constant", "warmup": 0.0}


@pytest.fixture(scope="module")
def deletion(make_model, tmp_path_factory):
    """Four subjects ask to be forgotten by a model that was tuned whole."""
    folder = tmp_path_factory.mktemp("search")
    save(make_model("llama", seed=3), folder / "model")
    return deletion_of(learned(folder, folder / "model", "full"))


def test_halves_share_no_coin_and_miss_nothing(deletion):
    never = [
        dataclasses.replace(e, group=f"g{i // 3}") for i, e in enumerate(deletion.never)
    ]  # fmt: skip
    ours, theirs = search_half(never, 3)
    assert sorted(e.record.id for e in [*ours, *theirs]) == sorted(e.record.id for e in never)
    assert not {e.group for e in ours} & {e.group for e in theirs}
    groups = {e.group for e in never}
    assert len({e.group for e in ours}) == len(groups) // 2
    assert search_half(never, 3) == (ours, theirs) != search_half(never, 4)
    assert search_validation(deletion, 3) == search_half(deletion.validation, 3)


def test_settings_are_found_that_forget_and_keep(deletion):
    child, said = child_of(deletion, "grad_diff", **FAST), []
    found = search(deletion, dataclasses.replace(child, say=said.append), "grad_diff", 7, GRID)
    trials = read_trials(child.run)
    # The published settings come first; no two are the same; the second half is between what was drawn.
    assert len(trials) == 7 and trials[0].settings["learning_rate"] == 1e-5
    tried = [(t.settings["learning_rate"], t.settings["epochs"]) for t in trials]
    assert len(set(tried)) == 7 and set(tried[1:4]) < {(r, n) for r in GRID["learning_rate"] for n in GRID["epochs"]}
    assert not {r for r, _ in tried[4:]} & set(GRID["learning_rate"])
    assert all(t.settings["batch_size"] == 4 for t in trials)
    kept = [t for t in trials if t.score is not None and t.utility <= 1.1]
    best = min(kept, key=lambda t: abs(t.forget - t.never))
    assert found.settings == best.settings and found.settings["learning_rate"] > 1e-4
    assert found.run == child.run and "best of 7 trials" in said[-1]
    # It is what the method gives.
    named("grad_diff").run(deletion, found)
    told = found.run.card.unlearning["utility"]
    assert told["after"] <= 1.1 * told["before"]
    forgotten(child)


def test_a_search_goes_on_and_is_paid_for(deletion, monkeypatch):
    whole, broken = child_of(deletion, "grad_ascent", **FAST), child_of(deletion, "grad_ascent", **FAST)
    search(deletion, whole, "grad_ascent", 3, GRID)
    left, tried = [2], searching._tried

    def dying(*of):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return tried(*of)

    monkeypatch.setattr(searching, "_tried", dying)
    with pytest.raises(KeyboardInterrupt):
        search(deletion, broken, "grad_ascent", 3, GRID)
    assert len(read_trials(broken.run)) == 2
    left[0] = 1
    again = search(deletion, broken, "grad_ascent", 3, GRID)
    assert left[0] == 0
    ours, theirs = read_trials(whole.run), read_trials(broken.run)
    assert [(t.settings, t.forget, t.never, t.utility) for t in ours] == [
        (t.settings, t.forget, t.never, t.utility) for t in theirs
    ]
    assert not list((broken.run.private / "search").glob("trial-*"))
    spent = spent_searching(broken.run)
    assert spent.tokens == sum(t.cost.tokens for t in theirs) > 0
    cost = named("grad_ascent").run(deletion, again)
    alone = child_of(deletion, "grad_ascent", **again.settings)
    bare = named("grad_ascent").run(deletion, alone)
    assert (cost.tokens, cost.forwards) == (bare.tokens + spent.tokens, bare.forwards + spent.forwards)
    for child in (whole, broken, alone):
        forgotten(child)


def made_up(losses):
    """Trials that end as `losses` says, by the number of epochs: in an error, or with a loss and a share of utility."""

    def fake(deletion, child, of, settings, number):
        cost = Cost(seconds=1.0, tokens=1)
        found = losses[settings["epochs"]]
        if isinstance(found, str):
            return searching.Trial(settings=settings, cost=cost, failed=found)
        forget, utility = found
        return searching.Trial(settings=settings, cost=cost, forget=forget, never=3.0, utility=utility)

    return fake


@pytest.mark.parametrize(
    ("losses", "chosen"),
    [
        ({10: (1.0, 1.0), 1: (2.9, 1.2), 2: (2.5, 1.1)}, 2),  # the closest lost too much
        ({10: (1.0, 1.0), 1: (9.0, 1.0), 2: (3.4, 1.0)}, 2),  # too far beyond is as bad as too far below
        ({10: (1.0, 1.0), 1: "UnsuitedSettings", 2: (float("nan"), 1.0)}, 10),
        ({10: "TrainingError", 1: (3.0, 1.11), 2: (3.0, None)}, None),
    ],
)
def test_the_closest_that_keeps_its_utility_is_chosen(deletion, monkeypatch, losses, chosen):
    monkeypatch.setattr(searching, "_tried", made_up(losses))
    child = child_of(deletion, "npo")
    if chosen is None:
        with pytest.raises(UnlearningError, match=r"None of 3 trials kept the validation loss within 10% \(1 failed\)"):
            search(deletion, child, "npo", 3, {"epochs": (1, 2)})
    else:
        assert search(deletion, child, "npo", 3, {"epochs": (1, 2)}).settings["epochs"] == chosen
    forgotten(child)


def test_a_trial_sees_half_and_says_how_it_failed(deletion, monkeypatch):
    seen = []

    def run(part, child):
        seen.append(part)
        raise TrainingError("The loss is nan.", "-")

    monkeypatch.setattr(searching, "named", lambda name: dataclasses.replace(named(name), run=run))
    child = child_of(deletion, "npo")
    with pytest.raises(UnlearningError, match=r"\(2 failed\)"):
        search(deletion, child, "npo", 2, GRID)
    assert [t.failed for t in read_trials(child.run)] == ["TrainingError"] * 2
    half, _ = search_half(deletion.never, child.seed)
    watched, _ = search_validation(deletion, child.seed)
    assert seen[0].never == half and seen[0].validation == watched and seen[0].forget == deletion.forget

    def empty(part, child):
        raise UnlearningError("1 of 4 records have no scored token.", "-")

    monkeypatch.setattr(searching, "named", lambda name: dataclasses.replace(named(name), run=empty))
    with pytest.raises(UnlearningError, match="no scored token"):
        search(deletion, child, "npo", 3, GRID)

    def full(part, child):
        raise TrainingError("The disk is full: - could not be written.", "-")

    monkeypatch.setattr(searching, "named", lambda name: dataclasses.replace(named(name), run=full))
    with pytest.raises(TrainingError, match="disk is full"):
        search(deletion, child, "npo", 3, GRID)
    forgotten(child)


@pytest.mark.parametrize("wanted", [3e-4, 2e-3])
def test_the_learning_rate_is_closed_in_on(deletion, monkeypatch, wanted):
    """A model whose loss rises with the rate; what is too high costs utility as well."""

    def fake(part, child, of, settings, number):
        loss = 3 + np.log10(settings["learning_rate"] / wanted)
        made = {"forget": float(loss), "never": 3.0, "utility": 1 + max(0.0, float(loss) - 3.2)}
        return searching.Trial(settings=settings, cost=Cost(seconds=1.0, tokens=1), **made)

    monkeypatch.setattr(searching, "_tried", fake)
    child = child_of(deletion, "npo")
    found = search(deletion, child, "npo", 12, {"learning_rate": (1e-5, 1e-4, 1e-3, 1e-2)})
    assert found.settings["learning_rate"] == pytest.approx(wanted, rel=0.1)
    forgotten(child)


def test_what_was_given_is_not_searched(deletion):
    child = child_of(deletion, "npo")
    settings = dict(named("npo").defaults) | {"learning_rate": 0.5}
    planned = searching._planned(named("npo"), settings, GRID, 9, 0)
    assert [p["epochs"] for p in planned] == [10, *sorted((1, 4), key=[p["epochs"] for p in planned].index)]
    assert {p["learning_rate"] for p in planned} == {0.5}
    forgotten(child)


def test_a_search_that_cannot_be_is_refused(deletion):
    child = child_of(deletion, "npo")
    for budget in (0, -1):
        with pytest.raises(UnlearningError, match="The budget of the search"):
            search(deletion, child, "npo", budget)
    with pytest.raises(UnlearningError, match="0 held-out and"):
        search(dataclasses.replace(deletion, never=[]), child, "npo", 1)
    with pytest.raises(UnlearningError, match="no method"):
        search(deletion, child, "nppo", 1)
    child.run.write_private("search/trials.json", b"[{}]")
    with pytest.raises(RunError, match="damaged"):
        search(deletion, child, "npo", 1)
    forgotten(child)
