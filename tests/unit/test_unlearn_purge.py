"""Purging: everything that holds the deleted is found, nothing else goes, and nothing is followed out of the folder."""

import dataclasses
import json
import os
from pathlib import Path

import pytest
from deletion_fixtures import config_for, finished, rows_of, sides

from sordino.deletions import Deletions
from sordino.errors import RunError, UnlearningError
from sordino.manifest import manifest_of, write_manifest
from sordino.records import load as load_split
from sordino.run import Run
from sordino.unlearn.base import create_child
from sordino.unlearn.requests import new_request, resolve
from sordino.unlearn.requests.exports import exports_of, remember_export
from sordino.unlearn.requests.purge import holdings, purge

PRIVATE = (
    "checkpoints/last/state.safetensors", "checkpoints/best/state.safetensors", "checkpoints/.last.x/a",
    "signals/k1/statistics.safetensors", "signals/k2/arrays.safetensors", "shadows/0123/run.json",
    "shards/00/slice-00/a", "scores.json", "passages.json", "people/abc.json", "references/x/weights/w",
    "new_tokens.safetensors", "anything.json",
)  # fmt: skip
KEPT = ("losses.jsonl", "memorisation.jsonl", "audit_canaries.json", "canaries.json", "manifest.json")


def fill(run: Run) -> None:
    """Everything that trainings and audits leave in a run."""
    for name in (*PRIVATE, *KEPT[:2]):
        path = run.private / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * 10)
    for name in ("audit.json", "ledger.json", "report.html", "report-revealed.html"):
        (run.path / name).write_text("{}")
    (run.path / ".weights.left").mkdir()


def child_of(run: Run, request, method: str = "retrain") -> Run:
    """A run that replaces `run`, with all its files."""
    child = create_child(resolve(run, request), method)
    child.weights.mkdir()
    (child.weights / "adapter_model.safetensors").write_bytes(b"other weights")
    write_manifest(child)
    child.write_card(dataclasses.replace(child.card, status="trained"))
    fill(child)
    return child


def carried_out(run: Run, request, child: Run, state: str = "executed") -> Deletions:
    book = Deletions.open(run.path.parent)
    book.receive(request)
    for one in ("planned", "executed", "verified")[: ("planned", "executed", "verified").index(state) + 1]:
        book.advance(request.id, one, **({"child": child.path.name} if one == "executed" else {}))
    return book


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.fixture
def told(tmp_path):
    """A filled run, a request of a subject to it, and the run that came of it."""
    run = finished(config_for(tmp_path, rows_of()))
    fill(run)
    request = new_request(run, "subject", sides(run)["trained"][:1])
    child = child_of(run, request)
    return run, request, child


def test_everything_is_listed_once_with_its_kind_and_size(told):
    run, request, child = told
    found = holdings(run, request)
    name = run.path.name
    kinds = {one.path: one.kind for one in found}
    assert len(kinds) == len(found) and all(one.run == name and one.relation == "run" for one in found)
    assert kinds == {
        f"{name}/weights": "weights", f"{name}/.weights.left": "weights",
        f"{name}/private/new_tokens.safetensors": "weights",
        f"{name}/private/checkpoints/last": "checkpoint", f"{name}/private/checkpoints/best": "checkpoint",
        f"{name}/private/checkpoints/.last.x": "checkpoint", f"{name}/private/shards": "checkpoint",
        f"{name}/private/signals/k1": "signal store", f"{name}/private/signals/k2": "signal store",
        f"{name}/private/shadows/0123": "shadow", f"{name}/private/references": "shadow",
        f"{name}/private/scores.json": "scores", f"{name}/private/passages.json": "scores",
        f"{name}/private/people": "scores", f"{name}/private/anything.json": "scores",
        f"{name}/report-revealed.html": "scores", f"{name}/private/records.parquet": "records",
    }  # fmt: skip
    sizes = {one.path: one.bytes for one in found}
    assert sizes[f"{name}/weights"] == len(b"weights") and sizes[f"{name}/private/people"] == 10
    assert sizes[f"{name}/private/records.parquet"] == run.records.stat().st_size
    assert not any(one.removed for one in found) and child.path.exists()


