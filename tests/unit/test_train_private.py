"""Private training from a configuration to a run, its ledger and its audit."""

import json
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sordino.audit.flow import audit
from sordino.config import DPConfig, load
from sordino.dp.accounting import decode_event, repeated, spend
from sordino.dp.mechanism import Mechanism
from sordino.errors import RunError
from sordino.ledger import Journal, read_ledger
from sordino.model import save
from sordino.records import Example, Message, Record
from sordino.report import render_html
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.train.flow import create, fine_tune, plan_of, prepare, train_run
from sordino.train.objective import Objective
from sordino.train.private import PrivateSteps
from sordino.train.promise import earlier, members_of

COUNT = count()
WORDS = [f"name{n}" for n in range(20)]


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    """A small model: what is tested does not depend on it."""
    folder = tmp_path_factory.mktemp("base")
    save(make_model("llama"), folder)
    return folder


@pytest.fixture
def records(tmp_path, base):
    (tmp_path / "base").symlink_to(base)
    rng = np.random.default_rng(0)
    with (tmp_path / "r.jsonl").open("w") as file:
        for i in range(160):
            text = " ".join(rng.choice(WORDS, 12))
            file.write(json.dumps({"text": text, "who": f"p{i // 2}"}) + "\n")
    return tmp_path / "r.jsonl"


def config(records, **more):
    values = {
        # A folder of its own, as runs side by side are added up.
        "data": {"path": str(records), "unit": "who"}, "out": str(records.parent / f"runs{next(COUNT)}"),
        "canaries": {"per_level": 1, "digits": 3}, "split": {"candidates": 0.8},
        "method": {"rank": 4}, "model": {"path": str(records.parent / "base"), "device": "cpu"},
        "train": {"epochs": 1, "batch_size": 8, "learning_rate": 5e-3, "checkpoint_every": 3,
                  "per_sample": "book-keeping"},
        "dp": {"noise_multiplier": 0.6},
    }  # fmt: skip
    return load(values={**values, **more}, environment={})


def test_a_private_run_tells_all_that_makes_its_claim(records):
    run = fine_tune(config(records, dp={"epsilon": 8.0}))
    card, [entry] = run.card, read_ledger(run.path / "ledger.json")
    assert 7.5 < card.privacy["epsilon"] <= 8.0 and card.privacy["protected unit"] == "subject"
    assert (
        card.privacy["steps"] == entry.planned == entry.started == card.training["step"] and entry.status == "finished"
    )
    assert entry.fingerprint == card.data["fingerprint"] and not entry.secret_recorded_seed
    assert "loss" not in card.training and "last clip norm" not in card.privacy
    # What noise and samples came from is gone.
    assert not (run.private / "dp_secret").exists()
    tuned = [json.loads(line) for line in (run.private / "losses.jsonl").read_text().splitlines()]
    assert len([line for line in tuned if "loss" in line]) == entry.planned


def test_the_dry_run_promises_what_the_run_keeps(records):
    settings = config(records)
    prepared = prepare(settings)
    plan = plan_of(settings, prepared)
    run = train_run(create(settings, prepared))
    kept = run.card.privacy
    assert all(plan[key] == value for key, value in kept.items() if key in plan and key != "steps")
    assert plan["steps"] == kept["steps"] and len(plan["curve"]) > 10


def test_runs_on_the_same_data_add_up(records):
    out = str(records.parent / "together")
    first, second = (fine_tune(config(records, out=out)).card.privacy for _ in range(2))
    assert "epsilon with earlier runs" not in first
    assert second["earlier runs on this data"] == 1
    assert first["epsilon"] < second["epsilon with earlier runs"] < 2 * first["epsilon"]
    settings = config(records, out=out, dp={"noise_multiplier": 0.6, "unit": "record"})
    assert plan_of(settings, prepare(settings))["earlier runs with another promise"] == 2


def test_a_seed_repeats_the_run_and_is_owned_up_to(records):
    runs = [fine_tune(config(records, dp={"noise_multiplier": 0.6, "seed": 7})) for _ in range(2)]
    first, second = (run.card for run in runs)
    assert first.model["weights"] == second.model["weights"] and first.privacy["seeded"]
    other = fine_tune(config(records))
    assert other.card.model["weights"] != first.model["weights"]


class Stop(Exception):
    pass


def stopped(records):
    """A run that was interrupted after its first step."""

    def stop(progress, steps):
        raise Stop

    settings = config(records)
    run = create(settings, prepare(settings))
    with pytest.raises(Stop):
        train_run(run, monitor=stop)
    return run


