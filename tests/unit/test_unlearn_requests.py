"""Resolving a request: what is forgotten and what stays, and every refusal that concerns the data."""

import dataclasses
import json
from pathlib import Path

import pytest
from deletion_fixtures import config_for, finished, rewrite, rows_of, sides, text_of

from sordino.deletions import Deletions
from sordino.errors import ConfigError, RunError, UnlearningError
from sordino.manifest import manifest_of, write_manifest
from sordino.records import Example, Message, Record
from sordino.records import load as load_split
from sordino.records.clusters import jaccard
from sordino.records.split import comparable_text
from sordino.results import DeletionRequest
from sordino.run import Run
from sordino.unlearn.base import create_child
from sordino.unlearn.requests import lineage, names_from, new_request, resolve
from sordino.unlearn.requests.copies import near_duplicates, planted_passages


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(config_for(tmp_path_factory.mktemp("requests"), rows_of()))


def changed(run: Run, folder: Path, change=lambda examples: examples) -> Run:
    """A copy of `run` in `folder` whose records were changed, with a manifest of its own."""
    other = Run(folder / run.path.name)
    other.private.mkdir(parents=True)
    for name in ("manifest.json", "records.parquet", "canaries.json"):
        (other.private / name).write_bytes((run.private / name).read_bytes())
    other.write_card(run.card)
    rewrite(other, change([*load_split(run.records).examples]))
    write_manifest(other)
    return other


def ids(examples) -> set[str]:
    return {e.record.id for e in examples}


def names_told(error: BaseException, run: Run) -> list[str]:
    """Names of units and records of `run` that stand in an error."""
    told = set(str(error).replace("'", " ").replace(".", " ").replace(",", " ").split())
    return [n for e in load_split(run.records).examples for n in (e.record.id, e.record.unit) if n in told]


def test_the_parts_of_a_deletion_are_those_of_the_split(run):
    split, by_side = load_split(run.records), sides(run)
    names = [by_side["trained"][0], by_side["never"][0], by_side["validation"][0]]
    found = resolve(run, new_request(run, "subject", names))
    own = [e for e in split.examples if e.role != "canary"]
    assert any(e.role == "canary" and e.included for e in split.examples)
    assert ids(found.forget) == {e.record.id for e in own if e.record.unit in names and e.included}
    assert ids(found.others) == {e.record.id for e in own if e.record.unit in names and not e.included}
    assert ids(found.retain) == {e.record.id for e in own if e.record.unit not in names and e.included}
    assert ids(found.never) == {e.record.id for e in split.nonmembers if e.record.unit not in names}
    assert ids(found.validation) == {e.record.id for e in split.validation if e.record.unit not in names}
    assert ids(found.left.examples) == {e.record.id for e in split.examples if e.record.unit not in names}
    assert len(found.forget) == 2 and len(found.others) == 4 and found.left.notices == split.notices


def test_a_record_goes_alone_and_its_subject_stays(run):
    unit = sides(run)["trained"][0]
    mine = [e.record.id for e in load_split(run.records).training if e.record.unit == unit]
    found = resolve(run, new_request(run, "record", mine[:1]))
    assert ids(found.forget) == set(mine[:1]) and set(mine[1:]) <= ids(found.retain)


def test_a_child_holds_what_is_left_and_proves_what_is_gone(run, tmp_path):
    parent = changed(run, tmp_path)
    deletion = resolve(parent, new_request(parent, "subject", sides(run)["trained"][:2]))
    child = create_child(deletion, "retrain")
    before, after = manifest_of(parent), write_manifest(child)
    gone = {before.leaf(e) for e in deletion.forget}
    assert set(before.leaves) - set(after.leaves) == gone and len(gone) == 4
    assert all(after.tree.absence(leaf) for leaf in gone)
    assert [one.path.name for one in lineage(child)] == [child.path.name, parent.path.name]


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ("a\n\n  b \r\nc", ("a", "b", "c")), ('["a", "b c", 17]', ("a", "b c", "17")), ("\ufeffa\nb", ("a", "b")),
        ('"a"\n{b}', ('"a"', "{b}")),
    ],
)  # fmt: skip
def test_names_are_read_from_files(tmp_path, content, names):
    path = tmp_path / "names"
    path.write_text(content, encoding="utf-8")
    assert names_from(path) == names


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no name"), (b"\n \n", "no name"), (b"[]", "no name"), (b'["a", null]', "place 2"),
        (b"[true]", "place 1"),
        (b'["a"', "is none"), (b"\xff\xfe", "cannot be read"), (None, "cannot be read"),
    ],
)  # fmt: skip
def test_files_without_names_are_errors(tmp_path, content, message):
    path = tmp_path / "names"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        names_from(path)


