"""Sources beyond one file: JSON objects of records, folders of shards, saved data sets, the hub."""

import json
import time

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.cli import main
from sordino.errors import ConfigError, DataError
from sordino.records import DataConfig, read, suggest_columns
from sordino.records.readers import read_table

datasets = pytest.importorskip("datasets")
ROWS = [{"text": "one", "who": "a"}, {"text": "two", "who": "b"}]


def texts(path, **columns):
    return [record.messages[0].content for record in read(DataConfig(path=str(path), **columns)).records]


def notices(path, **columns):
    return {notice.kind: notice for notice in read(DataConfig(path=str(path), **columns)).notices}


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Nothing is prepared in the cache of whoever runs the tests."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.parametrize(
    "content",
    [
        json.dumps({"records": ROWS}),
        json.dumps({"data": ROWS}, indent=2),
        "\ufeff\n" + json.dumps({"data": ROWS}, indent=1),
        json.dumps(ROWS, indent=2),
        "\n".join(map(json.dumps, ROWS)),
    ],
)
def test_json_may_hold_its_records_under_one_key(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    assert texts(tmp_path / "a.json") == ["one", "two"]


def test_one_record_is_no_object_of_records(tmp_path):
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    (tmp_path / "a.json").write_text(json.dumps({"messages": turns}))
    assert len(read(DataConfig(path=str(tmp_path / "a.json"))).records[0].messages) == 2
    (tmp_path / "b.json").write_text(json.dumps({"text": "a", "spans": [{"start": 1}]}))
    assert texts(tmp_path / "b.json") == ["a"]
    (tmp_path / "c.jsonl").write_text(json.dumps({"text": ROWS}))
    with pytest.raises(DataError, match=r"line 1: column 'text' is a list"):
        read(DataConfig(path=str(tmp_path / "c.jsonl")))


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (json.dumps({"version": 1, "data": ROWS}, indent=1), "is one object with 2 keys: 'version', 'data'. Write one"),
        ('{"data": [\n{"text": "a"},\n{"text": 1x}]}', "a.json, line 3, column 11: malformed JSON"),
        ('{"text": 1x}\n{"text": "a"}', "a.json, line 1, column 11: malformed JSON"),
        ('[{"text": "a"},\n{"text": "b", "n": 01}]', "line 2, column 21: malformed JSON"),
    ],
)
def test_bad_json(tmp_path, content, expected):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(DataError) as caught:
        read_table(tmp_path / "a.json", "a.json")
    assert expected in str(caught.value)


def test_shards_are_read_in_the_order_of_their_names(tmp_path):
    (tmp_path / "part-1.jsonl").write_text('{"text": "two"}\n\n{"text": "three", "n": 1}\n')
    (tmp_path / "part-0.jsonl").write_text('{"text": "one"}\n')
    (tmp_path / "part-2.jsonl").write_text("")
    (tmp_path / "README.md").write_text("about them")
    table = read_table(tmp_path, "data")
    assert [(row.place, row.values["text"]) for row in table.rows] == [
        ("part-0.jsonl, line 1", "one"),
        ("part-1.jsonl, line 1", "two"),
        ("part-1.jsonl, line 3", "three"),
    ]
    assert (table.columns, table.blank, table.skipped) == (("text", "n"), 1, 1)
    assert texts(tmp_path) == ["one", "two", "three"]
    assert notices(tmp_path)["skipped-files"].message == "1 entry of the folder is no JSONL files."
    (tmp_path / "part-2.jsonl").write_text('{"text": 1}')
    with pytest.raises(DataError, match=r", part-2\.jsonl, line 1: column 'text' is a number"):
        read(DataConfig(path=str(tmp_path)))


def test_shards_of_csv_and_parquet(tmp_path):
    for number, row in enumerate(ROWS):
        pq.write_table(pa.Table.from_pylist([row]), tmp_path / f"{number}.parquet")
    assert texts(tmp_path) == ["one", "two"]
    (tmp_path / "a.csv").write_text("text\nthree\n")
    (tmp_path / "b.csv").write_text("text\nfour\n")
    assert texts(tmp_path, format="csv") == ["three", "four"]
    with pytest.raises(DataError, match=r"holds files of several kinds: CSV, Parquet\. Keep one kind, or set"):
        read(DataConfig(path=str(tmp_path)))
    for path in tmp_path.glob("*.parquet"):
        path.unlink()
    (tmp_path / "notes.txt").write_text("five")
    with pytest.raises(DataError, match=r"of several kinds: CSV, text\. Keep .* one of: csv, text-folder\."):
        read(DataConfig(path=str(tmp_path)))
    assert texts(tmp_path, format="text-folder") == ["five"]


