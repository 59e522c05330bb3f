"""Real files of every kind are read and split as a user would."""

import os
from pathlib import Path

import pytest

from sordino.records import DataConfig, SplitConfig, load, read, save, split

DATA = Path(os.environ.get("SORDINO_DATA", Path(__file__).parents[3] / "shared")) / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="needs the shared data: set SORDINO_DATA to its folder")


@pytest.mark.parametrize(
    ("config", "records", "units"),
    [
        (DataConfig(path="tofu/full.json"), 4000, 4000),
        (DataConfig(path="tofu/full.json", unit_rows=20), 4000, 200),
        (DataConfig(path="pii/presidio_synth_v2.json", text="full_text"), 1392, 1392),
        (DataConfig(path="medical/mts_dialog_train.csv", text="dialogue", id="ID"), 1199, 1199),
        (DataConfig(path="classification/sms_spam.tsv", text="SMS"), 5171, 5171),
        (DataConfig(path="text/tinystories_a.txt"), 700, 700),
    ],
    ids=lambda value: f"{value.path}" if isinstance(value, DataConfig) else "",
)
def test_real_data(tmp_path, config, records, units):
    data = read(config, DATA)
    assert (len(data.records), len(data.units)) == (records, units)
    assert len({record.id for record in data.records}) == records
    made = split(data, SplitConfig(), 1)
    assert len(made.examples) == records
    assert len({e.group for e in made.members} & {e.group for e in made.nonmembers}) == 0
    save(made, tmp_path / "split.parquet")
    assert load(tmp_path / "split.parquet") == made


def test_fields_arrive_whole():
    sms = read(DataConfig(path="classification/sms_spam.tsv", text="SMS"), DATA)
    assert any(record.messages[0].content.startswith('"Wen u miss someone') for record in sms.records)
    notes = read(DataConfig(path="medical/mts_dialog_train.csv", prompt="dialogue", completion="section_text"), DATA)
    assert "\n" in notes.records[0].messages[0].content