def test_requests_without_names_or_with_names_twice_are_refused(run):
    for names, message in ((["c1", "c2", "c1"], "1 of 3 names come twice"), ([], "0 names"), ([""], "0 names")):
        with pytest.raises(UnlearningError, match=message):
            new_request(run, "subject", names)
    request = new_request(run, "subject", ["c1"])
    assert request.id != new_request(run, "subject", ["c1"]).id
    for names in ((), ("c1", "c1")):
        with pytest.raises(UnlearningError, match="each once"):
            resolve(run, dataclasses.replace(request, names=names))


def test_unknown_names_are_told_by_their_place_and_others_never(run):
    trained = sides(run)["trained"][0]
    with pytest.raises(UnlearningError, match=r"2 of 3 subjects are unknown to the run, in places 1, 3") as error:
        resolve(run, new_request(run, "subject", ["c999", trained, "C1"]))
    assert not names_told(error.value, run) and "c999" not in str(error.value)
    with pytest.raises(UnlearningError, match=r"1 of 1 records are unknown.*They name subjects"):
        resolve(run, new_request(run, "record", [trained]))
    with pytest.raises(UnlearningError, match=r"They name records"):
        resolve(run, new_request(run, "subject", ["r1"]))
    canary = load_split(run.records).canaries[0].record
    for kind in ("subject", "record"):
        with pytest.raises(UnlearningError, match="1 of 1"):
            resolve(run, new_request(run, kind, [canary.id]))


def test_whoever_was_not_trained_on_need_not_be_unlearned(run):
    by_side = sides(run)
    with pytest.raises(UnlearningError, match=r"Nothing of those who ask was trained on: their 4 records"):
        resolve(run, new_request(run, "subject", [by_side["never"][0], by_side["validation"][0]]))


def test_more_than_half_is_to_be_trained_anew(run):
    trained = sides(run)["trained"]
    half = len(trained) // 2
    assert len(resolve(run, new_request(run, "subject", trained[:half])).forget) == 2 * half
    with pytest.raises(UnlearningError, match=r"train anew on what stays") as error:
        resolve(run, new_request(run, "subject", trained[: half + 1]))
    assert not names_told(error.value, run)


def test_the_same_text_in_other_hands_is_refused(run, tmp_path):
    first, second = sides(run)["trained"][:2]

    def copied(examples):
        mine = next(e for e in examples if e.record.unit == first)
        theirs = next(at for at, e in enumerate(examples) if e.record.unit == second)
        record = dataclasses.replace(examples[theirs].record, messages=mine.record.messages, label="other")
        examples[theirs] = dataclasses.replace(examples[theirs], record=record, group=mine.group)
        return examples

    other = changed(run, tmp_path, copied)
    for acknowledged in (False, True):
        with pytest.raises(UnlearningError, match=r"1 records that stay say exactly") as error:
            resolve(other, new_request(other, "subject", [first], acknowledged))
        assert not names_told(error.value, run)
    assert len(resolve(other, new_request(other, "subject", [first, second])).forget) == 4


