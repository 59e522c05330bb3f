"""Columns become records with ids and units; what is merged or left out is counted."""

import json
import os
import subprocess
import sys

import pytest

from sordino.errors import ConfigError, DataError
from sordino.records import DataConfig, Dataset, Message, Record, content_digest, read, record_id


def dataset(tmp_path, rows, **columns):
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "data.jsonl").write_text(lines)
    return read(DataConfig(path="data.jsonl", **columns), tmp_path)


def refused(tmp_path, rows, kind=DataError, **columns):
    with pytest.raises(kind) as caught:
        dataset(tmp_path, rows, **columns)
    assert caught.value.hint
    return str(caught.value)


def notices(data):
    return {notice.kind: notice.count for notice in data.notices}


def chat(*contents):
    roles = ("user", "assistant") * len(contents)
    return {"messages": [{"role": r, "content": c} for r, c in zip(roles, contents, strict=False)]}


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        ({"text": " a\n", "n": 1}, {}, (Message("text", " a\n"),)),
        ({"prompt": "p", "completion": "c"}, {}, (Message("prompt", "p"), Message("completion", "c"))),
        ({"question": "p", "answer": "c"}, {}, (Message("prompt", "p"), Message("completion", "c"))),
        ({"instruction": "p", "output": "c"}, {}, (Message("prompt", "p"), Message("completion", "c"))),
        ({"instruction": "p", "response": "c"}, {}, (Message("prompt", "p"), Message("completion", "c"))),
        (chat("p", "c"), {}, (Message("user", "p"), Message("assistant", "c"))),
        ({"text": "a", "note": "b"}, {"text": "note"}, (Message("text", "b"),)),
        (
            {"a": "", "b": "c"},
            {"prompt": "a", "completion": "b"},
            (Message("prompt", ""), Message("completion", "c")),
        ),
        (
            {"m": chat("p", "c")["messages"]},
            {"messages": "m"},
            (Message("user", "p"), Message("assistant", "c")),
        ),
    ],
)
def test_shapes(tmp_path, row, columns, expected):
    data = dataset(tmp_path, [row], **columns)
    assert data.records[0].messages == expected
    assert notices(data).get("data-shape") == (None if columns else 1)
    assert data.source == "data.jsonl"


def test_the_choice_of_columns_is_announced(tmp_path):
    data = dataset(tmp_path, [{"question": "p", "answer": "c", "topic": "t", "level": 1}])
    assert [notice.message for notice in data.notices] == [
        "No column was named: records were read as prompt 'question' and completion 'answer'.",
        "Columns not read: 'topic', 'level'.",
    ]


@pytest.mark.parametrize(
    ("row", "columns", "expected"),
    [
        (
            {"body": "a", "n": 1},
            {},
            "data.jsonl has no column with a usual name; its columns are 'body', 'n'. Name",
        ),
        (
            {"text": "a", "prompt": "b", "completion": "c"},
            {},
            "can be read in 2 ways: text 'text'; prompt 'prompt' and completion 'completion'. Say which",
        ),
        (
            {"instruction": "a", "input": "b", "output": "c"},
            {},
            "has a column 'input' beside 'instruction', which would be left out. Join both",
        ),
        (
            {"txt": "a", "n": 1},
            {"text": "text"},
            "line 1: no column 'text'; there are 'txt', 'n'. Did you mean 'txt'?",
        ),
        ({"text": "a"}, {"id": "name"}, "line 1: no column 'name'; there are 'text'. Known: text."),
        ({"text": "a"}, {"unit": "tex"}, "line 1: no column 'tex'; there are 'text'. Did you mean 'text'?"),
        (
            {"text": 3, "note": "a"},
            {},
            "line 1: column 'text' is a number, not a text. Columns with text: note.",
        ),
        ({"text": None}, {}, "line 1: column 'text' is null, not a text. No column of it holds text."),
        ({"text": ["a"]}, {}, "line 1: column 'text' is a list, not a text."),
        ({"text": True}, {}, "line 1: column 'text' is true or false, not a text."),
        ({"text": {"a": 1}}, {}, "line 1: column 'text' is an object, not a text."),
        ({"text": "a\0"}, {}, "line 1: column 'text' holds a NUL character."),
        ({"messages": "a"}, {}, "line 1: column 'messages' is a text, not a list of messages. Write a list"),
        ({"messages": ["a"]}, {}, "message 1 is a text. Each message needs a role and a content."),
        ({"messages": [{"role": "user", "text": "a"}]}, {}, "message 1 has the keys 'role', 'text'."),
        (
            {"messages": [{"role": "asistant", "content": "a"}]},
            {},
            "message 1 has the role 'asistant'. Did you mean 'assistant'?",
        ),
        (
            {"messages": [{"role": None, "content": "a"}]},
            {},
            "message 1 has the role None. A role is a text.",
        ),
        (
            {"messages": [{"role": "assistant", "content": None}]},
            {},
            "the content of message 1 is null, not a text.",
        ),
        (chat("only asks"), {}, "column 'messages' has no message of the role 'assistant'. A model learns"),
        (
            {"text": "a", "who": 1.5},
            {"unit": "who"},
            "line 1: column 'who' is a number. Ids and units are texts",
        ),
        ({"text": "a", "who": None}, {"unit": "who"}, "line 1: column 'who' is null."),
        ({"text": "a", "who": True}, {"id": "who"}, "line 1: column 'who' is true or false."),
        ({"text": "a", "who": " "}, {"unit": "who"}, "line 1: column 'who' is blank."),
    ],
)
def test_bad_columns(tmp_path, row, columns, expected):
    assert expected in refused(tmp_path, [row], **columns)


