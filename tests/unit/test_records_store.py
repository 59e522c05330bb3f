"""A split comes back from disk as it was, and only its owner can read it."""

import os
import stat
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.errors import RunError
from sordino.records import Example, Message, Record, Split, load, save
from sordino.results import Notice


def example(number, *messages, **placement):
    record = Record(id=f"r{number}", messages=messages, unit=f"ü{number}")
    return Example(record=record, group=f"g{number}", **placement)


SPLIT = Split(
    examples=(
        example(1, Message("text", " a\r\n\u2028é e\u0301 "), role="train", included=True),
        example(2, Message("prompt", ""), Message("completion", "b"), role="candidate", included=False),
        example(3, Message("user", "c" * 100_000), Message("assistant", "d"), role="excluded", included=False),
        example(4, Message("text", "e"), role="canary", included=True, repetitions=16),
    ),
    notices=(Notice(kind="empty-records", count=2, message="2 — left out."),),
)


@pytest.mark.parametrize("split", [SPLIT, Split(examples=())])
def test_round_trip(tmp_path, split):
    save(split, tmp_path / "split.parquet")
    assert load(tmp_path / "split.parquet") == split


def test_only_the_owner_can_read(tmp_path):
    path = tmp_path / "split.parquet"
    path.write_text("an older file that everybody could read, and longer than nothing")
    path.chmod(0o644)
    previous = os.umask(0)
    try:
        save(SPLIT, path)
        save(SPLIT, tmp_path / "new.parquet")
    finally:
        os.umask(previous)
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "new.parquet").stat().st_mode) == 0o600
    assert load(path) == SPLIT


def test_what_is_no_split(tmp_path):
    path = tmp_path / "split.parquet"
    with pytest.raises(RunError, match=r"split.parquet does not exist\. Was the run prepared\?"):
        load(path)
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(RunError, match=r"split.parquet cannot be read as a split: .* It is damaged"):
        load(path)
    pq.write_table(pa.table({"text": ["a"]}), path)
    with pytest.raises(RunError, match=r"split.parquet is not a split of version 4\. It was written by another"):
        load(path)
    save(SPLIT, path)
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(RunError, match="cannot be read as a split"):
        load(path)


def test_labels_come_back_and_a_split_without_them_is_still_read(tmp_path):
    labelled = replace(SPLIT.examples[0], record=replace(SPLIT.examples[0].record, label="spam"))
    split = replace(SPLIT, examples=(labelled, *SPLIT.examples[1:]))
    save(split, tmp_path / "new.parquet")
    assert load(tmp_path / "new.parquet") == split
    table = pq.ParquetFile(tmp_path / "new.parquet").read()
    metadata = {**table.schema.metadata, b"sordino.split": b"1"}
    first = table.drop_columns(["label", "rejected", "spans"]).replace_schema_metadata(metadata)
    pq.write_table(first, tmp_path / "old.parquet")
    assert load(tmp_path / "old.parquet") == SPLIT
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "mixed.parquet")
    with pytest.raises(RunError, match="is not a split of version 4"):
        load(tmp_path / "mixed.parquet")