def test_near_duplicates_that_stay_must_be_acknowledged(tmp_path):
    rows = rows_of()
    run = finished(config_for(tmp_path, rows))
    first, second = [*dict.fromkeys(e.record.unit for e in load_split(run.records).training if e.role == "train")][:2]
    text = next(row["text"] for row in rows if row["customer"] == first) + " " + text_of(900) + " " + text_of(901)
    near = text + " as well"
    assert 0.8 < jaccard(text, near) < 1
    rows += [{"text": text, "id": "n1", "customer": first}, {"text": near, "id": "n2", "customer": second}]
    run = finished(config_for(tmp_path, rows))
    examples = {e.record.id: e for e in load_split(run.records).examples}
    assert examples["n1"].included and examples["n1"].group == examples["n2"].group
    with pytest.raises(UnlearningError, match=r"1 records that stay are near-duplicates.*similarity of 0\.8.*ackno"):
        resolve(run, new_request(run, "subject", [first]))
    assert len(resolve(run, new_request(run, "subject", [first], acknowledged=True)).forget) == 3
    assert len(resolve(run, new_request(run, "subject", [first, second])).forget) == 6


def test_near_duplicates_are_those_of_a_comparison_of_all_pairs():
    def example(number: int, text: str) -> Example:
        record = Record(id=str(number), unit=f"u{number}", messages=(Message("text", text),))
        return Example(record=record, role="train", included=True, group="g")

    base = [text_of(n % 23).split() for n in range(60)]
    texts = [" ".join([*words[: 12 - n % 4], *text_of(100 + n).split()[: n % 3]]) for n, words in enumerate(base)]
    examples = [example(n, text) for n, text in enumerate(texts)]
    forget, retain = examples[:20], examples[20:]
    for threshold in (0.4, 0.6, 0.8):
        said = [comparable_text(e.record) for e in examples]
        near = [jaccard(a, b) >= threshold for b in said[20:] for a in said[:20]]
        wanted = sum(any(near[at : at + len(forget)]) for at in range(0, len(near), len(forget)))
        assert 0 < wanted < len(retain)
        assert near_duplicates(forget, retain, threshold) == wanted
        # Whatever is near shares a group of the split: others are not compared.
        assert near_duplicates(forget, [dataclasses.replace(e, group="h") for e in retain], threshold) == 0