def test_a_later_line_is_named(tmp_path):
    rows = [{"text": "a"}, {"text": "b"}, {"txt": "c"}]
    assert "data.jsonl, line 3: no column 'text'; there are 'txt'." in refused(tmp_path, rows)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"text": "a", "messages": "m"}, "data names text as well as messages. Name one of"),
        ({"prompt": "a"}, "data.prompt is set, but data.completion is not. Set data.completion too"),
        ({"completion": "a"}, "data.completion is set, but data.prompt is not. Set data.prompt too"),
        ({"unit": "a", "unit_rows": 2}, "data.unit ('a') and data.unit_rows (2) are both set."),
        ({"unit_rows": 0}, "data.unit_rows is 0. Set how many"),
    ],
)
def test_bad_configurations(tmp_path, columns, expected):
    assert expected in refused(tmp_path, [{"text": "a"}], kind=ConfigError, **columns)


def test_ids_and_units(tmp_path):
    rows = [
        {"text": "a", "n": 7, "who": "x"},
        {"text": "b", "n": "k", "who": 3},
        {"text": "c", "n": 2**70, "who": "x"},
    ]
    by_record = dataset(tmp_path, rows)
    assert [r.id for r in by_record.records] == [record_id(r.messages) for r in by_record.records]
    assert all(r.unit == r.id for r in by_record.records)
    assert by_record.unit_kind == "record"
    named = dataset(tmp_path, rows, id="n", unit="who")
    assert [(r.id, r.unit) for r in named.records] == [("7", "x"), ("k", "3"), (str(2**70), "x")]
    assert (named.unit_kind, named.units) == ("who", ("x", "3"))


def test_consecutive_rows_form_units(tmp_path):
    rows = [{"text": text} for text in ("a", "", "b", "c", "d")]
    data = dataset(tmp_path, rows, unit_rows=2)
    assert [r.unit for r in data.records] == ["rows-1-2", "rows-3-4", "rows-3-4", "rows-5-6"]
    assert data.unit_kind == "rows-of-2"


def test_empty_records_are_counted(tmp_path):
    rows = [
        {"prompt": "a", "completion": " \n"},
        {"prompt": "a", "completion": "b"},
        {"prompt": "", "completion": ""},
    ]
    assert notices(dataset(tmp_path, rows))["empty-records"] == 2
    rows = [chat("a", " "), {"messages": []}, chat("a", " ", "b", "c")]
    data = dataset(tmp_path, rows)
    assert (len(data.records), notices(data)["empty-records"]) == (1, 2)
    message = refused(tmp_path, [{"text": ""}, {"text": "\t"}])
    assert message.startswith("data.jsonl holds no usable record: all 2 are empty. They were read as text 'text'")


def test_unread_keys_of_messages_are_counted(tmp_path):
    row = chat("a", "b")
    row["messages"][0] |= {"name": "Jo", "weight": None}
    assert notices(dataset(tmp_path, [row]))["unread-keys"] == 1


def test_exact_duplicates_merge_into_the_first(tmp_path):
    rows = [
        {"text": "caf\u00e9", "n": 1},
        {"text": "b", "n": 2},
        {"text": "cafe\u0301", "n": 3},
        {"text": "b", "n": 2},
    ]
    data = dataset(tmp_path, rows, id="n")
    assert [r.id for r in data.records] == ["1", "2"]
    assert notices(data)["duplicates-merged"] == 2


def test_equal_contents_of_two_units_stay(tmp_path):
    rows = [{"text": "a", "who": "x"}, {"text": "a", "who": "y"}, {"text": "a", "who": "x"}]
    data = dataset(tmp_path, rows, unit="who")
    assert [r.unit for r in data.records] == ["x", "y"]
    assert len({r.id for r in data.records}) == 2
    assert (notices(data)["duplicates-merged"], notices(data)["shared-content"]) == (1, 1)


@pytest.mark.parametrize(
    ("second", "columns", "expected"),
    [
        (
            {"text": "b", "n": 1, "who": "x"},
            {},
            "line 2: the id '1' already names the record at line 1, which has",
        ),
        ({"text": "b", "n": 1, "who": "x"}, {}, "another content. Ids must be unique"),
        ({"text": "a", "n": 1, "who": "y"}, {"unit": "who"}, "which has another unit. Ids must be unique"),
    ],
)
def test_an_id_names_one_record(tmp_path, second, columns, expected):
    assert expected in refused(tmp_path, [{"text": "a", "n": 1, "who": "x"}, second], id="n", **columns)


