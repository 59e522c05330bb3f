"""The three tiers from request to certificate, one request after the other, and what children are as runs."""

import dataclasses

import numpy as np
import pytest
from forgetting_fixtures import learned, quick, rows
from report_fixture import report
from shard_fixtures import same, snapshots

from sordino.audit.claimed import claimed
from sordino.auditing import run_audit
from sordino.deletions import Deletions
from sordino.errors import UnlearningError
from sordino.export import export
from sordino.model import save
from sordino.records.store import load as load_split
from sordino.records.store import save as save_split
from sordino.report import text
from sordino.report.view import provenance
from sordino.results import AuditPlan
from sordino.run import Run
from sordino.train.flow import train_run
from sordino.train.shard_plan import cells_of, fingerprint, read_manifest, read_stage, snapshot
from sordino.unlearn.base import Child, create_child, finish_child
from sordino.unlearn.certificates.checking import check
from sordino.unlearn.flow import begin
from sordino.unlearn.methods import discover, named
from sordino.unlearn.planning import Policy, decide
from sordino.unlearn.proving import evaluated, search_of
from sordino.unlearn.requests import new_request, resolve
from sordino.unlearn.requests.holdings import holdings
from sordino.unlearn.requests.purge import purge
from sordino.unlearn.tuning import searching
from sordino.unlearn.verifying.capacity import capacity, check_capacity, guarantee_of

PRIVATE = {"noise_multiplier": 6.0, "records_per_unit": 1, "delta": 1e-3}
TRAIN = {"epochs": 2, "learning_rate": 1e-2, "per_sample": "book-keeping"}
SOON = {"learning_rate": 2e-3, "epochs": 2, "batch_size": 4, "tolerance": None}
DELTA = 1e-2
# What a run holds in private whatever made it; all else would be of the method.
OWN = {"records.parquet", "manifest.json", "canaries.json", ".lock", "search"}


@pytest.fixture(scope="module")
def base(make_model, tmp_path_factory):
    """The folder of a random model."""
    folder = tmp_path_factory.mktemp("base")
    save(make_model("llama", seed=3), folder)
    return folder


def trained_on(run, count=1):
    """The first `count` subjects that `run` was trained on."""
    found = dict.fromkeys(e.record.unit for e in load_split(run.records).training if e.role != "canary")
    return list(found)[:count]


def asked(run, policy, count=1):
    """A request of the first subjects of `run`, planned."""
    made = begin(run, "subject", trained_on(run, count), acknowledged=True)
    made.plan(policy)
    return made


def certified(transaction, folder, **more):
    """Verify and certify what was carried out; the outcome, and whether the certificate holds."""
    found = transaction.verify(robustness=False)
    path = transaction.certify(folder / "key", **more)
    return found.outcome, check(path).sound


def worth(run, units):
    """An ε at which the guarantee of `run` covers just so many units at `DELTA`."""
    promised = guarantee_of(run)
    return next(
        float(epsilon) for epsilon in np.geomspace(0.02, 20, 200)
        if capacity(promised, float(epsilon), DELTA, units=50).largest == units
    )  # fmt: skip


@pytest.mark.parametrize(("batch", "event"), [(50, "GaussianDpEvent"), (8, "SubsampledGaussian")])
def test_a_guarantee_serves_until_it_is_used_up_and_then_another_tier(base, tmp_path, batch, event):
    run = learned(tmp_path, base, rows=rows(80), dp=PRIVATE, train={**TRAIN, "batch_size": batch})
    assert event in str(guarantee_of(run).event)
    policy = Policy(least="dp", epsilon=worth(run, 2), delta=DELTA)
    current = run
    for before in range(2):
        transaction = asked(current, policy)
        current = transaction.execute()
        told = current.card.unlearning["guarantee"]
        assert (transaction.planned.tier, told["spent"], told["capacity"]) == ("dp", before, 2)
        assert current.card.model["weights"] == run.card.model["weights"] and current.card.privacy == run.card.privacy
        if before:
            assert certified(transaction, tmp_path) == ("pass", True)
    transaction = asked(current, policy)
    plan = transaction.planned
    assert (plan.tier, plan.method) == ("exact", "retrain") and "0 are left" in " ".join(plan.why)
    weaker = decide(transaction.resolved(), dataclasses.replace(policy, least="approximate"), discover(), 2)
    assert (weaker.tier, weaker.method) == ("approximate", "grad_diff")
    anew = transaction.execute()
    # What was trained anew has a guarantee of its own, under which nobody was deleted yet.
    assert Deletions.open(run.path.parent).spent(current.card.name) == 2
    assert Deletions.open(run.path.parent).spent(anew.card.name) == 0
    assert asked(anew, policy).planned.tier == "dp"
    assert anew.card.config["train"]["batch_size"] == min(batch, run.card.data["counts"]["trained"] - 3)


