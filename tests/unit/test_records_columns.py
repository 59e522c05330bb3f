"""Rows in columns behave like the tuples they stand for, in memory and on disk, and keep nothing."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest

from sordino.errors import RunError
from sordino.records import (
    Dataset,
    Example,
    Message,
    Record,
    Split,
    SplitConfig,
    content_digest,
    load,
    save,
    split,
    unit_words,
)
from sordino.records.columns import BATCH, Filed, Rows, pack, record_rows
from sordino.records.placed import examples_of

RECORDS = tuple(
    Record(
        id=f"r{n}",
        unit=f"ü{n % 700}",
        messages=tuple(Message("text" if turn else "prompt", f"{n} é\u2028 {turn}") for turn in range(n % 3)),
    )
    for n in range(BATCH + 1500)
)
ROWS = record_rows(RECORDS)


def test_rows_are_the_records():
    assert len(ROWS) == len(RECORDS)
    assert tuple(ROWS) == RECORDS
    assert ROWS == RECORDS and RECORDS == ROWS and list(RECORDS) == ROWS
    assert RECORDS[:-1] != ROWS and (*RECORDS[:-1], RECORDS[0]) != ROWS and ROWS != 3
    assert [ROWS[n] for n in (0, 1023, 1024, BATCH - 1, BATCH, -1)] == [
        RECORDS[n] for n in (0, 1023, 1024, BATCH - 1, BATCH, -1)
    ]
    with pytest.raises(IndexError):
        ROWS[len(RECORDS)]
    assert repr(ROWS) == "<9,692 rows>"


@pytest.mark.parametrize("part", [slice(5, 20), slice(None, None, -7), slice(1000, None, 3), slice(4, 4)])
def test_slices_of_slices(part):
    assert ROWS[part] == RECORDS[part]
    assert ROWS[10:9000][part] == RECORDS[10:9000][part]
    assert ROWS[part].column("id").to_pylist() == [record.id for record in RECORDS[part]]


def test_long_records_end_a_batch_early():
    records = [Record(id=str(n), unit=str(n), messages=(Message("text", "x" * 9_000_000),)) for n in range(4)]
    assert [batch.num_rows for batch in pack(records)] == [2, 2]


def placed(number):
    roles = ("train", "candidate", "validation", "canary", "excluded")
    role = roles[number % 5]
    included = role == "train" or (role in ("candidate", "canary") and number % 2 == 0)
    return Example(record=RECORDS[number], role=role, included=included, group=f"g{number // 2}", repetitions=number)


EXAMPLES = tuple(map(placed, range(len(RECORDS))))
SELECTIONS = ("training", "candidates", "members", "nonmembers", "validation", "canaries")


@pytest.mark.parametrize("name", SELECTIONS)
def test_selections_of_columns_are_those_of_objects(tmp_path, name):
    plain = Split(examples=EXAMPLES)
    save(plain, tmp_path / "a.parquet")
    stored = load(tmp_path / "a.parquet")
    assert isinstance(getattr(plain, name), tuple)
    assert isinstance(getattr(stored, name), Rows)
    assert getattr(stored, name) == getattr(plain, name)
    assert len(getattr(stored, name)) > 900
    # What was chosen can be stored in turn.
    save(Split(examples=getattr(stored, name)), tmp_path / "b.parquet")
    assert load(tmp_path / "b.parquet").examples == getattr(plain, name)


def test_a_store_has_a_row_group_a_batch_and_reads_one_at_a_time(tmp_path):
    save(Split(examples=EXAMPLES), tmp_path / "a.parquet")
    file = pq.ParquetFile(tmp_path / "a.parquet")
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [BATCH, 1500]
    stored = load(tmp_path / "a.parquet").examples
    assert stored[BATCH + 3] == EXAMPLES[BATCH + 3]
    assert stored.chunks._held[0] == 1


def test_damage_inside_is_found_when_it_is_read(tmp_path):
    path = tmp_path / "a.parquet"
    save(Split(examples=EXAMPLES), path)
    data = bytearray(path.read_bytes())
    data[5000:60_000] = b"\0" * 55_000
    path.write_bytes(data)
    with pytest.raises(RunError, match=r"a\.parquet cannot be read as a split: .* It is damaged"):
        list(Rows(Filed(pq.ParquetFile(path), path), examples_of))


def test_the_fingerprint_is_that_of_the_sorted_rows():
    """As it was defined: one JSON text of all rows in ascending order."""
    records = [*RECORDS, Record(id='q"\\\n\U0001f600', unit="\uffff", messages=(Message("text", "a"),))]
    rows = sorted((r.id, r.unit, content_digest(r.messages)) for r in records)
    text = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    expected = hashlib.blake2b(text, digest_size=32, person=b"sordino-dataset").hexdigest()
    assert Dataset(records=tuple(records), unit_kind="u", notices=(), source="x").fingerprint == expected
    shuffled = [records[n] for n in np.random.default_rng(0).permutation(len(records))]
    assert Dataset(records=record_rows(shuffled), unit_kind="u", notices=(), source="x").fingerprint == expected


def test_canaries_join_columns():
    records = tuple(Record(id=f"r{n}", unit=f"r{n}", messages=(Message("text", f"t{n}"),)) for n in range(300))
    data = Dataset(records=records, unit_kind="record", notices=(), source="x")
    made = split(data, SplitConfig(near_duplicates=0), 1)
    record = Record(id="c", unit="c", messages=(Message("text", "secret"),))
    canary = Example(record=record, role="canary", included=True, group="c", repetitions=3)
    both = made.with_canaries([canary])
    assert isinstance(both.examples, Rows)
    assert both.examples == (*made.examples, canary)
    assert both.training == (*made.training, canary)


def test_few_duplicates_are_told_in_good_grammar():
    texts = [f"t{n} " * 20 for n in range(200)]
    records = [
        Record(id=f"r{n}", unit=f"r{n}", messages=(Message("text", t),)) for n, t in enumerate([*texts, texts[0]])
    ]
    made = split(Dataset(records=records, unit_kind="record", notices=(), source="x"), SplitConfig(), 1)
    assert made.notices[0].message == "2 units form 1 cluster of duplicates, with one coin."


def test_kinds_of_units_in_words():
    kinds = ("record", "customer", "rows-of-20", "rows-of-thumb")
    assert [unit_words(kind) for kind in kinds] == ["record", "customer", "20 consecutive rows", "rows-of-thumb"]