def test_csv_and_folder_through_read(tmp_path):
    (tmp_path / "a.csv").write_text("id,text\n1,one\n2,\n")
    data = read(DataConfig(path=str(tmp_path / "a.csv"), id="id"))
    assert ([r.id for r in data.records], notices(data)["empty-records"]) == (["1"], 1)
    folder = tmp_path / "notes"
    folder.mkdir()
    (folder / "b.txt").write_text("two")
    (folder / "a.txt").write_text("")
    (folder / "c.pdf").write_text("no")
    data = read(DataConfig(path="notes", unit="file"), tmp_path)
    assert [r.unit for r in data.records] == ["b.txt"]
    assert (notices(data)["empty-records"], notices(data)["skipped-files"]) == (1, 1)


def test_a_file_name_that_is_no_unicode_cannot_be_an_id(tmp_path):
    name = os.fsdecode(b"caf\xe9.txt")
    (tmp_path / name).write_text("a")
    with pytest.raises(DataError, match=r"'caf.*: column 'file' is not valid Unicode\. Rename"):
        read(DataConfig(path=".", id="file"), tmp_path)
    assert len(read(DataConfig(path="."), tmp_path).records) == 1


def make(*rows):
    records = tuple(Record(id=i, messages=(Message("text", t),), unit=u) for i, u, t in rows)
    return Dataset(records=records, unit_kind="record", notices=(), source="x")


def test_fingerprint_is_of_the_set():
    first = make(("a", "u", "one"), ("b", "u", "two"))
    assert first.fingerprint == make(("b", "u", "two"), ("a", "u", "one")).fingerprint
    others = [
        make(("a", "u", "one")),
        make(("a", "u", "one"), ("b", "v", "two")),
        make(("a", "u", "one"), ("c", "u", "two")),
        make(("a", "u", "one"), ("b", "u", "two!")),
    ]
    assert len({first.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert len(first.fingerprint) == 64


def test_digests_tell_roles_apart_and_stay_the_same():
    assert content_digest([Message("text", "a")]) != content_digest([Message("prompt", "a")])
    assert content_digest([Message("text", "ab")]) != content_digest([Message("text", "a"), Message("text", "b")])
    # A published value: ids of old runs must not change under a new version.
    assert content_digest([Message("text", "Hello")]) == "569d5a150fa7baefd94ed16b30f87a6b"


def test_importing_records_is_cheap():
    heavy = "{'pyarrow', 'datasketch', 'torch', 'scipy', 'pandas'}"
    code = f"import sys, sordino.records; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize(
    ("value", "label"), [("spam", "spam"), (" spam ", "spam"), (3, "3"), (True, "true"), (False, "false"), (0, "0")]
)
def test_labels_are_texts_whole_numbers_or_booleans(tmp_path, value, label):
    data = dataset(tmp_path, [{"text": "a", "kind": value}], label="kind")
    assert data.records[0].label == label
    assert notices(data) == {"data-shape": 1}
    plain = dataset(tmp_path, [{"text": "a", "kind": value}])
    assert (plain.records[0].label, notices(plain)["unread-columns"]) == (None, 1)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ({"text": "a"}, "no column 'kind'"),
        ({"text": "a", "kind": None}, "column 'kind' is null"),
        ({"text": "a", "kind": "  "}, "column 'kind' is blank"),
        ({"text": "a", "kind": 0.5}, r"column 'kind' is a number (0.5)"),
        ({"text": "a", "kind": ["x"]}, "column 'kind' is a list"),
        ({"text": "a", "kind": "x\0"}, "holds a NUL character"),
    ],
)
def test_a_record_without_a_usable_label_is_refused_with_its_place(tmp_path, row, says):
    message = refused(tmp_path, [{"text": "first", "kind": "x"}, row], label="kind")
    assert "data.jsonl, line 2" in message
    assert says in message


def test_a_label_is_part_of_the_content_only_where_there_is_one(tmp_path):
    text = (Message("text", "a"),)
    # Digests of records without labels are those of every run so far.
    assert content_digest(text) == "75d30a06bb443d764c3e4474b02ad760"
    assert record_id(text, "u") == "35041a08d11397bee322c7960cfe652d"
    digests = {content_digest(text), content_digest(text, "x"), content_digest(text, "y")}
    assert len(digests) == 3
    assert len({record_id(text, "u"), record_id(text, "u", "x"), record_id(text, None, "x")}) == 3
    rows = [{"text": "a", "kind": kind} for kind in ("x", "y", "x")]
    data = dataset(tmp_path, rows, label="kind")
    assert [r.label for r in data.records] == ["x", "y"]
    assert notices(data)["duplicates-merged"] == 1
    assert data.fingerprint != dataset(tmp_path, rows[:1]).fingerprint
    assert len({r.id for r in data.records}) == 2


def test_a_label_column_is_suggested_only_to_who_wants_one(tmp_path):
    from sordino.records import suggest_columns

    path = tmp_path / "x.tsv"
    path.write_text("Label\tSMS\nham\tsee you at eight\nspam\tyou have won\n")
    assert suggest_columns(path) == {"text": "SMS"}
    assert suggest_columns(path, labelled=True) == {"text": "SMS", "label": "Label"}
