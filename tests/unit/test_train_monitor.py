"""The monitor of canaries: it sees, writes, and leaves no trace in the training."""

import json
from itertools import count

import numpy as np
import pytest
import torch
from train_fixtures import fresh, some_tokens

from sordino.audit.flow import audit
from sordino.config import MethodConfig, load
from sordino.errors import RunError
from sordino.ledger import Entry, read_ledger, write_ledger
from sordino.model import attach, save
from sordino.report import render_html
from sordino.report.memorisation_plot import memorisation_svg
from sordino.report.text import promise
from sordino.results import Estimate, MemorisationLevel, MemorisationPoint
from sordino.train.flow import fine_tune
from sordino.train.monitor import levels, read_curve, secret_logprob
from sordino.train.planted import Planted, planted

COUNT = count()
CURVE = "memorisation.jsonl"


@pytest.fixture(scope="module")
def records(make_model, tmp_path_factory):
    rng = np.random.default_rng(0)
    words = [f"name{n}" for n in range(40)]
    path = tmp_path_factory.mktemp("data") / "r.jsonl"
    save(make_model("llama", seed=3), path.parent / "base")
    path.write_text("".join(json.dumps({"text": " ".join(rng.choice(words, 8))}) + "\n" for _ in range(120)))
    return path


def config(records, monitor, **more):
    values = {
        "data": {"path": str(records)}, "out": str(records.parent / f"runs{next(COUNT)}"),
        "model": {"path": str(records.parent / "base"), "device": "cpu"},
        "canaries": {"per_level": 4, "levels": [1, 3], "digits": 3, "audit": {"design": "new-token", "count": 20}},
        "method": {"rank": 4, "dropout": 0.1}, "audit": {"shuffles": 99},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "dropout": 0.1, "monitor": monitor},
    }  # fmt: skip
    return load(values={**values, **more}, environment={})


@pytest.fixture(scope="module")
def watched(records):
    return fine_tune(config(records, {"every": 5}))


def test_it_changes_nothing_about_the_training(records, watched):
    # Dropout draws from the random state at every step.
    plain = fine_tune(config(records, None))
    assert (plain.private / "losses.jsonl").read_bytes() == (watched.private / "losses.jsonl").read_bytes()
    assert plain.card.model["weights"] == watched.card.model["weights"]
    assert not (plain.private / CURVE).exists()


def test_the_curve_is_private_and_means_are_events(watched):
    path = watched.private / CURVE
    assert path.stat().st_mode & 0o777 == 0o600
    canaries = planted(watched)
    steps = [step for step, _ in read_curve(watched, canaries)]
    assert steps == list(range(5, watched.card.training["step"] + 1, 5)) and len(steps) >= 2
    events = [json.loads(line) for line in (watched.path / "events.jsonl").read_text().splitlines()]
    told = [e for e in events if e["event"] == "memorisation"]
    assert {(e["canaries"], e["repetitions"]) for e in told} == {("audit", 1), ("exposure", 1), ("exposure", 3)}
    assert {e["step"] for e in told} == set(steps)
    [last] = [e for e in told if e["step"] == steps[-1] and e["canaries"] == "audit"]
    gains = dict(read_curve(watched, canaries))[steps[-1]]
    mine = np.array([c.kind == "audit" and c.included for c in canaries])
    assert last["included"] == pytest.approx(gains[mine].mean(), abs=1e-3)
    assert "canary" not in json.dumps(told)


def test_scoring_leaves_model_mode_and_random_state_as_they_were(make_model):
    model = attach(fresh(make_model()), MethodConfig(rank=4, dropout=0.5), 0)
    model.module.train()
    state, weights = torch.get_rng_state(), {n: p.clone() for n, p in model.module.named_parameters()}
    tokens = some_tokens(40)
    found = secret_logprob(model, tokens)
    assert model.module.training and torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, weights[n]) and p.grad is None for n, p in model.module.named_parameters())
    # The same in any company, and as computed by hand.
    again = secret_logprob(model, tokens[::-1])[::-1]
    np.testing.assert_allclose(found, again, atol=1e-5)
    with model.active() as module, torch.inference_mode():
        ids = torch.from_numpy(tokens[0].ids.astype(np.int64))[None]
        logprobs = module(input_ids=ids).logits[0].log_softmax(-1)
        byhand = logprobs[torch.arange(len(tokens[0]) - 1), ids[0, 1:]].mean()
    assert found[0] == pytest.approx(float(byhand), abs=1e-5)