def test_a_crashed_step_is_spent_and_the_rest_goes_on(records):
    settings = config(records, dp={"noise_multiplier": 0.6, "seed": 7})
    run = create(settings, prepare(settings))
    planned = []

    def stop(progress, steps):
        planned.append(steps)
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        train_run(run, monitor=stop)
    assert Journal(run.private / "dp_steps").started == 5
    seen = []
    train_run(Run.open(run.path), monitor=lambda progress, steps: seen.append(progress.step))
    # The last checkpoint was at step 3; steps 4 and 5 were taken, and are not taken again.
    assert seen == list(range(6, planned[0] + 1))
    [entry] = read_ledger(run.path / "ledger.json")
    assert entry.started == planned[0]


def test_an_adaptive_norm_goes_on_from_the_weights_it_belongs_to(records):
    settings = config(records, dp={"epsilon": 8.0, "clipping": "adaptive", "seed": 7})
    run, norms = create(settings, prepare(settings)), {}

    def stop(progress, steps):
        norms[progress.step] = progress.clip_norm
        if progress.step == 5:
            raise Stop

    with pytest.raises(Stop):
        train_run(run, monitor=stop)
    assert len(set(norms.values())) == 5
    kept = json.loads((run.checkpoints / "last" / "progress.json").read_text())
    assert (kept["step"], kept["clip_norm"]) == (3, norms[3])
    after = []
    card = train_run(Run.open(run.path), monitor=lambda progress, steps: after.append(progress.clip_norm)).card
    # Step 6 began with the norm of step 3: one step moves it by e^0.2 and a little noise at most.
    assert abs(np.log(after[0] / norms[3])) < 0.3 and card.privacy["last clip norm"] == round(after[-1], 6)
    assert "adaptive, quantile 0.5" in card.privacy["clipping"] and "clip_norm" not in card.training


def test_a_shuffled_run_spends_whole_epochs(records):
    settings = config(
        records, dp={"noise_multiplier": 3.0, "sampler": "shuffled", "relation": "replace-one"},
        train={"epochs": 3, "batch_size": 16, "learning_rate": 1e-3, "checkpoint_every": 1},
    )  # fmt: skip
    run = create(settings, prepare(settings))

    def stop(progress, steps):
        if progress.step == a_epoch + 1:
            raise Stop

    plan = plan_of(settings, prepare(settings))
    a_epoch = plan["steps"] // 3
    with pytest.raises(Stop):
        train_run(run, monitor=stop)
    [begun] = earlier(run.path.parent, run.card.data["fingerprint"])
    assert begun.started == a_epoch + 1 and begun.events(begun.started) == 2
    card = train_run(Run.open(run.path)).card
    [entry] = read_ledger(run.path / "ledger.json")
    assert entry.events(entry.started) == 3 and entry.mechanism["steps_per_event"] == a_epoch
    spent = spend(repeated(decode_event(entry.step_event), 3), delta=entry.delta, relation="replace-one")
    assert card.privacy["epsilon"] == round(spent.epsilon, 4) == plan["epsilon"]
    again = plan_of(settings, prepare(settings))
    both = spend(repeated(decode_event(entry.step_event), 6), delta=entry.delta, relation="replace-one")
    assert again["epsilon with earlier runs"] == round(both.epsilon, 4)


def test_another_plan_under_the_same_ledger_is_refused(records):
    run = stopped(records)
    card = json.loads((run.path / "run.json").read_text())
    card["config"]["dp"]["noise_multiplier"] = 0.7
    (run.path / "run.json").write_text(json.dumps(card))
    with pytest.raises(RunError, match="promises another mechanism"):
        train_run(Run.open(run.path))


@pytest.mark.parametrize("broken", ["save", "weights_digest"])
def test_a_run_that_ended_but_for_its_card_is_ended(records, monkeypatch, broken):
    settings = config(records)
    run = create(settings, prepare(settings))

    def stop(*_):
        raise Stop

    with monkeypatch.context() as patch:
        patch.setattr(f"sordino.model.{broken}", stop)
        with pytest.raises(Stop):
            train_run(run)
    card = train_run(Run.open(run.path)).card
    assert card.status == "trained" and card.privacy["steps"] == card.training["step"]
    assert not (run.private / "dp_secret").exists()


def test_a_damaged_ledger_beside_it_is_found_before_anything_is_spent(records):
    settings = config(records)
    run = create(settings, prepare(settings))
    (run.path.parent / "other").mkdir()
    (run.path.parent / "other" / "ledger.json").write_text("{")
    with pytest.raises(RunError, match="damaged"):
        train_run(run)
    assert not (run.private / "dp_steps").exists()


