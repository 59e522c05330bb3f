"""The run folder: every write is whole or absent, private things are private, and damage is noticed."""

import errno
import json
import os
import resource
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from sordino import run as module
from sordino.errors import RunError, TrainingError
from sordino.results import RunCard
from sordino.run import Run, write_atomic, write_folder

CARD = RunCard(name="x", created="2026-01-01", status="prepared", config={}, seed=0, data={}, model={}, environment={})


class Crash(BaseException):
    """Stands for the end of the process: no `except Exception` may stop it."""


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def fail_at(monkeypatch, owner, name: str, passage: int, error: BaseException) -> list[int]:
    """Make the `passage`-th call (from 1) of `owner.name` raise `error`; returns a list of calls made."""
    original, calls = getattr(owner, name), []

    def patched(*args, **kwargs):
        calls.append(1)
        if len(calls) == passage:
            raise error
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, patched)
    return calls


FILE_POINTS = [
    (module.tempfile, "mkstemp", 1), (os, "fdopen", 1), (os, "fsync", 1), (Path, "chmod", 1),
    (Path, "replace", 1), (os, "open", 1), (os, "fsync", 2),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "passage"), FILE_POINTS, ids=lambda v: getattr(v, "__name__", v))
@pytest.mark.parametrize("error", [Crash(), OSError(errno.EIO, "I/O error")], ids=["crash", "EIO"])
def test_a_file_is_old_or_new_wherever_writing_fails(tmp_path, monkeypatch, owner, name, passage, error):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with monkeypatch.context() as patch:
        calls = fail_at(patch, owner, name, passage, error)
        with pytest.raises(type(error)):
            write_atomic(path, b"new" * 10_000)
        assert len(calls) >= passage, "the point was never reached"
    assert path.read_bytes() in (b"old", b"new" * 10_000)
    assert hidden(tmp_path) == []
    write_atomic(path, b"newer")
    assert path.read_bytes() == b"newer"


def test_data_is_flushed_before_it_gets_its_name(tmp_path, monkeypatch):
    order = []
    for owner, name in ((os, "fsync"), (Path, "replace")):
        original = getattr(owner, name)
        monkeypatch.setattr(owner, name, lambda *a, name=name, original=original: (order.append(name), original(*a))[1])
    write_atomic(tmp_path / "file", b"data")
    assert order == ["fsync", "replace", "fsync"]


def test_modes(tmp_path):
    old = os.umask(0)
    try:
        write_atomic(tmp_path / "shown", b"")
        write_atomic(tmp_path / "secret", b"", mode=0o600)
        run = Run.create(tmp_path, "n", "abcd")
        path = run.write_private("deep/er/secret.json", b"{}")
        (tmp_path / "secret").chmod(0o644)
        write_atomic(tmp_path / "secret", b"again", mode=0o600)
    finally:
        os.umask(old)
    assert mode(tmp_path / "shown") == 0o644
    assert mode(tmp_path / "secret") == mode(path) == 0o600
    assert mode(run.private) == 0o700


def write_two(path: Path, text: str) -> None:
    with write_folder(path) as folder:
        (folder / "a").write_text(text)
        (folder / "b").write_text(text)


def content(path: Path) -> set[str]:
    return {p.read_text() for p in path.iterdir()} if path.exists() else set()


FOLDER_POINTS = [
    (module.tempfile, "mkdtemp", 1), (os, "fsync", 1), (os, "fsync", 2), (os, "fsync", 3), (Path, "rename", 1),
    (Path, "rename", 2), (os, "fsync", 4), (module.shutil, "rmtree", 1), (module.shutil, "rmtree", 2),
]  # fmt: skip


@pytest.mark.parametrize(("owner", "name", "passage"), FOLDER_POINTS, ids=lambda v: getattr(v, "__name__", v))
def test_a_folder_is_old_or_new_wherever_writing_fails(tmp_path, monkeypatch, owner, name, passage):
    path = tmp_path / "inner" / "folder"
    write_two(path, "old")
    with monkeypatch.context() as patch:
        calls = fail_at(patch, owner, name, passage, Crash())
        with pytest.raises(Crash):
            write_two(path, "new")
        assert len(calls) >= passage, "the point was never reached"
    assert content(path) in ({"old"}, {"new"})
    write_two(path, "newer")
    assert content(path) == {"newer"}
    assert hidden(path.parent) == []


def test_a_folder_whose_block_fails_vanishes(tmp_path):
    with pytest.raises(ZeroDivisionError), write_folder(tmp_path / "new") as folder:
        (folder / "a").write_text("half")
        1 / 0  # noqa: B018
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
@pytest.mark.parametrize("write", [lambda p: write_atomic(p, b"x"), lambda p: write_two(p, "x")])
def test_a_full_disk_says_so(tmp_path, monkeypatch, code, write):
    fail_at(monkeypatch, os, "fsync", 1, OSError(code, os.strerror(code)))
    with pytest.raises(TrainingError, match=r"disk is full: .*target could not be written") as error:
        write(tmp_path / "target")
    assert "--resume" in error.value.hint
    assert list(tmp_path.iterdir()) == []


