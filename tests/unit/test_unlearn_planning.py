"""The plan of a deletion: the cheapest way that promises enough, its cost against a count, and every refusal."""

import pytest

from sordino.config import load
from sordino.errors import RunError, UnlearningError
from sordino.records import Example, Message, Record, Split
from sordino.results import Cost, DeletionRequest
from sordino.run import Run
from sordino.unlearn.base import Deletion, Method
from sordino.unlearn.methods import discover
from sordino.unlearn.planning import DEFAULT_METHOD, Policy, decide, expected_share, options, settled

METHODS = discover()


def examples(count, start=0, *, chat=False, rejected=None):
    roles = ("user", "assistant") if chat else ("text",)
    return [
        Example(
            record=Record(
                id=f"r{n}", unit=f"u{n // 2}", rejected=rejected, messages=tuple(Message(r, f"{r} {n}") for r in roles)
            ),
            role="train", included=True, group=f"u{n // 2}",
        )
        for n in range(start, start + count)
    ]  # fmt: skip


@pytest.fixture
def deletion(tmp_path):
    """`deletion(**keys)`: 4 of 40 records are to go, of a run of 5 epochs; `keys` are of its configuration."""

    def make(forget=None, **keys):
        forget = examples(4) if forget is None else forget
        values = {"data": {"path": "x.jsonl"}, "train": {"epochs": 5}, "model": {"device": "cpu"}, **keys}
        made = Deletion(
            run=Run(tmp_path), forget=forget, others=[], retain=examples(36, 4), never=[], validation=[],
            request=DeletionRequest(id="q", created="now", run=tmp_path.name, kind="subject", names=("u0", "u1")),
            left=Split(examples=examples(36, 4)),
        )  # fmt: skip
        made.__dict__["config"] = load(values=values, environment={})
        return made

    return make


def planned(deletion, spent=0, **wanted):
    return decide(deletion, Policy(**wanted), METHODS, spent)


def test_without_a_guarantee_the_default_method_is_taken_and_the_reasons_are_written_down(deletion):
    made = planned(deletion())
    assert (made.method, made.tier, made.request) == (DEFAULT_METHOD, "approximate", "q")
    assert made.counts == {"forget": 4, "others": 0, "retain": 36, "never": 0, "subjects": 2}
    assert [why.split(":")[0] for why in made.why] == ["exact, shards", "dp, dp"]
    assert made.settings == METHODS[DEFAULT_METHOD].defaults


@pytest.mark.parametrize("least", ["exact", "dp"])
def test_where_more_is_to_be_promised_and_nothing_is_cheaper_the_run_is_trained_anew(deletion, least):
    made = planned(deletion(), least=least)
    assert (made.method, made.tier, made.share) == ("retrain", "exact", 1.0)


def counted(epochs, passes, forget=4, trained=36, of=5):
    """The share, by counting records: `passes` over each to forget an epoch; training anew reads those that stay."""
    done = sum(passes for _ in range(epochs) for _ in range(forget))
    return done / sum(1 for _ in range(of) for _ in range(trained))


@pytest.mark.parametrize(
    ("name", "settings", "expected"),
    [
        ("grad_ascent", {"epochs": 5}, counted(5, 1)),
        ("grad_ascent", {"epochs": 5, "alpha": 1.0}, counted(5, 2)),
        ("grad_diff", {"epochs": 5}, counted(5, 2)),
        ("grad_diff", {"epochs": 5, "alpha": 0.0}, counted(5, 1)),
        ("npo", {"epochs": 5}, counted(5, 2) + counted(1, 1) / 3),
        ("undial", {"epochs": 3}, counted(3, 2 + 1 / 3)),
        ("do_nothing", {}, 0.0),
    ],
)
def test_the_expected_share_is_what_counting_gives(deletion, name, settings, expected):
    found = expected_share(deletion(), METHODS[name], settled(METHODS[name], settings))
    assert found == (None if expected is None else pytest.approx(expected))


def test_a_method_that_is_named_is_taken_though_another_is_cheaper_and_keeps_its_settings(deletion):
    made = planned(deletion(), method="npo", settings={"beta": 0.5}, search=4)
    assert made.method == "npo" and made.settings["beta"] == 0.5 and made.settings["search"] == 4
    assert planned(deletion(), method="retrain").share == 1.0


def test_of_guarantees_the_cheapest_is_taken_and_settings_of_the_default_method_are_not_its(deletion, monkeypatch):
    found = deletion(shards={"count": 4, "slices": 2})
    monkeypatch.setattr("sordino.unlearn.methods.shards.expected", lambda _: 0.2)
    made = planned(found, search=3)
    assert (made.method, made.tier, made.share) == ("shards", "exact", 0.2)
    assert made.settings == METHODS["shards"].defaults
    monkeypatch.setattr("sordino.unlearn.methods.shards.expected", lambda _: 1.5)
    assert planned(found).tier == "approximate" and planned(found, least="exact").method == "retrain"


