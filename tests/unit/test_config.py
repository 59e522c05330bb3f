"""The configuration: layers in their order, and every mistake an error that names key, value and remedy."""

import dataclasses
import json
import typing
from pathlib import Path

import msgspec
import pytest
import yaml

from sordino import config as module
from sordino.config import MethodConfig, ModelConfig, RunConfig, TrainConfig, load, recorded
from sordino.errors import ConfigError, RunError
from sordino.inputs import parse_flags
from sordino.records import DataConfig
from sordino.starter import starter

DATA = {"data": {"path": "x.jsonl"}}


def read(**values):
    return load(values={**DATA, **values}, environment={})


def sections(kind=RunConfig, prefix=""):
    """Every (dotted prefix, dataclass) of the schema."""
    yield prefix, kind
    for name, hint in typing.get_type_hints(kind).items():
        if dataclasses.is_dataclass(hint):
            yield from sections(hint, f"{prefix}{name}.")


def test_defaults():
    assert read() == RunConfig(data=DataConfig(path="x.jsonl"))


def test_yaml_below_environment_below_flags(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("data: {path: a.csv, unit: u}\ntrain: {epochs: 5, batch_size: 7, clip: 0.5}\nname: yaml\n")
    environment = {"SORDINO__TRAIN__EPOCHS": "6", "SORDINO__TRAIN__BATCH_SIZE": "9", "SORDINO_DATA": "/x", "HOME": "/"}
    found = load(path, environment=environment, flags=["--train.epochs", "8", "--data.path=b.csv"])
    assert (found.train.epochs, found.train.batch_size, found.train.clip) == (8, 9, 0.5)
    assert (found.data.path, found.data.unit, found.name) == ("b.csv", "u", "yaml")


def test_the_real_environment_is_read(monkeypatch):
    monkeypatch.setenv("SORDINO__SEED", "41")
    assert load(values=DATA).seed == 41


@pytest.mark.parametrize(("text", "value"), [("2e-4", 2e-4), ("1E-3", 1e-3), ("0.5", 0.5), ("1", 1.0)])
def test_numbers_as_people_write_them(tmp_path, text, value):
    path = tmp_path / "run.yaml"
    path.write_text(f"data: {{path: x}}\ntrain:\n  learning_rate: {text}\n")
    assert load(path, environment={}).train.learning_rate == value
    environment = {"SORDINO__TRAIN__LEARNING_RATE": text}
    assert load(values=DATA, environment=environment).train.learning_rate == value
    flags = ["--train.learning-rate", text]
    assert load(values=DATA, environment={}, flags=flags).train.learning_rate == value


def test_lists_and_nothing_as_flags():
    flags = ["--audit.fpr", "[0.1, 1e-2]", "--method.targets", "[q_proj, v_proj]", "--train.max_length", "null"]
    found = load(values=DATA, environment={}, flags=flags)
    assert (found.audit.fpr, found.method.targets, found.train.max_length) == ((0.1, 0.01), ("q_proj", "v_proj"), None)


@pytest.mark.parametrize(("prefix", "kind"), list(sections()), ids=lambda v: v if isinstance(v, str) else v.__name__)
def test_unknown_keys_at_every_depth_get_a_suggestion(prefix, kind):
    for field in dataclasses.fields(kind):
        values: dict = {field.name[:-1] + "q": 1}
        for name in reversed(prefix.split(".")[:-1]):
            values = {name: values}
        wrong = f"{prefix}{field.name[:-1]}q"
        with pytest.raises(ConfigError, match=f"Unknown configuration key '{wrong}'") as error:
            read(**values)
        assert f"'{field.name}'" in error.value.hint or "Known:" in error.value.hint


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--train.epochs", "three"], "train.epochs is 'three': expected int, got str"),
        (["--train.epochs", "1.5"], "train.epochs is 1.5: expected int"),
        (["--train.clip", "[1]"], r"train.clip is \[1\]: expected float"),
        (["--data.path", "7"], "data.path is 7: expected str"),
        (["--audit.fpr", "[0.1, x]"], r"audit.fpr is \[0.1, 'x'\]: expected float"),
        (["--train", "3"], "'train' is a section, but its value is 3"),
        (["--model.remote_code", "maybe"], "model.remote_code is 'maybe': expected bool"),
        (["--train.epochs"], "--train.epochs has no value"),
        (["train.epochs", "3"], "'train.epochs' is neither a known option nor a configuration key"),
        (["--audit.fpr", "[0.1"], "The value of audit.fpr cannot be read"),
    ],
)
def test_wrong_types(flags, message):
    with pytest.raises(ConfigError, match=message) as error:
        load(values=DATA, environment={}, flags=flags)
    assert error.value.hint


def test_a_wrong_choice_gets_a_suggestion():
    with pytest.raises(ConfigError, match=r"method\.kind is 'lorra'") as error:
        read(method={"kind": "lorra"})
    assert "'lora'" in error.value.hint


RANGES = [
    ("train.epochs", 0), ("train.batch_size", 0), ("train.accumulation", 0), ("train.accumulation", 9),
    ("train.learning_rate", 0), ("train.learning_rate", -1), ("train.learning_rate", 10), ("train.warmup", 1),
    ("train.warmup", -0.1), ("train.weight_decay", -1), ("train.clip", -1), ("train.max_length", 7),
    ("train.checkpoint_every", 0), ("train.validate_every", 0), ("method.rank", 0), ("method.alpha", 0),
    ("method.dropout", 1), ("method.dropout", -0.1), ("split.candidates", 1.1), ("split.candidates", -0.1),
    ("split.validation", 1), ("audit.confidence", 0.5), ("audit.confidence", 1), ("audit.fpr", []),
    ("audit.fpr", [0]), ("audit.fpr", [1.0]), ("audit.guess_share", 0), ("audit.guess_share", 1.1),
    ("audit.shuffles", 98), ("audit.delta", 1), ("audit.delta", -0.1), ("audit.prefix_tokens", 0),
    ("audit.suffix_tokens", 0), ("audit.token_forwards", 0), ("seed", -1), ("seed", 2**63), ("name", ""),
    ("name", "a/b"), ("name", "a b"),
]  # fmt: skip


