"""A run that was really trained: its manifest outlives training, and what was purged is not audited or exported."""

import dataclasses

import pytest
from deletion_fixtures import config_for, rows_of, sides

from sordino.audit.collecting import Collector
from sordino.deletions import Deletions
from sordino.errors import RunError
from sordino.export import export
from sordino.manifest import manifest_of, write_manifest
from sordino.records import load as load_split
from sordino.train.flow import fine_tune, prepare
from sordino.unlearn.base import create_child
from sordino.unlearn.requests import new_request, resolve
from sordino.unlearn.requests.exports import exports_of
from sordino.unlearn.requests.purge import holdings, purge


def test_from_training_to_a_purge(tmp_path):
    changes = {"model": {"device": "cpu"}, "train": {"epochs": 1, "batch_size": 32, "max_length": 16}}
    config = config_for(tmp_path, rows_of(), **changes)
    run = fine_tune(config)
    root = run.card.data["manifest"]["root"]
    assert run.card.status == "trained" and manifest_of(run).root == root
    out = export(run, tmp_path / "exported")
    assert [(one.path, one.merged) for one in exports_of(run)] == [(str(out.resolve()), False)]
    assert str(tmp_path) not in (run.path / "events.jsonl").read_text()

    request = new_request(run, "subject", sides(run)["trained"][:2])
    deletion = resolve(run, request)
    child = create_child(deletion, "retrain")
    child.weights.mkdir()
    (child.weights / "w.safetensors").write_bytes(b"w")
    write_manifest(child)
    child.write_card(dataclasses.replace(child.card, status="trained"))
    book = Deletions.open(config.out)
    book.receive(request)
    book.advance(request.id, "planned")
    book.advance(request.id, "executed", child=child.path.name)
    assert {e.record.id for e in prepare(config).split.examples} == {e.record.id for e in deletion.left.examples}

    made = purge(run, request, holdings(run, request))
    assert {one.kind for one in made if one.removed} == {"weights", "checkpoint", "export", "records"}
    assert not out.exists() and not run.weights.exists() and not [*run.checkpoints.iterdir()]
    for act in (lambda: Collector(run), lambda: export(run, tmp_path / "again"), lambda: manifest_of(run)):
        with pytest.raises(RunError):
            act()
    assert {e.record.unit for e in load_split(run.records).examples}.isdisjoint(request.names)