def test_a_guarantee_about_another_unit_is_refused(base, tmp_path):
    lines = [{**row, "who": f"s{i // 2}", "id": f"r{i}"} for i, row in enumerate(rows(80))]
    shared = {"rows": lines, "data": {"id": "id"}, "train": {**TRAIN, "epochs": 1, "batch_size": 8}}
    for unit, kind in (("subject", "record"), ("record", "subject")):
        run = learned(tmp_path / unit, base, dp={**PRIVATE, "unit": unit}, **shared)
        first = next(e.record for e in load_split(run.records).training if e.role != "canary")
        name = {"record": first.id, "subject": first.unit}
        made = begin(run, kind, [name[kind]], acknowledged=True)
        plan = made.plan(Policy(epsilon=8.0, delta=DELTA))
        assert plan.tier == "approximate" and f"protects each {unit}, and {kind}s are to go" in " ".join(plan.why)
        with pytest.raises(UnlearningError, match=f"protects each {unit}"):
            check_capacity(made.resolved(), 8.0, DELTA)
        other = begin(run, unit, [name[unit]], acknowledged=True)
        assert other.plan(Policy(epsilon=8.0, delta=DELTA)).tier == "dp"


def test_steps_that_are_not_private_take_the_claim_away(base, tmp_path, capsys):
    run = learned(tmp_path, base, rows=rows(80), dp=PRIVATE, train={**TRAIN, "epochs": 1, "batch_size": 8})
    made = asked(run, Policy(method="npo", settings=SOON)).execute()
    assert run.card.privacy and not made.card.privacy and not (made.path / "ledger.json").exists()
    assert "no-longer-private" in [one.kind for one in made.card.notices]
    coins = [e for e in load_split(made.records).examples if e.role == "candidate"]
    assert claimed(run, coins, AuditPlan()) is not None and claimed(made, coins, AuditPlan()) is None
    assert run_audit([str(made.path)], [], ["loss"], "quick", False) in (0, 4)
    bound = next(one for one in made.audit.gates if one.name == "bound")
    assert bound.passed is None and "No differential privacy is claimed" in bound.finding
    capsys.readouterr()
    said = text.deletion(made.card)
    assert run.card.name in said and "npo, tier approximate: empirical, no guarantee" in said
    assert said in (made.path / "report.html").read_text()
    card = (export(made, tmp_path / "out") / "README.md").read_text()
    assert "| Deletion | " in card and "none was claimed" in card
    with pytest.raises(UnlearningError, match="no ledger"):
        check_capacity(asked(made, Policy()).resolved(), 8.0, DELTA)


def place_all(run):
    """What each stage of `run` was trained on, and what it is to have been, by the key."""
    manifest, kept = read_manifest(run), load_split(run.records).training
    wanted = {c: fingerprint(manifest.key, (kept[i] for i in at)) for c, at in cells_of(kept, manifest).items()}
    return {cell: read_stage(snapshot(run, cell)).records for cell in manifest.cells}, wanted


def rest_of(run):
    """A run that was trained on what `run` holds, from the beginning, with its key."""
    card = run.card
    other = Run.create(run.path.parent, "other", "0000")
    save_split(load_split(run.records), other.records)
    other.write_private("canaries.json", (run.private / "canaries.json").read_bytes())
    blank = {"training": {}, "privacy": {}, "unlearning": {}, "model": {"path": card.model["path"]}}
    other.write_card(dataclasses.replace(card, name=other.path.name, status="prepared", parent=card.name, **blank))
    return train_run(other)