def test_nothing_is_purged_before_the_request_is_carried_out(told):
    run, request, _child = told
    before = snapshot(run.path.parent)
    with pytest.raises(UnlearningError, match="no request"):
        purge(run, request, holdings(run, request))
    for state in ("received", "planned", "failed"):
        book = Deletions.open(run.path.parent)
        book.receive(request) if state == "received" else book.advance(request.id, state)
        with pytest.raises(UnlearningError, match=f"is {state}: nothing replaces"):
            purge(run, request, holdings(run, request), dry_run=state == "planned")
    after = snapshot(run.path.parent)
    assert {name: data for name, data in after.items() if not name.startswith("deletions/")} == before


def test_a_dry_run_touches_nothing_and_a_purge_leaves_what_is_of_nobody(told):
    run, request, child = told
    carried_out(run, request, child)
    found = holdings(run, request)
    before = snapshot(run.path.parent)
    assert purge(run, request, found, dry_run=True) == found
    assert snapshot(run.path.parent) == before

    gone = {e.record.messages[0].content for e in resolve(run, request).forget}
    rest = [e for e in load_split(run.records).examples if e.record.unit not in request.names]
    root = run.card.data["manifest"]["root"]
    made = purge(run, request, found)
    assert [one.path for one in made] == [one.path for one in found]
    assert {one.path for one in made if not one.removed} == {f"deletions/{request.id}"}
    assert not (run.private / "audit_canaries.json").exists()  # none were planted
    left = {p.relative_to(run.path).as_posix() for p in run.path.rglob("*") if p.is_file()}
    assert left == {
        "run.json", "audit.json", "ledger.json", "report.html", "events.jsonl", "private/records.parquet",
        "private/.lock", *(f"private/{name}" for name in KEPT if name != "audit_canaries.json"),
    }  # fmt: skip
    assert [*load_split(run.records).examples] == rest
    assert run.records.stat().st_mode & 0o777 == 0o600
    assert not any(text.encode() in data for data in snapshot(run.path).values() for text in gone)
    assert run.card.data["manifest"]["root"] == root
    assert [n.count for n in run.card.notices if n.kind == "purged"] == [2]
    with pytest.raises(RunError, match=r"mismatch.*2 deleted records were purged"):
        manifest_of(run)
    after = snapshot(child.path)
    assert after == {n.split("/", 1)[1]: d for n, d in before.items() if n.startswith(f"{child.path.name}/")}
    assert {one.path for one in holdings(run, request)} == {f"deletions/{request.id}"}
    assert manifest_of(child).root == child.card.data["manifest"]["root"]


def test_a_purge_that_was_interrupted_is_made_again(told, monkeypatch):
    from sordino.unlearn.requests import purge as module

    run, request, child = told
    carried_out(run, request, child)
    found = holdings(run, request)
    for stop in (3, 9):
        calls = []
        remove = module.shutil.rmtree

        def killed(path, *rest, calls=calls, stop=stop, remove=remove, **more):
            calls.append(path)
            if len(calls) == stop:
                raise KeyboardInterrupt
            return remove(path, *rest, **more)

        with monkeypatch.context() as patch:
            patch.setattr(module.shutil, "rmtree", killed)
            with pytest.raises(KeyboardInterrupt):
                purge(run, request, found)
        again = holdings(run, request)
        assert any(one.kind == "records" for one in again), "records go last: by them the rest is found"
        found = again
    assert all(one.removed for one in purge(run, request, found) if one.kind != "request folder")
    assert {one.kind for one in holdings(run, request)} == {"request folder"}


