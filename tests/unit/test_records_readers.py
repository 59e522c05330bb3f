"""Files become rows with their places, and every bad file is refused with its line and a way out."""

import csv
import os

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sordino.errors import ConfigError, DataError
from sordino.records.readers import read_table


def table(tmp_path, name, content, file_format="auto"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return read_table(path, name, file_format)


def refused(tmp_path, name, content, file_format="auto"):
    with pytest.raises(DataError) as caught:
        table(tmp_path, name, content, file_format)
    assert caught.value.hint
    return str(caught.value)


def test_json_lines(tmp_path):
    read = table(tmp_path, "a.jsonl", '{"text": "one\\u2028"}\r\n\n{"text": "two\u2028x", "n": 2}\n')
    assert [(row.place, dict(row.values)) for row in read.rows] == [
        ("line 1", {"text": "one\u2028"}),
        ("line 3", {"text": "two\u2028x", "n": 2}),
    ]
    assert read.columns == ("text", "n")
    assert read.blank == 1


@pytest.mark.parametrize("content", ['[{"text": "one"},\n {"text": "two"}]', '{"text": "one"}\n{"text": "two"}'])
def test_json_suffix_is_lines_or_an_array(tmp_path, content):
    rows = table(tmp_path, "a.json", content).rows
    assert [row.values["text"] for row in rows] == ["one", "two"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (
            '{"text": "one"}\n{"text": "é" 1}',
            "a.jsonl, line 2, column 14: malformed JSON, expected ',' or '}'.",
        ),
        (
            '{"text": "one"}\n\n{"text": "tw',
            "a.jsonl, line 3, column 13: malformed JSON, input data was truncated.",
        ),
        ('[{"text": "one"},\n{"text": 1x}]', "a.jsonl, line 2, column 11: malformed JSON"),
        ('{"text": "one"}\n["two"]', "a.jsonl, line 2: a list, not an object. Write one JSON object a line"),
        ('{"text": "one"}\nnull', "a.jsonl, line 2: null, not an object."),
        ('[{"text": "one"}, 3]', "a.jsonl, item 2: a number, not an object."),
        (
            '{"text": "\\ud800 and more"}',
            "a.jsonl, line 1, column 17: malformed JSON, unexpected end of escaped",
        ),
        ("[" * 100_000, "a.jsonl, line 1: JSON is nested too deeply."),
        ("[]", "a.jsonl holds no record."),
        ("", "a.jsonl holds no record."),
        ("\n \n", "a.jsonl holds no record, only 2 blank lines."),
        (
            b'{"text": "caf\xe9"}',
            "a.jsonl, line 1: invalid UTF-8 at byte 14 of the line (byte 14 of the file).",
        ),
        (
            b'\xef\xbb\xbf{}\n{"text": "\xff"}',
            "line 2: invalid UTF-8 at byte 11 of the line (byte 17 of the file).",
        ),
        ('{"text": "one"}\n{"text": "\0"}', "a.jsonl, line 2: a NUL byte. It is not a text file"),
    ],
)
def test_bad_json(tmp_path, content, expected):
    assert expected in refused(tmp_path, "a.jsonl", content)


def test_csv_quotes_line_breaks_and_byte_order_mark(tmp_path):
    content = '\ufefftext,n\r\n"a ""b"",\r\nc",1\r\n\r\nd,2\r\n'
    read = table(tmp_path, "a.csv", content)
    assert [(row.place, dict(row.values)) for row in read.rows] == [
        ("line 2", {"text": 'a "b",\r\nc', "n": "1"}),
        ("line 5", {"text": "d", "n": "2"}),
    ]
    assert (read.columns, read.blank) == (("text", "n"), 1)


def test_csv_reads_long_fields_and_restores_the_limit(tmp_path):
    before = csv.field_size_limit()
    assert len(table(tmp_path, "a.csv", "text\n" + "x" * 300_000).rows[0].values["text"]) == 300_000
    assert csv.field_size_limit() == before