def test_a_lost_secret_ends_the_training(records):
    run = stopped(records)
    (run.private / "dp_secret").unlink()
    with pytest.raises(RunError, match=r"secret .* is gone"):
        train_run(Run.open(run.path))


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_the_loss_of_a_unit(make_model, loss):
    model = make_model("llama")
    rng = np.random.default_rng(0)
    made = [
        Tokens(ids=rng.integers(5, 100, size=n).astype(np.int32), target=np.arange(n) >= first, text="")
        for n, first in ((7, 1), (12, 4), (5, 2))
    ]
    seen = []

    class Shown(Mechanism):
        def __init__(self):
            self.plan = SimpleNamespace(settings=DPConfig(epsilon=1, loss=loss))

        def clip(self, losses, *, units):
            seen.append(losses().reshape(units, -1).sum(1))
            return seen[0]

    steps = PrivateSteps(model, made, [[0], [1, 2]], Shown())
    steps._part([[0], [1, 2]], Objective(model, "fp32", picks=False))
    with torch.no_grad():
        nll = []
        for one in made:
            logits = model.module(torch.from_numpy(one.ids)[None].long()).logits[0].log_softmax(-1)
            nll.append([-float(logits[t - 1, one.ids[t]]) for t in np.flatnonzero(one.target)])
    combine = np.mean if loss == "mean" else np.sum
    assert seen[0].tolist() == pytest.approx([combine(nll[0]), combine(nll[1] + nll[2])], rel=1e-5)


def test_members_are_the_sequences_of_a_unit():
    def example(name, unit, group):
        record = Record(id=name, unit=unit, messages=(Message("text", name),))
        return Example(record=record, role="train", included=True, group=group)

    examples = [example("a", "u", "g"), example("b", "u", "g"), example("c", "v", "g"), example("d", "w", "w")]
    owners = [0, 0, 1, 2, 3]
    assert members_of(examples, owners, "record") == [[0, 1], [2], [3], [4]]
    assert members_of(examples, owners, "subject") == [[0, 1, 2], [3], [4]]
    assert members_of(examples, owners, "cluster") == [[0, 1, 2, 3], [4]]


# Others take a step and are read again in test_dp_reload.py.
@pytest.mark.parametrize(
    "method", [pytest.param({"kind": "full"}, marks=pytest.mark.slow), {"kind": "prefix", "virtual_tokens": 4}]
)
def test_other_methods_train_privately(records, method):
    run = fine_tune(config(records, method=method, dp={"noise_multiplier": 1.0, "unit": "record"}))
    assert run.card.privacy["protected unit"] == "record" and run.card.training["validation"] > 0


def test_every_way_to_the_norms_gives_the_same_weights(records):
    found = []
    for way in ("book-keeping", "two-backward", "one-by-one"):
        settings = config(
            records, dp={"noise_multiplier": 1.0, "seed": 3},
            train={"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "per_sample": way, "accumulation": 2},
        )  # fmt: skip
        run = fine_tune(settings)
        from safetensors.torch import load_file

        found.append(load_file(str(run.weights / "adapter_model.safetensors")))
    for other in found[1:]:
        for name, tensor in found[0].items():
            torch.testing.assert_close(other[name], tensor, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kind", ["lora", pytest.param("full", marks=pytest.mark.slow)])
def test_a_classifier_trains_privately(records, kind):
    rng = np.random.default_rng(1)
    with records.open("w") as file:
        for _ in range(120):
            words = rng.choice(WORDS, 8)
            file.write(json.dumps({"text": " ".join(words), "label": str(words[0] in WORDS[:10])}) + "\n")
    run = fine_tune(
        config(
            records, task="classification", data={"path": str(records), "label": "label"},
            method={"kind": kind}, train={"epochs": 1, "batch_size": 16},
        )
    )  # fmt: skip
    assert run.card.privacy["protected unit"] == "subject" and run.card.training["accuracy"] >= 0


def test_the_audit_tells_the_claim_beside_what_it_measured(records):
    run = fine_tune(config(records, dp={"noise_multiplier": 0.6, "unit": "cluster"}))
    report = audit(run)
    bound = next(gate for gate in report.gates if gate.name == "bound")
    assert bound.passed is True and bound.finding.startswith("Claimed ε = ") and "for a cluster" in bound.finding
    ledger = (run.path / "ledger.json").rename(run.path / "away")
    with pytest.raises(RunError, match="no ledger"):
        audit(run)
    ledger.rename(run.path / "ledger.json")
    claim = report.claims[-1]
    assert claim.statement.startswith("The training was differentially private: ε = ") and claim.status == "supported"
    page = render_html(report, run.card)
    assert "Differential privacy" in page and "dp-accounting" in page


@pytest.mark.slow
def test_a_claim_about_less_than_a_coin_decides_about_is_not_held_against_the_bound(records):
    other = fine_tune(config(records, dp={"noise_multiplier": 0.6, "unit": "record"}))
    bound = next(gate for gate in audit(other).gates if gate.name == "bound")
    assert bound.passed is None and "A coin decides about" in bound.finding
