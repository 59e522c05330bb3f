"""What plans say a method costs, against what its steps read, counted by hand."""

import dataclasses

import pytest

from sordino.config import TrainConfig
from sordino.errors import UnlearningError
from sordino.train.shard_plan import formula
from sordino.unlearn.base import Deletion
from sordino.unlearn.methods import discover, named
from sordino.unlearn.planning import expected_share, settled


@dataclasses.dataclass(frozen=True)
class _Config:
    train: TrainConfig


def deletion(forget: int, retain: int, epochs: int = 5) -> Deletion:
    """As many records to forget and to retain as are said; nothing else of it is looked at."""
    made = object.__new__(Deletion)
    made.__dict__.update(forget=range(forget), retain=range(retain), config=_Config(TrainConfig(epochs=epochs)))
    return made


def share(name: str, forget: int, **given: object) -> float:
    """Of 200 authors, with ten epochs of unlearning, against five of training."""
    found = expected_share(deletion(forget, 200 - forget), named(name), settled(named(name), given))
    assert found is not None
    return found


@pytest.mark.parametrize(("authors", "ascent", "with_retain"), [(1, 0.010, 0.020), (20, 0.22, 0.44)])
def test_the_figures_of_the_page_hold_for_ten_epochs_against_five_on_what_stays(authors, ascent, with_retain):
    assert share("grad_ascent", authors) == pytest.approx(ascent, rel=0.02)
    for name in ("grad_diff", "simnpo"):
        assert share(name, authors) == pytest.approx(with_retain, rel=0.02)


@pytest.mark.parametrize(("authors", "each_step"), [(1, 0.023), (20, 0.52)])
def test_a_reference_that_is_read_once_is_cheaper_than_one_that_is_read_in_each_step(authors, each_step):
    once = authors / (200 - authors)
    assert share("undial", authors) == pytest.approx(each_step, rel=0.025)
    assert share("npo", authors) == pytest.approx(once * (20 + 1 / 3) / 5)
    assert share("npo", authors) < 0.9 * each_step


@pytest.mark.parametrize(("shards", "authors", "cost"), [(8, 1, 0.078), (32, 1, 0.020), (8, 20, 0.75), (32, 20, 0.32)])
def test_shards_cost_what_the_page_says(shards, authors, cost):
    assert formula(shards, 4, authors) == pytest.approx(cost, rel=0.03)


@pytest.mark.parametrize(
    ("name", "given", "passes"),
    [
        ("grad_ascent", {"alpha": 1.0}, 20), ("grad_diff", {"retain": "kl"}, 10 * (1 + 4 / 3)),
        ("grad_diff", {"gamma": 0.0}, 10), ("npo", {"gamma": 0.0}, 10), ("idk_dpo", {}, 10 * 3 + 2 / 3),
        ("idk_ap", {}, 10 * 4), ("undial", {"alpha": 0.0}, 10 * 4 / 3), ("rmu", {}, 10 * (1 + 4 / 3)),
        ("task_vector", {"epochs": 2}, 2), ("whp", {"alpha": 2.0}, 3), ("uld", {}, 20), ("do_nothing", {}, 0),
    ],
)  # fmt: skip
def test_each_method_says_what_it_reads(name, given, passes):
    assert share(name, 1, **given) == pytest.approx(passes / 199 / 5)


def test_all_approximate_methods_say_what_they_read_and_all_defaults_can_be():
    for method in discover().values():
        assert settled(method, {}) == method.defaults
        assert (method.passes is None) == (method.tier != "approximate"), method.name


def test_a_method_that_does_not_say_has_no_share():
    silent = dataclasses.replace(named("npo"), passes=None)
    assert expected_share(deletion(1, 9), silent, settled(silent, {})) is None
    assert expected_share(deletion(9, 0), named("npo"), settled(named("npo"), {})) is None


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("shards", {"repair": 1}, "true or false"), ("npo", {"beta": 0}, "more than 0"),
        ("npo", {"epochs": 0}, "a whole number"), ("npo", {"learning_rate": "fast"}, "0 or more"),
        ("npo", {"epochs": True}, "a whole number"), ("retrain", {"epochs": 3}, "It has no settings"),
        ("npo", {"bata": 1.0}, "beta"),
    ],
)  # fmt: skip
def test_what_cannot_be_meant_is_refused_before_anything_is_planned(name, given, allowed):
    with pytest.raises(UnlearningError) as raised:
        settled(named(name), given)
    assert allowed in str(raised.value)