def test_what_cannot_be_removed_is_told_and_the_rest_goes(told, monkeypatch):
    from sordino.unlearn.requests import purge as module

    run, request, child = told
    carried_out(run, request, child)
    remove = module.shutil.rmtree

    def stubborn(path, *rest, **more):
        if Path(path).name == "k1":
            raise PermissionError(13, "Permission denied")
        return remove(path, *rest, **more)

    monkeypatch.setattr(module.shutil, "rmtree", stubborn)
    made = {one.path.split("/")[-1]: one for one in purge(run, request, holdings(run, request))}
    assert not made["k1"].removed and "Permission denied" in made["k1"].why
    assert made["k2"].removed and made["records.parquet"].removed


def test_ancestors_go_and_siblings_only_when_asked_for(tmp_path):
    config = config_for(tmp_path, rows_of())
    first, names = finished(config), None
    names = sides(first)["trained"]
    other = finished(config_for(tmp_path, rows_of(), name="other"))
    elsewhere = finished(config_for(tmp_path, [r for r in rows_of() if r["customer"] != names[1]], name="without"))
    one = new_request(first, "subject", names[:1])
    second = child_of(first, one)
    carried_out(first, one, second)
    two = new_request(second, "subject", names[1:2])
    third = child_of(second, two)
    carried_out(second, two, third)
    found = holdings(second, two)
    assert {h.run: h.relation for h in found if h.relation != "request"} == {
        second.path.name: "run", first.path.name: "ancestor", other.path.name: "sibling",
    }  # fmt: skip
    assert elsewhere.path.name not in {h.run for h in found} and third.path.name not in {h.run for h in found}
    made = purge(second, two, found)
    assert not first.weights.exists() and not second.weights.exists() and other.weights.exists()
    assert all(h.removed == (h.relation in ("run", "ancestor")) for h in made)
    assert "make a request to it" in next(h.why for h in made if h.relation == "sibling")
    purge(second, two, holdings(second, two), siblings=True)
    assert not other.weights.exists() and third.weights.exists() and elsewhere.weights.exists()
    left = {e.record.unit for e in load_split(first.records).examples}
    assert names[1] not in left and names[0] in left, "another request's records are another request's"


def test_earlier_attempts_at_the_request_go_and_the_last_one_stays(told):
    run, request, child = told
    late = child_of(run, request, "npo")
    # Without a word of the ledger, nothing says which of them replaces the run.
    assert {one.relation for one in holdings(run, request)} == {"run"}
    carried_out(run, request, late)
    found = [one for one in holdings(run, request) if one.relation == "attempt"]
    assert {one.run for one in found} == {child.path.name}
    purge(run, request, holdings(run, request))
    assert not child.weights.exists() and late.weights.exists() and (late.private / "checkpoints").exists()
    stolen = dataclasses.replace(found[0], place=late.weights)
    with pytest.raises(UnlearningError, match="of the run that replaces"):
        purge(run, request, [stolen])
    assert late.weights.exists()


def test_a_run_where_the_records_were_only_held_out_keeps_its_weights(tmp_path):
    rows = rows_of()
    run = finished(config_for(tmp_path, rows))
    trained = sides(run)["trained"]
    other = finished(config_for(tmp_path, rows, name="other", seed=6))
    fill(other)
    held = next(name for name in trained if name in sides(other)["never"])
    request = new_request(run, "subject", [held])
    found = [one for one in holdings(run, request) if one.run == other.path.name]
    assert {one.kind for one in found} == {"signal store", "shadow", "scores", "records"}


def test_a_request_for_a_record_finds_the_record_and_not_its_subject(told):
    run, _, child = told
    mine = [e.record.id for e in load_split(run.records).training if e.role != "canary"]
    kept = next(name for name in mine if name in {e.record.id for e in load_split(child.records).training})
    gone = next(name for name in mine if name not in {e.record.id for e in load_split(child.records).training})
    assert {one.run for one in holdings(run, new_request(run, "record", [gone]))} == {run.path.name}
    assert {one.run for one in holdings(run, new_request(run, "record", [kept]))} == {run.path.name, child.path.name}


