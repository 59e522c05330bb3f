"""What somebody meets in the first minutes: a key without its section, records that a dry run must not hide."""

import json

import pytest

from sordino.config import load
from sordino.errors import ConfigError
from sordino.train.flow import plan_of, prepare


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("epochs", "Did you mean 'train.epochs'?"),
        ("candidates", "Did you mean 'split.candidates'?"),
        ("nam", "Did you mean 'name'?"),
    ],
)
def test_a_key_given_without_its_section_is_found(key, hint):
    with pytest.raises(ConfigError, match=f"Unknown configuration key '{key}'") as error:
        load(values={"data": {"path": "x.jsonl"}}, environment={}, flags=[f"--{key}", "1"])
    assert error.value.hint == hint


def test_a_key_of_two_sections_is_left_to_the_reader():
    with pytest.raises(ConfigError) as error:
        load(values={"data": {"path": "x.jsonl"}}, environment={}, flags=["--path", "x"])
    assert error.value.hint.startswith("Known:")


@pytest.mark.parametrize(("too_long", "shown"), [("truncate", "records truncated"), ("split", "records split")])
def test_a_dry_run_counts_the_records_that_are_too_long(tmp_path, too_long, shown):
    words = ["short one", "word " * 200]
    rows = [{"text": f"{number}: {words[number % 2]}"} for number in range(80)]
    path = tmp_path / "records.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    flags = ["--train.max_length", "64", "--train.too_long", too_long, "--split.near_duplicates", "0"]
    config = load(values={"data": {"path": str(path)}, "split": {"candidates": 0.9}}, environment={}, flags=flags)
    prepared = prepare(config)
    trained = [e.record.messages[0].content for e in prepared.split.training if e.role != "canary"]
    long = sum(text.count("word") == 200 for text in trained)
    assert 0 < long < len(trained)
    assert plan_of(config, prepared)[shown] == long