def test_the_bound_for_gaussian_mechanisms_needs_a_delta():
    assert read(audit={"bound": "f-dp"}).audit.bound == "f-dp"
    with pytest.raises(ConfigError, match=r"audit\.bound is 'f-dp'.*delta above 0"):
        read(audit={"bound": "f-dp", "delta": 0})
    with pytest.raises(ConfigError, match=r"audit\.bound is 'best'"):
        read(audit={"bound": "best"})


@pytest.mark.parametrize(("key", "value"), RANGES, ids=lambda v: json.dumps(v))
def test_values_out_of_range_name_the_key_and_the_value(key, value):
    values = value
    for name in reversed(key.split(".")):
        values = {name: values}
    with pytest.raises(ConfigError) as error:
        read(**values)
    shown = repr(float(value)) if isinstance(value, float) else repr(value)
    assert f"{key} is" in error.value.message and shown.strip("[]") in error.value.message
    assert error.value.hint.startswith("Allowed: ")


def test_shares_that_add_up_to_more_than_one():
    with pytest.raises(ConfigError, match=r"candidates") as error:
        read(split={"candidates": 0.8, "validation": 0.3})
    assert "candidates + validation at most 1" in error.value.hint


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "No data is configured"),
        ("# only a comment\n", "No data is configured"),
        ("train: {epochs: 1}", "No data is configured"),
        ("data: {format: csv}", "missing required field path"),
        ("data: x.csv", "'data' is a section"),
        ("- a\n- b", "holds a list, not keys"),
        ("just words", "holds a str, not keys"),
        ("train: {epochs: 1", "is not valid YAML"),
        ("a:\n\t- b", "is not valid YAML"),
        ("data: {path: x}\ntrain: {epochs: 1, epochs: 2}", "the key 'epochs' is there twice"),
        ("data: {path: x}\n3: 4", "Unknown configuration key '3'"),
        ("!!python/object/apply:os.system ['true']", "is not valid YAML"),
    ],
)
def test_files_that_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        load(path, environment={})
    assert error.value.hint


def test_files_that_are_not_there_or_not_text(tmp_path):
    with pytest.raises(ConfigError, match=r"There is no configuration file .*nowhere.yaml") as error:
        load(tmp_path / "nowhere.yaml", environment={})
    assert "sordino init" in error.value.hint
    with pytest.raises(ConfigError, match="There is no configuration file"):
        load(tmp_path, environment={})
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="is not valid YAML"):
        load(tmp_path / "latin.yaml", environment={})


def test_flags_nest_and_take_both_forms():
    assert parse_flags(["--a.b", "1", "--a.c=x=y", "--d-e", "[1]"]) == {"a": {"b": 1, "c": "x=y"}, "d_e": [1]}


def test_every_key_of_a_run_is_written_not_only_those_that_were_set():
    written = msgspec.to_builtins(read(train={"epochs": 1}, model={}))
    for prefix, kind in sections():
        values = written
        for name in prefix.split(".")[:-1]:
            values = values[name]
        assert set(values) == {f.name for f in dataclasses.fields(kind)}, prefix
    assert recorded(json.loads(json.dumps(written)), "run.json") == read(train={"epochs": 1})


def test_a_recorded_configuration_that_was_damaged():
    with pytest.raises(RunError, match=r"The configuration in here/run.json is damaged: .*epochs"):
        recorded({**DATA, "train": {"epochs": "x"}}, "here/run.json")


COLUMNS = {"text": "body", "unit": "customer"}


def test_the_starter_file_has_exactly_the_defaults(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(starter(Path("my records.csv"), COLUMNS))
    expected = RunConfig(data=DataConfig(path="my records.csv", **COLUMNS), name="my-records")
    assert load(path, environment={}) == expected
    assert (expected.model, expected.method, expected.train) == (ModelConfig(), MethodConfig(), TrainConfig())


def test_the_starter_file_mentions_every_key():
    text = starter(Path("x.csv"), {})
    written = yaml.safe_load(text)
    for prefix, kind in sections():
        values = written
        for name in prefix.split(".")[:-1]:
            values = values[name]
        missing = {f.name for f in dataclasses.fields(kind)} - set(values)
        assert all(f"# {name}:" in text for name in missing), (prefix, missing)
    assert max(map(len, text.splitlines())) < 130


@pytest.mark.parametrize("name", ["a: b.csv", "no", "null.csv", "1.csv", "it's.csv", "#x.csv", "é.csv", "{a}.csv"])
def test_any_path_and_column_survive_the_starter_file(tmp_path, name):
    path = tmp_path / "run.yaml"
    path.write_text(starter(Path(name), {"text": name}), encoding="utf-8")
    found = load(path, environment={})
    assert (found.data.path, found.data.text) == (name, name)


def test_the_module_says_what_it_offers():
    assert all(hasattr(module, name) for name in module.__all__)


def test_a_prefix_does_not_go_with_checkpointing():
    values = {"data": {"path": "x.csv"}, "method": {"kind": "prefix"}, "train": {"gradient_checkpointing": True}}
    with pytest.raises(ConfigError, match="prefix: the two do not go together"):
        load(values=values, environment={})