def test_a_canary_without_a_token_to_predict_is_no_number(make_model):
    [tokens] = some_tokens(1)
    empty = type(tokens)(ids=tokens.ids, target=np.zeros(len(tokens), dtype=bool), text="")
    found = secret_logprob(make_model(), [tokens, empty])
    assert np.isfinite(found[0]) and np.isnan(found[1])


def test_levels_are_apart_by_kind_and_repetitions():
    coins = [("audit", 1, True), ("audit", 1, False), ("exposure", 1, True), ("exposure", 8, True), ("audit", 1, True)]
    canaries = [Planted(kind=kind, repetitions=k, included=i) for kind, k, i in coins]
    found = {(kind, k): (list(a), list(b)) for kind, k, a, b in levels(canaries, np.array([1.0, 2, 3, 4, np.nan]))}
    assert found == {("audit", 1): ([1.0], [2.0]), ("exposure", 1): ([3.0], []), ("exposure", 8): ([4.0], [])}


def test_the_report_shows_the_curve(watched):
    report = audit(watched, attacks=["loss"])
    assert [p.step for p in report.memorisation] == [s for s, _ in read_curve(watched, planted(watched))]
    page = render_html(report, watched.card)
    assert "Memorisation of canaries over" in page and "How much likelier secrets became" in page


@pytest.mark.parametrize(
    ("text", "words"), [('{"step": 5', "damaged in line 1"), ('{"step": 5, "gains": [1.0]}', "does not have")]
)
def test_a_damaged_curve_is_told(watched, tmp_path, text, words):
    import shutil

    from sordino.run import Run

    run = Run(shutil.copytree(watched.path, tmp_path / "run"))
    (run.private / CURVE).write_text(text + "\n")
    with pytest.raises(RunError, match=words):
        read_curve(run, planted(run))


def test_a_private_run_says_what_its_guarantee_does_not_cover(records):
    dp, train = {"noise_multiplier": 0.6}, {"epochs": 1, "batch_size": 16, "per_sample": "book-keeping"}
    canaries = {"per_level": 1, "levels": [1], "digits": 3}
    run = fine_tune(config(records, {}, dp=dp, canaries=canaries, train={**train, "monitor": {"every": 2}}))
    [entry] = read_ledger(run.path / "ledger.json")
    [warning] = entry.warnings
    assert "scored every 2 steps" in warning and "does not cover that choice" in warning
    assert list(run.card.privacy["warnings"]) == [warning] and warning in promise(run.card.privacy)
    assert warning in render_html(audit(run, attacks=["loss"]), run.card)
    plain = fine_tune(config(records, None, dp=dp, canaries=canaries, train=train))
    [entry] = read_ledger(plain.path / "ledger.json")
    assert entry.warnings == () and "warnings" not in plain.card.privacy


def test_a_ledger_without_warnings_is_written_as_before(tmp_path):
    entry = Entry(
        id="a", run="r", created="now", fingerprint="f", unit="record", relation="replace-one", delta=1e-5,
        mechanism={}, step_event={}, planned=1, started=1, status="finished", secret_recorded_seed=False,
    )  # fmt: skip
    write_ledger(tmp_path / "l.json", [entry])
    assert "warnings" not in (tmp_path / "l.json").read_text()
    assert read_ledger(tmp_path / "l.json") == (entry,)


def figure(value):
    return Estimate(value=value, low=value - 1, high=value + 1, n=5, method="m")


def test_the_picture_has_a_line_a_level_and_names_at_its_end():
    points = tuple(
        MemorisationPoint(
            step=step,
            levels=(
                MemorisationLevel(kind="audit", repetitions=1, included=figure(step / 10), left_out=figure(0.1)),
                MemorisationLevel(kind="exposure", repetitions=4, included=figure(step / 20), left_out=figure(0.0)),
            ),
        )
        for step in range(10, 5010, 10)
    )
    svg = memorisation_svg(points, key="m")
    assert ">audit<" in svg and ">4×<" in svg and "var(--accent)" in svg and "var(--control)" in svg
    assert len(svg) < 30_000 and 'aria-labelledby="m-title m-desc"' in svg and "style" not in svg
    assert "over 5,000 steps" in svg and "audit: 500" in svg
    assert memorisation_svg(points[:1], key="m") == memorisation_svg((), key="m") == ""