def test_tsv_takes_quotes_as_text(tmp_path):
    read = table(tmp_path, "a.tsv", 'label\ttext\nham\t"Hey" you\nspam\t"open\n')
    assert [row.values["text"] for row in read.rows] == ['"Hey" you', '"open']


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.csv", "", "a.csv is empty."),
        ("a.csv", "text,n\n", "a.csv holds no record."),
        ("a.csv", "text,n\na,1\nb\n", "a.csv, line 3: 1 fields, but the header names 2 columns. A separator"),
        ("a.csv", "text,n\na,1,2\n", "a.csv, line 2: 3 fields, but the header names 2 columns."),
        ("a.csv", 'text,n\na,1\n"b,2\n', "a.csv, line 3: malformed CSV, unexpected end of data. Put texts"),
        ("a.csv", 'text,n\n"a"b,1\n', "a.csv, line 2: malformed CSV"),
        ("a.csv", "text,text\na,b\n", "a.csv, line 1: two columns are named 'text'. The first line"),
        ("a.csv", "text,\na,b\n", "a.csv, line 1: a column has no name."),
        ("a.csv", b"text\na\nb\xff\n", "a.csv, line 3: invalid UTF-8 at byte 2 of the line"),
        ("a.csv", "text\na\0b\n", "a.csv, line 2: a NUL byte."),
        ("a.tsv", "text\tn\na 1\n", "a.tsv, line 2: 1 fields, but the header names 2 columns."),
        ("a.parquet", "text", "a.parquet is not a readable Parquet file"),
        ("a.txt", "\n\n", "a.txt holds no record, only 2 blank lines."),
        ("a.txt", "one\ntwo\0", "a.txt, line 2: a NUL byte."),
        (
            "a.docx",
            "x",
            "a.docx has the suffix '.docx', which tells no format. Set data.format to one of: jsonl, csv",
        ),
        ("notes", "x", "notes has no suffix, which tells no format."),
    ],
)
def test_bad_files(tmp_path, name, content, expected):
    assert expected in refused(tmp_path, name, content)


def test_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "ho"}]
    pq.write_table(pa.table({"id": [1, 2], "messages": [messages, messages]}), path)
    read = read_table(path, "a.parquet")
    assert read.columns == ("id", "messages")
    assert [(row.place, row.values["id"]) for row in read.rows] == [("row 1", 1), ("row 2", 2)]
    assert read.rows[0].values["messages"] == messages


def test_empty_parquet(tmp_path):
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet holds no record"):
        read_table(tmp_path / "a.parquet", "a.parquet")


def test_text_has_a_record_a_line(tmp_path):
    read = table(tmp_path, "a.md", "\ufeff# one\r\n\r\n  two\u2028x \n")
    assert [(row.place, row.values["text"]) for row in read.rows] == [
        ("line 1", "# one"),
        ("line 3", "  two\u2028x "),
    ]
    assert read.blank == 1


def test_a_format_overrides_the_suffix(tmp_path):
    assert len(table(tmp_path, "a.log", "one\ntwo\n", "text").rows) == 2


def test_folder_has_a_record_a_file(tmp_path):
    for name, text in (("b.txt", "two\nlines"), ("a.txt", "one"), ("c.bin", "no"), (".hidden", "no")):
        (tmp_path / name).write_text(text)
    (tmp_path / "more").mkdir()
    read = read_table(tmp_path, "notes")
    assert [(row.place, dict(row.values)) for row in read.rows] == [
        ("a.txt", {"text": "one", "file": "a.txt"}),
        ("b.txt", {"text": "two\nlines", "file": "b.txt"}),
    ]
    assert read.skipped == 3


def test_bad_folders(tmp_path):
    with pytest.raises(DataError, match=r"notes holds no text file among its 0 entries\. A folder is read as one"):
        read_table(tmp_path, "notes")
    (tmp_path / "a.txt").write_bytes(b"one\n\xff")
    with pytest.raises(DataError, match=r"notes/a.txt, line 2: invalid UTF-8"):
        read_table(tmp_path, "notes")
    with pytest.raises(DataError, match=r"notes is a folder, but the format csv reads one file\. Name a file"):
        read_table(tmp_path, "notes", "csv")
    with pytest.raises(DataError, match=r"a.txt is not a folder, which the format text-folder reads\. Set data"):
        read_table(tmp_path / "a.txt", "a.txt", "text-folder")


def test_what_is_no_file(tmp_path):
    with pytest.raises(DataError, match=r"gone.csv does not exist\. Check data.path"):
        read_table(tmp_path / "gone.csv", "gone.csv")
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(DataError, match=r"pipe.csv is not a regular file\. Name a file"):
        read_table(tmp_path / "pipe.csv", "pipe.csv")
    with pytest.raises(DataError, match=r"x+ cannot be read: File name too long\. Check the path"):
        read_table(tmp_path / ("x" * 300), "x" * 300)
    with pytest.raises(ConfigError, match=r"No data format named 'jsonlines'\. Did you mean 'jsonl'\?"):
        read_table(tmp_path / "a", "a", "jsonlines")