def test_canaries_made_of_passages_of_the_forgotten_are_counted():
    def example(text: str, included: bool = True) -> Example:
        record = Record(id=text, unit=text, messages=(Message("text", text),))
        return Example(record=record, role="canary", included=included, group=text)

    one, two, three = (text_of(n) for n in (1, 2, 3))
    spliced = [example(a[: len(a) // 2] + b[len(b) // 2 :]) for a, b in ((one, two), (two, one), (three, two))]
    assert planted_passages([example(one)], spliced) == 2
    assert planted_passages([example(two)], spliced) == 3
    assert planted_passages([example(one)], [example(spliced[0].record.id, included=False)]) == 0
    assert planted_passages([example("a")], spliced) == 0


def test_canaries_of_the_run_that_hold_passages_must_be_acknowledged(tmp_path):
    audit = {"count": 20, "design": "in-distribution"}
    config = config_for(tmp_path, rows_of(100), canaries={"per_level": 0, "share": 0.2, "audit": audit})
    run = finished(config)
    split = load_split(run.records)
    always = [e.record for e in split.training if e.role == "train"]
    said = [e.record.messages[0].content for e in split.canaries if e.included]
    told = next(r for r in always if any(text.startswith(r.messages[0].content[:20]) for text in said))
    with pytest.raises(UnlearningError, match=r"canaries hold passages"):
        resolve(run, new_request(run, "subject", [told.unit]))
    assert resolve(run, new_request(run, "subject", [told.unit], acknowledged=True)).forget


@pytest.mark.parametrize("side", ["never", "validation"])
def test_held_out_records_that_say_what_was_trained_on_are_refused(run, tmp_path, side):
    names = sides(run)
    for number, unit in enumerate(names["trained"][:2]):  # of those who ask, and of those who stay

        def copied(examples, unit=unit):
            mine = next(e for e in examples if e.record.unit == unit)
            at = next(at for at, e in enumerate(examples) if e.record.unit == names[side][0])
            record = dataclasses.replace(examples[at].record, messages=mine.record.messages)
            examples[at] = dataclasses.replace(examples[at], record=record)
            return examples

        other = changed(run, tmp_path / str(number), copied)
        with pytest.raises(UnlearningError, match=r"1 held-out records say exactly"):
            resolve(other, new_request(other, "subject", names["trained"][:1], acknowledged=True))


@pytest.mark.parametrize(
    ("status", "error", "message"),
    [
        ("external", RunError, "trained elsewhere"), ("unlearning", RunError, "made to forget"),
        ("training", RunError, "not trained to its end"), ("prepared", RunError, "not trained to its end"),
    ],
)  # fmt: skip
def test_runs_without_a_model_of_their_own_are_refused(run, tmp_path, status, error, message):
    other = changed(run, tmp_path)
    other.write_card(dataclasses.replace(other.card, status=status))
    with pytest.raises(error, match=message):
        resolve(other, new_request(other, "subject", sides(run)["trained"][:1]))


def test_classifiers_and_requests_to_other_runs_are_refused(run, tmp_path):
    other = changed(run, tmp_path)
    name = sides(run)["trained"][:1]
    other.write_card(dataclasses.replace(other.card, config={**other.card.config, "task": "classification"}))
    with pytest.raises(UnlearningError, match="classifier"):
        resolve(other, new_request(other, "subject", name))
    with pytest.raises(UnlearningError, match="to the run elsewhere"):
        resolve(run, dataclasses.replace(new_request(run, "subject", name), run="elsewhere"))


def test_a_manifest_that_does_not_fit_and_none_at_all_are_refused(run, tmp_path):
    other = changed(run, tmp_path)
    name = sides(run)["trained"][:1]
    card = other.card
    told = {**card.data["manifest"], "root": "0" * 64}
    for data, message in (({"manifest": told}, "Manifest digest mismatch"), ({"manifest": None}, "no manifest")):
        other.write_card(dataclasses.replace(card, data={**card.data, **data}))
        with pytest.raises(RunError, match=message):
            resolve(other, new_request(other, "subject", name))


def test_who_is_deleted_already_is_refused_in_the_run_and_in_those_that_came_of_it(run, tmp_path):
    parent = changed(run, tmp_path)
    book, names = Deletions.open(tmp_path), sides(run)["trained"]
    first = new_request(parent, "subject", names[:2])
    for state in ("planned", "executed"):
        assert resolve(parent, new_request(parent, "subject", names[:2])).forget
        book.receive(first) if state == "planned" else None
        book.advance(first.id, state)
    child = create_child(resolve(parent, first), "retrain")  # its own request may be looked at again
    write_manifest(child)
    child.write_card(dataclasses.replace(child.card, status="trained"))
    for one in (parent, child):
        with pytest.raises(UnlearningError, match=r"1 of 2 subjects are already deleted") as error:
            resolve(one, new_request(one, "subject", [names[0], names[3]]))
        assert not names_told(error.value, run)
    with pytest.raises(UnlearningError, match=r"1 of 1 records are already deleted"):
        resolve(child, new_request(child, "record", [next(iter(ids(resolve(parent, first).forget)))]))
    with pytest.raises(UnlearningError, match=r"was replaced: 1 requests"):
        resolve(parent, new_request(parent, "subject", [names[3]]))
    assert ids(resolve(child, new_request(child, "subject", [names[3]])).retain).isdisjoint(
        ids(resolve(parent, first).forget)
    )


def test_a_run_that_is_its_own_ancestor_is_damaged(run, tmp_path):
    other = changed(run, tmp_path)
    other.write_card(dataclasses.replace(other.card, parent=other.path.name))
    with pytest.raises(RunError, match="its own ancestor"):
        lineage(other)
    other.write_card(dataclasses.replace(other.card, parent="../elsewhere"))
    assert lineage(other) == (other,)


def test_requests_are_json(run):
    request = new_request(run, "record", ["r1"], acknowledged=True)
    from sordino.results import decode, encode

    assert decode(encode(request), DeletionRequest, "here") == request
    assert json.loads(encode(request))["acknowledged"] is True