def test_a_saved_data_set(tmp_path):
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved") == texts(tmp_path / "saved", format="datasets") == ["one", "two"]
    table = read(DataConfig(path="saved", unit="who"), tmp_path)
    assert table.units == ("a", "b")
    assert suggest_columns(tmp_path / "saved") == {"text": "text"}
    with pytest.raises(DataError, match=r"has no split 'test': it is a single one\. Leave data\.split out"):
        read(DataConfig(path=str(tmp_path / "saved"), split="test"))
    with pytest.raises(ConfigError, match=r"data\.revision is set, but .*saved is a folder"):
        read(DataConfig(path=str(tmp_path / "saved"), revision="main"))
    (tmp_path / "saved" / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"saved cannot be read as a saved data set: .* Is it damaged\?"):
        read(DataConfig(path=str(tmp_path / "saved")))


def test_a_saved_data_set_of_several_splits(tmp_path):
    parts = {name: datasets.Dataset.from_list([row]) for name, row in zip(("train", "test"), ROWS, strict=True)}
    datasets.DatasetDict(parts).save_to_disk(tmp_path / "saved")
    assert texts(tmp_path / "saved", split="test") == ["two"]
    with pytest.raises(DataError, match=r"has 2 splits\. Set data\.split to one of: train, test\."):
        read(DataConfig(path=str(tmp_path / "saved")))
    with pytest.raises(DataError, match=r"has no split 'tests'\. Did you mean 'test'\?"):
        read(DataConfig(path=str(tmp_path / "saved"), split="tests"))


def test_rows_of_a_saved_data_set_have_places_beyond_one_batch(tmp_path):
    datasets.Dataset.from_list([{"text": f"t{n}"} for n in range(2500)]).save_to_disk(tmp_path / "saved")
    data = read(DataConfig(path=str(tmp_path / "saved")))
    assert [record.messages[0].content for record in data.records] == [f"t{n}" for n in range(2500)]
    datasets.Dataset.from_list([{"text": f"t{n % 2000}", "n": n} for n in range(2500)]).save_to_disk(tmp_path / "b")
    with pytest.raises(DataError, match=r"row 2001: the id 't0' already names the record at row 1"):
        read(DataConfig(path=str(tmp_path / "b"), text="text", id="text", unit="n"))


def test_a_folder_through_the_loader_of_the_hub(tmp_path, cache):
    folder = tmp_path / "owner"
    folder.mkdir()
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    assert texts(f"hub:{folder}") == ["one", "two"]
    (folder / "test.jsonl").write_text(json.dumps({"text": "three", "who": "c"}))
    assert texts(f"hf://datasets/{folder}", split="test") == ["three"]
    with pytest.raises(DataError, match=r"has 2 splits\. Set data\.split"):
        read(DataConfig(path=f"hub:{folder}"))
    with pytest.raises(DataError, match=r"cannot be loaded from the hub: .*BuilderConfig"):
        read(DataConfig(path=f"hub:{folder}", subset="nothing"))


@pytest.mark.parametrize("path", ["hub:nobody/nothing", "hf://datasets/nobody/nothing"])
def test_init_takes_a_hub_id_as_it_is_written(path, tmp_path, cache, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(["init", path])
    assert stop.value.code == 2
    assert capsys.readouterr().err.startswith(f"error: {path} cannot be loaded from the hub")


@pytest.mark.parametrize("path", ["hub:nobody/nothing", "hf://datasets/nobody/nothing"])
def test_offline_the_hub_is_refused_at_once(path, cache):
    started = time.monotonic()
    with pytest.raises(DataError, match=r"nobody/nothing cannot be loaded from the hub: .* Check the id"):
        read(DataConfig(path=path))
    assert time.monotonic() - started < 20


def test_without_a_network_it_is_asked_once(monkeypatch):
    import huggingface_hub

    asked = []

    def unreachable(api, name, **options):
        asked.append((name, options["revision"]))
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(DataError, match=r"cannot be found on the hub: Name or .* HF_HUB_OFFLINE=1 takes what"):
        read(DataConfig(path="hub:nobody/nothing", revision="v1"))
    assert asked == [("nobody/nothing", "v1")]


def test_what_is_no_id_of_the_hub():
    with pytest.raises(DataError, match=r"hub:nothing names no data set\. Write hub:owner/name"):
        read(DataConfig(path="hub:nothing"))


@pytest.mark.parametrize("key", ["subset", "split", "revision"])
def test_a_plain_file_has_no_splits(tmp_path, key):
    (tmp_path / "a.txt").write_text("one")
    with pytest.raises(ConfigError, match=rf"data\.{key} is 'x', but .*a\.txt has none\. It is for data sets"):
        read(DataConfig(path=str(tmp_path / "a.txt"), **{key: "x"}))
    with pytest.raises(DataError, match=r"a\.txt is no data set saved with save_to_disk"):
        read(DataConfig(path=str(tmp_path / "a.txt"), format="datasets"))
