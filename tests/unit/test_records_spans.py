"""Labelled spans come with their records, to disk and back, and a wrong one is refused by its place alone."""

import json
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.config import load as load_config
from sordino.errors import DataError
from sordino.pii import KINDS, Span
from sordino.records import DataConfig, SplitConfig, load, read, save, split

TEXT = "Zoë Quill lives in Łódź."
ROW = {"id": "r1", "text": TEXT, "spans": [{"entity_type": "PERSON", "start": 0, "end": 9}]}


def dataset(tmp_path, rows, **columns):
    path = tmp_path / "data.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return read(DataConfig(path=str(path), **{"id": "id", "spans": "spans"} | columns))


def test_both_ways_to_write_a_span(tmp_path):
    mine = [
        {"entity_type": "gpe", "start_position": 19, "end_position": 23, "entity_value": "Łódź"},
        {"entity_type": "PERSON", "start": 0, "end": 9, "score": 0.85, "entity_value": None},
        {"entity_type": "PERSON", "start": 0, "end": 9, "score": 0.85},
    ]
    [record] = dataset(tmp_path, [{**ROW, "spans": mine}]).records
    assert record.spans == (Span(0, 9, "PERSON", 0.85), Span(19, 23, "LOCATION"))
    assert dataset(tmp_path, [{**ROW, "spans": None}]).records[0].spans == ()
    assert dataset(tmp_path, [ROW], spans=None).records[0].spans == ()


def test_spans_are_no_part_of_content_and_ids(tmp_path):
    with_, without = dataset(tmp_path, [ROW], id=None), dataset(tmp_path, [ROW], id=None, spans=None)
    assert with_.records[0].id == without.records[0].id
    assert with_.fingerprint == without.fingerprint


def test_spans_of_pairs_say_their_message(tmp_path):
    row = {"id": "a", "prompt": "I am Ann.", "completion": "Hello Ann.",
           "spans": [{"entity_type": "PERSON", "start": 6, "end": 9, "message": 1},
                     {"entity_type": "PERSON", "start": 5, "end": 8, "message": 0}]}  # fmt: skip
    assert dataset(tmp_path, [row]).records[0].spans == (Span(5, 8, "PERSON"), Span(6, 9, "PERSON", message=1))
    for number, told in ((None, "does not say in which message"), (2, "has the message 2"), (True, "the message True")):
        bad = {**row, "spans": [{"entity_type": "PERSON", "start": 0, "end": 1, "message": number}]}
        with pytest.raises(DataError, match=f"record 'a', span 1 {told}|record 'a', span 1 has {told}") as error:
            dataset(tmp_path, [bad])
        assert "This record has 2" in error.value.hint


@pytest.mark.parametrize(
    ("spans", "told"),
    [
        ([{"entity_type": "PERSON", "start": 20, "end": 25}], "is from 20 to 25, outside the text of 24 characters"),
        ([{"entity_type": "PERSON", "start": 9, "end": 3}], "A span of PERSON is from 9 to 3"),
        ([{"entity_type": "PERSON", "start": 4, "end": 4}], "A span of PERSON is from 4 to 4"),
        ([{"entity_type": "PERSON", "start": -1, "end": 4}], "A span of PERSON is from -1 to 4"),
        ([{"entity_type": "PERSON", "start": 1, "end": 10, "entity_value": "Zoë Quill"}],
         "is from 1 to 10, where its entity_value does not stand"),
        ([{"entity_type": "PERSON", "start": 0}], "has no end"),
        ([{"entity_type": "PERSON", "start": 0, "end": 2, "stop": 3}], "has more than one end"),
        ([{"entity_type": "PERSON", "start": 0.5, "end": 2}], "as start"),
        ([{"entity_type": "PERSON", "start": False, "end": 2}], "as start"),
        ([{"start": 0, "end": 2}], "has no entity_type"),
        ([{"entity_type": "§", "start": 0, "end": 2}], "'§' is no kind of entity"),
        ([{"entity_type": "PERSON", "start": 0, "end": 2, "score": "high"}], "has a score that is"),
        ([{"entity_type": "PERSON", "start": 0, "end": 2, "score": 2}], r"the score 2\.0"),
        (["Zoë Quill"], "span 1 is a text, not an object"),
        ("Zoë Quill", "is a text, not a list of spans"),
        ({"start": 0}, "not a list of spans"),
    ],
)  # fmt: skip
def test_wrong_spans_are_told_by_place_and_never_by_value(tmp_path, spans, told):
    with pytest.raises(DataError, match=told) as error:
        dataset(tmp_path, [{"id": "fine", "text": "x", "spans": []}, {**ROW, "spans": spans}])
    assert "line 2: column 'spans' of record 'r1'" in str(error.value)
    assert not any(word in str(error.value) for word in ("Zoë", "Quill", "lives", "Łódź"))


def test_spans_go_through_the_split_and_the_run_folder(tmp_path):
    rows = [{**ROW, "id": f"r{n}", "text": f"{TEXT} {n}"} for n in range(30)]
    rows[7]["spans"] = []
    made = split(dataset(tmp_path, rows), SplitConfig(candidates=0, near_duplicates=0), seed=1)
    by_id = {e.record.id: e.record.spans for e in made.examples}
    assert by_id["r3"] == (Span(0, 9, "PERSON"),)
    assert by_id["r7"] == ()
    save(made, tmp_path / "split.parquet")
    assert load(tmp_path / "split.parquet") == made
    save(replace(made, examples=tuple(made.examples)), tmp_path / "plain.parquet")
    assert load(tmp_path / "plain.parquet") == made


def test_a_split_of_before_there_were_spans_is_still_read(tmp_path):
    rows = [{**ROW, "id": f"r{n}", "text": f"{TEXT} {n}"} for n in range(9)]
    made = split(dataset(tmp_path, rows), SplitConfig(candidates=0, near_duplicates=0), seed=1)
    save(made, tmp_path / "new.parquet")
    table = pq.ParquetFile(tmp_path / "new.parquet").read()
    metadata = {**table.schema.metadata, b"sordino.split": b"3"}
    pq.write_table(table.drop_columns(["spans"]).replace_schema_metadata(metadata), tmp_path / "old.parquet")
    old = load(tmp_path / "old.parquet")
    assert [e.record.id for e in old.examples] == [e.record.id for e in made.examples]
    assert all(e.record.spans == () for e in old.examples)


def test_spans_of_parquet_files(tmp_path):
    table = pa.table({"text": [TEXT, "nobody"], "marks": [[{"entity_type": "PERSON", "start": 0, "end": 9}], None]})
    pq.write_table(table, tmp_path / "data.parquet")
    found = read(DataConfig(path=str(tmp_path / "data.parquet"), spans="marks")).records
    assert [r.spans for r in found] == [(Span(0, 9, "PERSON"),), ()]


def test_a_labelled_corpus_as_it_is(shared_data):
    path = shared_data / "data" / "pii" / "presidio_synth_v2.json"
    config = load_config(values={"data": {"path": str(path), "text": "full_text", "spans": "spans"}}, environment={})
    found = read(config.data)
    rows = {row["full_text"]: row["spans"] for row in json.loads(path.read_text())}
    assert len(found.records) == len(rows)
    for record in found.records:
        text = record.messages[0].content
        assert {(s.start, s.of(text)) for s in record.spans} == {
            (s["start_position"], s["entity_value"]) for s in rows[text]
        }
        assert {s.kind for s in record.spans} <= set(KINDS)
    assert any("'masked'" in n.message and "'spans'" not in n.message for n in found.notices)
