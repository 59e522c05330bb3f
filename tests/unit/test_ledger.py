"""The ledger: whole or not there; the journal: no step is forgotten, however the process dies."""

import os
import random
import signal
import subprocess
import sys
import time

import msgspec
import pytest

from sordino import ledger
from sordino.errors import RunError, TrainingError
from sordino.ledger import Entry, Journal, read_ledger, write_ledger

WRITER = """
import sys
from pathlib import Path
from sordino.ledger import Journal
journal = Journal(Path(sys.argv[1]))
first = journal.started
print("ready", flush=True)
for step in range(first, 10**9):
    journal.start(step)
    print(step, flush=True)
"""


def entry(**changes):
    values = {
        "id": "a1",
        "run": "2026-11-22-notes-3f9a",
        "created": "2026-11-22T09:00:00Z",
        "fingerprint": "f" * 32,
        "unit": "subject",
        "relation": "add-or-remove-one",
        "delta": 1e-5,
        "mechanism": {"rate": 0.01, "noise_multiplier": 1.0, "clip_norm": 1.0},
        "step_event": {"kind": "GaussianDpEvent", "noise_multiplier": 1.0},
        "planned": 100,
        "started": 7,
        "status": "running",
        "secret_recorded_seed": False,
    }
    return Entry(**{**values, **changes})


def test_entries_are_read_as_they_were_written(tmp_path):
    path = tmp_path / "ledger.json"
    entries = (entry(), entry(id="b2", relation="replace-one", started=100, status="finished", delta=1 / 3))
    write_ledger(path, entries)
    assert read_ledger(path) == entries
    assert [p.name for p in tmp_path.iterdir()] == ["ledger.json"]
    write_ledger(path, entries[:1])
    assert read_ledger(path) == entries[:1]


@pytest.mark.parametrize(
    "changes",
    [{"delta": 0.0}, {"delta": 1.0}, {"delta": float("nan")}, {"started": -1}, {"planned": -1}, {"status": "finished"}],
)
def test_an_entry_cannot_say_what_cannot_have_been(changes):
    with pytest.raises(ValueError, match=r"delta|steps"):
        entry(**changes)


@pytest.mark.parametrize("cut", [0, 1, 40, -3])
def test_a_damaged_ledger_is_an_error(tmp_path, cut):
    path = tmp_path / "ledger.json"
    write_ledger(path, [entry()])
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(RunError, match=r"ledger\.json"):
        read_ledger(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"schema": 1', b'"schema": 2'),
        (b'"delta": 0.00001', b'"delta": 2'),
        (b'"started": 7', b'"started": "7"'),
        (b'"unit"', b'"units"'),
        (b'"running"', b'"paused"'),
        (b'"a1"', b'"\xff"'),
    ],
)
def test_an_edited_ledger_is_an_error(tmp_path, old, new):
    path = tmp_path / "ledger.json"
    write_ledger(path, [entry()])
    data = path.read_bytes().replace(b'"delta": 1e-5', b'"delta": 0.00001')
    assert old in data
    path.write_bytes(data.replace(old, new))
    with pytest.raises(RunError):
        read_ledger(path)


def test_a_missing_ledger_and_equal_ids_are_errors(tmp_path):
    with pytest.raises(RunError, match="no ledger"):
        read_ledger(tmp_path / "ledger.json")
    with pytest.raises(RunError, match="1 ids"):
        write_ledger(tmp_path / "ledger.json", [entry(), entry()])
    whole = {"schema": 1, "entries": [msgspec.to_builtins(entry())] * 2}
    (tmp_path / "ledger.json").write_bytes(msgspec.json.encode(whole))
    with pytest.raises(RunError, match="1 ids"):
        read_ledger(tmp_path / "ledger.json")


def test_a_step_is_on_disk_before_it_is_taken(tmp_path):
    path = tmp_path / "steps"
    journal = Journal(path)
    assert journal.started == 0
    for step in range(12):
        journal.start(step)
        assert path.read_bytes().endswith(b"%d\n" % step)
        assert Journal(path).started == journal.started == step + 1
    journal.close()
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("torn", [b"1", b"12", b"\0\0\0", b"1\0"])
def test_a_torn_line_counts_as_a_start_and_stays_one(tmp_path, torn):
    path = tmp_path / "steps"
    path.write_bytes(b"10\n11\n" + torn)
    journal = Journal(path)
    assert journal.started == 3
    journal.start(12)
    journal.start(13)
    assert journal.started == Journal(path).started == 5


@pytest.mark.parametrize("content", [b"1\nx\n3\n", b"1\n2 \n", b"\xff\n", b"1\n-2\n"])
def test_a_damaged_journal_is_an_error(tmp_path, content):
    (tmp_path / "steps").write_bytes(content)
    with pytest.raises(RunError, match="damaged: line"):
        Journal(tmp_path / "steps")


def test_a_start_that_could_not_be_written_whole_counts(tmp_path, monkeypatch):
    path = tmp_path / "steps"
    journal = Journal(path)
    journal.start(10)
    write = os.write

    def full(file, data):
        write(file, data[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(ledger.os, "write", full)
    with pytest.raises(TrainingError, match="disk is full"):
        journal.start(11)
    monkeypatch.undo()
    journal.start(11)
    assert journal.started == Journal(path).started == 3


def test_every_start_is_flushed(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "steps")
    flushed = []
    monkeypatch.setattr(ledger.os, "fsync", lambda file: flushed.append((tmp_path / "steps").read_bytes()))
    journal.start(0)
    journal.start(1)
    assert flushed == [b"0\n", b"0\n1\n"]


def test_no_step_is_forgotten_when_the_process_is_killed(tmp_path):
    path, taken, kills = tmp_path / "steps", 0, 5
    waits = random.Random(4)
    for _ in range(kills):
        process = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(waits.uniform(0, 0.05))
        process.send_signal(signal.SIGKILL)
        # Whatever it printed was taken after its start was on disk; what it could not print may be on disk.
        taken += len(process.stdout.read().splitlines())
        process.stdout.close()
        assert process.wait() == -signal.SIGKILL
    started = Journal(path).started
    assert taken > kills
    assert taken <= started <= taken + kills


def test_an_event_of_several_steps_counts_from_the_first():
    assert entry().events(7) == 7
    epochs = entry(mechanism={"steps_per_event": 21})
    assert [epochs.events(steps) for steps in (0, 1, 21, 22, 63)] == [0, 1, 1, 2, 3]
    for covered in (0, -1, 2.5, True, "21"):
        with pytest.raises(ValueError, match="its event covers"):
            entry(mechanism={"steps_per_event": covered})