@contextmanager
def at_most(size: int):
    """Files may grow to `size` bytes only, for real: the kernel refuses more, as a full disk does."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def test_a_write_the_kernel_refuses_loses_nothing(tmp_path):
    path = tmp_path / "file"
    write_atomic(path, b"old")
    with at_most(10_000), pytest.raises(TrainingError, match="disk is full"):
        write_atomic(path, b"n" * 100_000)
    assert path.read_bytes() == b"old" and hidden(tmp_path) == []


def test_a_checkpoint_the_kernel_refuses_loses_nothing(tmp_path):
    import torch
    from safetensors.torch import load_file, save_file

    path = tmp_path / "checkpoint"

    def write(count: int) -> None:
        with write_folder(path) as folder:
            save_file({"w": torch.ones(count)}, str(folder / "state.safetensors"))

    write(10)
    # Written through Rust, whose error is not an OSError.
    with at_most(10_000), pytest.raises(TrainingError, match="disk is full"):
        write(100_000)
    assert len(load_file(path / "state.safetensors")["w"]) == 10 and hidden(tmp_path) == []


def test_a_full_disk_while_losses_and_events_are_logged(tmp_path):
    run = Run.create(tmp_path, "n", "abcd")
    run.event("first")
    with at_most(50), pytest.raises(TrainingError, match="disk is full"):
        run.event("second", text="x" * 200)
    assert json.loads((run.path / "events.jsonl").read_text().splitlines()[0])["event"] == "first"


def test_other_errors_keep_their_name(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_atomic(tmp_path / "no" / "such", b"")


def test_names_that_are_taken_get_a_number(tmp_path):
    paths = [Run.create(tmp_path, "name", "abcdef").path.name for _ in range(3)]
    stem = paths[0]
    assert stem.endswith("-name-abcd")
    assert paths == [stem, f"{stem}-2", f"{stem}-3"]


def test_the_card_comes_back(tmp_path):
    run = Run.create(tmp_path, "n", "abcd")
    run.write_card(CARD)
    assert Run.open(run.path).card == CARD
    assert Run.open(str(run.path)) == run


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is damaged"),
        ('{"schema": 1', "is damaged"),
        ("[]", "is damaged"),
        ('{"schema": 99}', "has schema 99; this Sordino reads schema 1"),
        ('{"name": "x"}', "has schema None"),
        ('{"schema": 1}', "is not a valid RunCard"),
        ('{"schema": 1, "name": 3}', "is not a valid RunCard"),
    ],
)
def test_a_damaged_card_is_an_expected_error(tmp_path, text, message):
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(RunError, match=message) as error:
        _ = Run.open(tmp_path).card
    assert str(tmp_path) in error.value.message and error.value.hint


def test_no_run_there(tmp_path):
    with pytest.raises(RunError, match="There is no run at"):
        Run.open(tmp_path / "nowhere")
    with pytest.raises(RunError, match="is not a run folder"):
        Run.open(tmp_path)
    run = Run.create(tmp_path, "n", "abcd")
    run.write_card(CARD)
    with pytest.raises(RunError, match="has not been audited") as error:
        _ = run.audit
    assert "sordino audit" in error.value.hint


def test_a_run_without_its_private_part_cannot_be_worked_on(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(RunError, match="has no folder private/"), Run.open(tmp_path).lock():
        pass


def _hold(path: Path) -> None:
    with Run(path).lock():
        print("held", flush=True)
        time.sleep(60)


def test_one_process_at_a_time(tmp_path):
    run = Run.create(tmp_path, "n", "abcd")
    program = f"import test_run, pathlib; test_run._hold(pathlib.Path({str(run.path)!r}))"
    process = subprocess.Popen(
        [sys.executable, "-c", program], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        with pytest.raises(RunError, match="Another process is working on"), run.lock():
            pytest.fail("two processes hold one run")
    finally:
        process.kill()  # a killed process leaves no lock behind
        process.communicate()
    with run.lock():
        pass


def test_events_are_lines(tmp_path):
    run = Run.create(tmp_path, "n", "abcd")
    run.event("one", value=1)
    run.event("two", text="a\nb")
    lines = [json.loads(line) for line in (run.path / "events.jsonl").read_text().splitlines()]
    assert [(e["event"], e.get("value"), e.get("text")) for e in lines] == [("one", 1, None), ("two", None, "a\nb")]
    assert all(e["time"].endswith("+00:00") for e in lines)