def test_differential_privacy_is_taken_as_long_as_its_capacity_lasts(deletion, monkeypatch):
    asked = []

    def check(deletion, epsilon, delta, spent):
        asked.append((epsilon, delta, spent))
        if spent > 2:
            raise UnlearningError("Used up.", "Take another.")

    monkeypatch.setattr("sordino.unlearn.verifying.capacity.check_capacity", check)
    found = deletion(dp={"epsilon": 1.0})
    made = planned(found, 2, epsilon=4.0, delta=1e-5)
    assert (made.method, made.share, made.settings["epsilon"], made.settings["delta"]) == ("dp", 0.0, 4.0, 1e-5)
    assert asked == [(4.0, 1e-5, 2)]
    used_up = planned(found, 3, epsilon=4.0, delta=1e-5)
    assert used_up.method == DEFAULT_METHOD and "dp, dp: Used up. Take another." in used_up.why
    assert "was not said" in planned(found).why[-1]
    assert planned(found, 3, epsilon=4.0, delta=1e-5, least="dp").method == "retrain"


@pytest.mark.parametrize(
    ("keys", "wanted", "text"),
    [
        ({}, {"method": "npoo"}, "no method 'npoo'. Did you mean 'npo'"),
        ({}, {"method": "shards"}, "not trained in shards"),
        ({}, {"method": "dp", "epsilon": 1.0, "delta": 1e-5}, "not trained under differential privacy"),
        ({}, {"method": "npo", "least": "exact"}, "Its tier is approximate, and at least exact"),
        ({}, {"method": "idk_dpo"}, "4 of 4 records are plain text"),
        ({}, {"method": "alt_po"}, "4 of 4 records are plain text"),
        ({}, {"method": "dpo"}, "4 of 4 records to forget have none"),
        ({"method": {"kind": "full"}}, {"method": "whp"}, "needs a LoRA adapter, and the run was tuned by full"),
        ({}, {"method": "retrain", "search": 2}, "search of 2 trials"),
        ({}, {"method": "do_nothing", "search": 2}, "no settings to search"),
    ],
)  # fmt: skip
def test_what_cannot_be_carried_out_is_refused_with_the_reason(deletion, monkeypatch, keys, wanted, text):
    monkeypatch.setattr("sordino.unlearn.methods.shards.expected", lambda _: 0.2)
    with pytest.raises(UnlearningError, match=text) as error:
        planned(deletion(**keys), **wanted)
    assert error.value.hint


def test_answers_that_are_there_are_no_reason_to_refuse(deletion):
    chat = examples(4, chat=True, rejected="No.")
    for name in ("idk_dpo", "alt_po", "dpo"):
        assert planned(deletion(forget=chat), method=name).method == name
    assert planned(deletion(method={"kind": "lora"}), method="whp").method == "whp"


@pytest.mark.parametrize(
    ("name", "given", "text"),
    [
        ("npo", {"betta": 1}, "no setting 'betta'. Did you mean 'beta'"),
        ("retrain", {"epochs": 1}, "no setting 'epochs'. It has no settings"),
        ("npo", {"epochs": 2.5}, "epochs of npo is 2.5"),
        ("npo", {"epochs": True}, "epochs of npo is True"),
        ("npo", {"learning_rate": "fast"}, "learning_rate of npo is 'fast'"),
        ("npo", {"learning_rate": float("nan")}, "learning_rate of npo is nan"),
        ("npo", {"retain": "klx"}, "Allowed: nll, kl"),
        ("npo", {"gamma": None}, "gamma of npo is None"),
        ("rmu", {"layer": -1}, "layer of rmu is -1"),
        ("shards", {"repair": 1}, "repair of shards is 1. Allowed: true or false"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(name, given, text):
    with pytest.raises(UnlearningError, match=text):
        settled(METHODS[name], given)


def test_settings_that_can_be_meant_are_taken():
    assert settled(METHODS["npo"], {"tolerance": None, "alpha": 0})["alpha"] == 0
    assert settled(METHODS["shards"], {"repair": True}) == {"repair": True}
    assert all(settled(method, method.defaults) == method.defaults for method in METHODS.values())


def test_a_method_of_another_package_can_be_named(deletion):
    added = Method(name="mine", tier="exact", run=lambda deletion, child: Cost(seconds=0, tokens=0), summary="anew")
    methods = {**METHODS, "mine": added}
    made = decide(deletion(), Policy(method="mine", least="exact"), methods)
    assert (made.method, made.tier, made.share) == ("mine", "exact", None)
    assert [o.method for o in options(deletion(), Policy(), METHODS)] == ["shards", "dp", DEFAULT_METHOD, "retrain"]
    assert made.counts["forget"] == 4


@pytest.mark.parametrize(
    ("error", "settings", "possible"),
    [
        (RunError("It has no shards."), {}, False), (RunError("It has no shards."), {"repair": True}, False),
        (UnlearningError("A snapshot is lost."), {}, False),
        (UnlearningError("A snapshot is lost."), {"repair": True}, True),
    ],
)  # fmt: skip
def test_shards_that_are_lost_are_rebuilt_where_that_is_asked_for(deletion, monkeypatch, error, settings, possible):
    def lost(_):
        raise error

    monkeypatch.setattr("sordino.unlearn.methods.shards.expected", lost)
    found = deletion(shards={"count": 4, "slices": 2})
    assert planned(found).tier == "approximate"  # and no plan fails for it
    if possible:
        assert planned(found, method="shards", settings=settings).method == "shards"
        return
    with pytest.raises(UnlearningError, match=error.message):
        planned(found, method="shards", settings=settings)