def holding(folder, texts):
    """The files under `folder` in which any of `texts` stands."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path for path in files if any(said.encode() in path.read_bytes() for said in texts)]


@pytest.mark.parametrize(("combine", "requests"), [("merge", 6), ("ensemble", 2)])
def test_a_chain_of_requests_on_shards_leaves_nothing_behind(base, tmp_path, combine, requests):
    shards = {"count": 4, "slices": 2, "combine": combine}
    current = learned(tmp_path, base, rows=rows(40), method={"rank": 4}, train={**TRAIN, "epochs": 1}, shards=shards)
    runs = current.path.parent
    for number in range(requests):
        transaction = asked(current, Policy())
        assert (transaction.planned.tier, transaction.planned.method) == ("exact", "shards")
        gone = transaction.resolved().forget
        current = transaction.execute()
        found, wanted = place_all(current)
        assert found == wanted and not set(trained_on(current, 99)) & {e.record.unit for e in gone}
        if number == 0:
            assert certified(transaction, tmp_path, purge=True)[1]
        else:
            purge(transaction.run, transaction.request, holdings(transaction.run, transaction.request))
        texts = [message.content for e in gone for message in e.record.messages]
        held = {e.record.id for path in runs.glob("*/run.json") for e in load_split(Run(path.parent).records).examples}
        assert held and not held & {e.record.id for e in gone}
        assert not holding(runs, texts) and not (transaction.run.private / "shards").exists()
        assert not [h for h in holdings(transaction.run, transaction.request) if h.removable]
    anew = rest_of(current)
    assert same(snapshots(current), snapshots(anew)) and current.card.model["weights"] == anew.card.model["weights"]
    if combine == "merge":
        export(current, tmp_path / "out")


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):
    """A run by LoRA that learned little, soon."""
    return learned(tmp_path_factory.mktemp("run"), base, rows=rows(60), train={"epochs": 2})


def begun(run, count=1):
    """A deletion that no ledger knows of."""
    return resolve(run, new_request(run, "subject", trained_on(run, count), acknowledged=True))


def ended(deletion, name, **settings):
    """The child that `name` makes of `deletion`."""
    method = named(name)
    child = Child(run=create_child(deletion, name), seed=3, settings={**method.defaults, **settings})
    with child.run.lock():
        cost = method.run(deletion, child)
    return finish_child(deletion, child, method, cost)


@pytest.mark.parametrize("name", ["npo", "alt_po", "task_vector", "rmu", "whp", "uld"])
def test_nothing_of_a_methods_own_work_stays(run, name):
    deletion = begun(run)
    given = {k: v for k, v in {**quick("lora", name), "epochs": 1}.items() if k in named(name).defaults}
    made = ended(deletion, name, **given)
    assert {path.name for path in made.private.iterdir()} <= OWN
    assert not holding(made.path, [m.content for e in deletion.forget for m in e.record.messages])


def test_what_is_true_of_unlearned_weights_ends_with_them(run):
    deletion = begun(run)
    first = ended(deletion, "whp", epochs=1)
    assert "remembers" in [one.kind for one in first.card.notices]
    with pytest.raises(UnlearningError, match="several adapters"):
        ended(begun(first), "whp", epochs=1)
    second = ended(begun(first), "retrain")
    kinds = [one.kind for one in second.card.notices]
    assert "remembers" not in kinds and kinds.count("deleted") == 2


def test_a_search_and_the_verification_see_other_records(base, tmp_path):
    run = learned(tmp_path, base, rows=rows(60), train={"epochs": 2}, split={"validation": 0.2})
    transaction = asked(run, Policy(method="grad_diff", settings=SOON, search=2))
    seen = []

    def noted(deletion, folder, parts):
        seen.extend(e.record.id for part in parts[1:] for e in part)
        return looked(deletion, folder, parts)

    looked = searching._losses
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(searching, "_losses", noted)
        child = transaction.execute()
    assert {path.name for path in child.private.iterdir()} <= OWN
    assert [path.name for path in (child.private / "search").rglob("*") if path.is_file()] == ["trials.json"]
    assert search_of(child, transaction.planned) == {"budget": 2, "trials": 1}  # nothing was left to be varied
    whole = transaction.resolved()
    judged = evaluated(whole, child, transaction.planned)
    kept = {e.record.id for e in (*judged.never, *judged.validation)}
    assert kept and seen and not kept & set(seen)
    assert kept | set(seen) == {e.record.id for e in (*whole.never, *whole.validation)}
    scores = transaction.scores("after")
    assert len(scores.never["loss"]) == len(judged.never) < len(whole.never)
    assert len(scores.validation["loss"]) == len(judged.validation) < len(whole.validation)


def test_a_model_that_nothing_was_deleted_from_says_nothing_of_it(run):
    assert text.deletion(run.card) == "" and "Deletion" not in dict(provenance(report(), run.card))
    told = {"tier": "exact", "method": "retrain", "promise": "trained on what stays", "forgotten": 1, "seed": 5}
    card = dataclasses.replace(run.card, parent="first", unlearning=told)
    assert text.deletion(card) == (
        "made from first when 1 record that it was trained on had to go, by retrain, tier exact: trained on what stays"
    )
    rows_of = dict(dict(provenance(report(), card))["Deletion"])
    assert rows_of["method"] == "retrain" and "seed" not in rows_of