def test_exports_are_found_wherever_they_are_and_only_if_they_are_ours(told, tmp_path):
    run, request, child = told
    carried_out(run, request, child)
    places = [tmp_path / "outside", run.path.parent / "inside", tmp_path / "changed", tmp_path / "gone"]
    for number, place in enumerate(places):
        place.mkdir()
        (place / "model.safetensors").write_bytes(b"m%d" % number)
        remember_export(run, place, merged=number == 1)
    remember_export(run, places[0], merged=False)
    assert len(exports_of(run)) == 4 and (run.private / "exports.json").stat().st_mode & 0o777 == 0o600
    (places[2] / "model.safetensors").write_bytes(b"something else")
    (places[3] / "model.safetensors").unlink()
    places[3].rmdir()
    found = {one.path: one for one in holdings(run, request) if one.kind in ("export", "merge")}
    assert {path: (one.kind, one.removable) for path, one in found.items()} == {
        "elsewhere/outside": ("export", True), "inside": ("merge", True), "elsewhere/changed": ("export", False),
    }  # fmt: skip
    assert str(tmp_path) not in repr(found)
    purge(run, request, [*found.values()])
    assert [place.exists() for place in places] == [False, False, True, False]


def test_links_are_never_followed_out_of_the_folder(told, tmp_path):
    run, request, child = told
    carried_out(run, request, child)
    precious = tmp_path / "precious"
    (precious / "deep").mkdir(parents=True)
    (precious / "deep" / "file").write_text("keep")
    for name in ("signals", "shards", "checkpoints"):
        place = run.private / name
        place.rename(tmp_path / f"was-{name}")
        place.symlink_to(precious)
    (run.private / "people" / "link").symlink_to(precious)
    (run.path.parent / "linked-run").symlink_to(tmp_path / "other-run")
    found = {one.path: one for one in holdings(run, request)}
    assert f"{run.path.name}/private/signals" in found, "a link itself is listed, and not what is behind it"
    made = purge(run, request, [*found.values()])
    assert (precious / "deep" / "file").read_text() == "keep" and (tmp_path / "was-signals" / "k1").exists()
    assert not (run.private / "signals").is_symlink() and not (run.private / "people").exists()
    assert all(one.removed for one in made if one.kind != "request folder")


def test_a_run_behind_a_link_is_left_alone(told, tmp_path):
    run, request, child = told
    carried_out(run, request, child)
    found = holdings(run, request)
    moved = tmp_path / "moved"
    run.path.rename(moved)
    run.path.symlink_to(moved)
    before = snapshot(moved)
    made = purge(run, request, found)
    assert snapshot(moved) == before and not any(one.removed for one in made)
    assert {one.why for one in made if one.relation == "run"} == {
        "behind a link out of the folder of the runs, which is not followed"
    }


def test_runs_of_a_qualification_are_found(told):
    run, request, child = told
    carried_out(run, request, child)
    nested = run.path.parent / "deletions" / "qualifications" / "q" / "retrain-0"
    nested.mkdir(parents=True)
    (nested / "private").mkdir()
    (nested / "run.json").write_bytes((run.path / "run.json").read_bytes())
    (nested / "private" / "records.parquet").write_bytes(run.records.read_bytes())
    clean = nested.with_name("clean")
    clean.mkdir()
    (clean / "private").mkdir()
    (clean / "run.json").write_bytes((run.path / "run.json").read_bytes())
    (clean / "private" / "records.parquet").write_bytes(child.records.read_bytes())
    found = [one for one in holdings(run, request) if one.relation == "qualification"]
    assert [one.path for one in found] == ["deletions/qualifications/q/retrain-0"]
    purge(run, request, found)
    assert not nested.exists() and clean.exists()


def test_a_run_that_somebody_works_on_is_not_purged(told):
    run, request, child = told
    carried_out(run, request, child)
    before = snapshot(run.path)
    with run.lock(), pytest.raises(RunError, match="Another process"):
        purge(run, request, holdings(run, request))
    assert snapshot(run.path) == before


def test_a_damaged_list_of_exports_is_an_error(told):
    run, request, _ = told
    run.write_private("exports.json", json.dumps([1]).encode())
    with pytest.raises(RunError, match="exports"):
        holdings(run, request)
    assert os.path.exists(run.weights)
