"""Manifests: roots are those of a brute-force tree, a record keeps its leaf, and damage is noticed."""

import dataclasses
import hashlib
import json
import stat
import subprocess
import sys

import pytest
from deletion_fixtures import config_for, finished, rewrite, rows_of

from sordino.errors import RunError
from sordino.evidence.merkle import Tree, verify_absence, verify_inclusion
from sordino.manifest import Manifest, manifest_of, write_manifest
from sordino.records import Example, Message, Record, content_digest
from sordino.records import load as load_split
from sordino.records.store import save


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return finished(config_for(tmp_path_factory.mktemp("manifest"), rows_of()))


def by_hand(salt: bytes, example: Example) -> bytes:
    record = example.record
    state = hashlib.blake2b(key=salt, digest_size=32)
    for part in (record.unit, record.id, content_digest(record.messages, record.label, record.rejected)):
        state.update(len(part.encode()).to_bytes(8, "big") + part.encode())
    return state.digest()


def test_the_root_is_over_all_that_is_trained_on_and_nothing_else(made):
    salt = bytes.fromhex(json.loads((made.private / "manifest.json").read_bytes())["salt"])
    split = load_split(made.records)
    leaves = [by_hand(salt, e) for e in split.examples if e.included]
    assert any(e.role == "canary" for e in split.training)
    told = made.card.data["manifest"]
    assert told["root"] == Tree(leaves).root == manifest_of(made).root
    assert (told["records"], told["units"]) == (len(leaves), len({e.record.unit for e in split.training}))
    assert stat.S_IMODE((made.private / "manifest.json").stat().st_mode) == 0o600
    assert salt.hex() not in (made.path / "run.json").read_text()


def test_proofs_tell_who_was_trained_on_from_who_was_not(made):
    manifest, split = manifest_of(made), load_split(made.records)
    inside, outside = split.training[0], split.nonmembers[0]
    assert verify_inclusion(manifest.root, manifest.leaf(inside), manifest.tree.inclusion(manifest.leaf(inside)))
    assert verify_absence(manifest.root, manifest.leaf(outside), manifest.tree.absence(manifest.leaf(outside)))


def test_leaves_depend_on_each_part_and_on_nothing_else():
    def leaf(**changes):
        values = {"id": "r", "unit": "u", "messages": (Message("text", "x"),)} | changes
        example = Example(record=Record(**values), role="train", included=True, group="g")
        return Manifest(salt=b"s" * 32, leaves=(), units=0).leaf(example)

    other = [
        {"id": "q"}, {"unit": "v"}, {"messages": (Message("text", "y"),)}, {"messages": (Message("prompt", "x"),)},
        {"label": "a"}, {"rejected": "n"}, {"id": "ru", "unit": ""},
    ]  # fmt: skip
    leaves = [leaf(), *(leaf(**changes) for changes in other)]
    assert len(set(leaves)) == len(leaves)
    manifest = Manifest(salt=b"s" * 32, leaves=(), units=0)
    assert manifest.subject("u") != manifest.subject("v") and len(manifest.subject("u")) == 64


def test_a_child_with_the_same_salt_has_the_leaves_of_its_parent(made, tmp_path):
    child = dataclasses.replace(made, path=tmp_path / "child")
    (child.path / "private").mkdir(parents=True)
    for name in ("manifest.json", "records.parquet"):
        (child.private / name).write_bytes((made.private / name).read_bytes())
    split = load_split(made.records)
    gone = split.training[0].record.id
    save(dataclasses.replace(split, examples=[e for e in split.examples if e.record.id != gone]), child.records)
    child.write_card(made.card)
    before, after = manifest_of(made), write_manifest(child)
    assert after.root == child.card.data["manifest"]["root"] == manifest_of(child).root != before.root
    assert set(before.leaves) - set(after.leaves) == {before.leaf(split.training[0])}
    assert set(after.leaves) < set(before.leaves)


def test_changed_records_a_changed_card_or_another_salt_are_errors(tmp_path):
    run = finished(config_for(tmp_path, rows_of()))
    card, split = run.card, load_split(run.records)
    told = {**card.data["manifest"], "root": "0" * 64}
    run.write_card(dataclasses.replace(card, data={**card.data, "manifest": told}))
    with pytest.raises(RunError, match="digest mismatch"):
        manifest_of(run)
    run.write_card(card)
    whole = [*split.examples]
    rewrite(run, [e if e.record.id != "r1" else dataclasses.replace(e, included=not e.included) for e in whole])
    with pytest.raises(RunError, match="digest mismatch"):
        manifest_of(run)
    rewrite(run, whole)
    assert manifest_of(run).root == card.data["manifest"]["root"]
    run.write_private("manifest.json", json.dumps({"schema": 1, "salt": "00" * 32}).encode())
    with pytest.raises(RunError, match="digest mismatch"):
        manifest_of(run)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "damaged"), (b"[]", "damaged"), (b'{"schema": 1}', "damaged"),
        (b'{"schema": 1, "salt": "zz"}', "damaged"),
        (b'{"schema": 1, "salt": "00"}', "1 bytes"), (b'{"schema": 2, "salt": "00"}', "schema 2"),
    ],
)  # fmt: skip
def test_a_damaged_salt_is_an_error(made, tmp_path, content, message):
    path = made.private / "manifest.json"
    whole = path.read_bytes()
    try:
        path.write_bytes(content)
        with pytest.raises(RunError, match=message):
            manifest_of(made)
    finally:
        path.write_bytes(whole)


def test_a_run_from_before_manifests_says_what_to_do(tmp_path):
    run = finished(config_for(tmp_path, rows_of()))
    card = run.card
    run.write_card(dataclasses.replace(card, data={k: v for k, v in card.data.items() if k != "manifest"}))
    with pytest.raises(RunError, match=r"older version.*write_manifest"):
        manifest_of(run)
    assert write_manifest(run).root == manifest_of(run).root


def test_no_model_is_loaded_for_manifests_and_ledgers():
    code = "import sys, sordino.manifest, sordino.deletions, sordino.unlearn.requests.exports\n"
    code += "assert not {'torch', 'transformers', 'peft'} & set(sys.modules), sorted(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
