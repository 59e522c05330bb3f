"""The ledger of deletion requests: what is written stays, what is changed is noticed, what was deleted stays out."""

import json
import os
import random
import signal
import stat
import subprocess
import sys
import time

import pytest
from deletion_fixtures import config_for, finished, rows_of, sides, text_of

from sordino.deletions import Deletions, Marks, leave_out
from sordino.deletions.chain import Chain
from sordino.errors import DataError, RunError, UnlearningError
from sordino.records import load as load_split
from sordino.results import DeletionRequest
from sordino.train.flow import prepare, train_run

STATES = ("received", "planned", "executed", "verified", "certified", "failed")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return finished(config_for(tmp_path_factory.mktemp("deletions"), rows_of()))


@pytest.fixture
def book(run, tmp_path):
    """A ledger beside a link to the run: each test has one of its own."""
    (tmp_path / run.path.name).symlink_to(run.path)
    return Deletions.open(tmp_path)


def request_for(run, names, kind="subject", name="q1"):
    return DeletionRequest(id=name, created="2026-01-01", run=run.path.name, kind=kind, names=tuple(names))


def carry(book, request, state="executed", **data):
    """Bring `request` to `state`."""
    book.receive(request)
    for one in STATES[1 : STATES.index(state) + 1]:
        book.advance(request.id, one, **data)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


def test_a_request_goes_its_way_and_its_folder_is_private(run, book):
    os.umask(old := os.umask(0))
    assert book.state("q1") is None and not book.path.exists()
    names = sides(run)["trained"][:2]
    found = book.receive(request_for(run, names))
    assert (found.state, found.count, found.run, found.kind) == ("received", 2, run.path.name, "subject")
    assert book.request("q1").names == tuple(names)
    for state in ("planned", "executed", "verified"):
        assert book.advance("q1", state, **{state: 1}).state == book.state("q1") == state
    assert [one.id for one in book.open_requests()] == ["q1"]
    last = book.advance("q1", "certified", digest="abc")
    assert last.data == {"planned": 1, "executed": 1, "verified": 1, "digest": "abc"} and last.executed
    assert book.open_requests() == () and [one.id for one in book.requests()] == ["q1"]
    assert mode(book.path) == mode(book.folder("q1")) == 0o700
    assert {mode(path) for path in book.path.rglob("*") if path.is_file()} == {0o600}
    lines = (book.path / "ledger.jsonl").read_text()
    assert len(lines.splitlines()) == 5
    assert not any(f'"{name}"' in lines for name in (*names, "r0", "r1")) and text_of(0) not in lines
    assert old == os.umask(old)


@pytest.mark.parametrize("old", [None, *STATES])
@pytest.mark.parametrize("new", STATES)
def test_only_the_next_state_may_follow(run, book, old, new):
    request = request_for(run, ["c0"])
    allowed = {
        (None, "received"), ("received", "planned"), ("planned", "executed"), ("executed", "verified"),
        ("verified", "certified"), ("received", "failed"), ("planned", "failed"), ("executed", "failed"),
        ("verified", "failed"), ("failed", "received"), ("verified", "verified"), ("certified", "certified"),
    }  # fmt: skip
    if old == "failed":
        carry(book, request, "planned")
        book.advance("q1", "failed")
    elif old is not None:
        carry(book, request, old)

    def go():
        return book.receive(request) if new == "received" else book.advance("q1", new)

    if (old, new) in allowed:
        assert go().state == new
    else:
        with pytest.raises(UnlearningError, match="received" if old is None else f"{old}: it cannot become {new}"):
            go()
        assert book.state("q1") == old


def test_ids_data_and_runs_are_checked(run, book):
    for name in ("", "..", "a/b", "x" * 65, ".hidden"):
        with pytest.raises(UnlearningError, match="no id of a request"):
            book.receive(request_for(run, ["c0"], name=name))
    with pytest.raises(RunError, match="no run"):
        book.receive(DeletionRequest(id="q", created="", run="elsewhere", kind="subject", names=("c0",)))
    book.receive(request_for(run, ["c0"]))
    with pytest.raises(UnlearningError, match="cannot hold"):
        book.advance("q1", "planned", what=object())
    with pytest.raises(UnlearningError, match="no request"):
        book.standing("other")
    with book.lock("q1"), pytest.raises(RunError, match="Another process"), book.lock("q1"):
        pass


def ledger_of(book):
    return book.path / "ledger.jsonl"


@pytest.fixture
def filled(run, book):
    carry(book, request_for(run, ["c0"]), "verified", share=0.25)
    return book


def test_every_change_of_a_byte_is_noticed(filled):
    whole = ledger_of(filled).read_bytes()
    rng = random.Random(0)
    for at in [*sorted(rng.sample(range(len(whole)), 150)), len(whole) - 2]:
        changed = bytearray(whole)
        changed[at] ^= 1 << rng.randrange(8)
        ledger_of(filled).write_bytes(bytes(changed))
        with pytest.raises(RunError, match=r"changed|removed"):
            filled.requests()
    ledger_of(filled).write_bytes(whole)
    assert filled.state("q1") == "verified"


@pytest.mark.parametrize("take", ["first", "middle", "last", "two", "swap", "twice", "none", "all"])
def test_lines_that_were_removed_moved_or_repeated_are_noticed(filled, take):
    lines = ledger_of(filled).read_bytes().splitlines(keepends=True)
    edited = {
        "first": lines[1:], "middle": lines[:1] + lines[2:], "last": lines[:-1], "two": lines[:-2],
        "swap": [lines[0], lines[2], lines[1], *lines[3:]], "twice": [*lines, lines[-1]], "none": [], "all": None,
    }[take]  # fmt: skip
    if edited is None:
        ledger_of(filled).unlink()
    else:
        ledger_of(filled).write_bytes(b"".join(edited))
    for act in (filled.requests, lambda: filled.advance("q1", "certified")):
        with pytest.raises(RunError, match=r"changed|removed"):
            act()


def test_another_salt_or_none_is_an_error(filled):
    (filled.path / "salt").write_text("00" * 32)
    with pytest.raises(RunError, match="changed"):
        Deletions(filled.path).requests()
    for content in ("", "00", "zz"):
        (filled.path / "salt").write_text(content)
        with pytest.raises(RunError, match="salt"):
            Deletions(filled.path).requests()
    (filled.path / "salt").unlink()
    with pytest.raises(RunError, match="salt"):
        Deletions(filled.path).advance("q1", "certified")


@pytest.mark.parametrize("tail", ["part", "whole line", "zeros", "two"])
def test_a_torn_line_counts_for_nothing_and_is_closed(filled, tail):
    path, last = ledger_of(filled), ledger_of(filled).read_bytes().splitlines()[-1]
    torn = {"part": last[:40], "whole line": last, "zeros": b"\0" * 70, "two": last[:9] + b"\n" + last[:40]}[tail]
    with path.open("ab") as file:
        file.write(torn)
    if tail == "two":  # the first one was being closed when the second was torn
        path.write_bytes(path.read_bytes())
    assert filled.state("q1") == "verified"
    filled.advance("q1", "failed", why="torn")
    assert filled.state("q1") == Deletions(filled.path).state("q1") == "failed"
    assert torn in path.read_bytes()
    whole = path.read_bytes()
    path.write_bytes(whole.replace(torn + b"\n", b"", 1) if tail != "whole line" else whole.replace(torn, b"x", 1))
    with pytest.raises(RunError, match="changed"):
        filled.requests()


def test_a_crash_between_the_line_and_the_head_loses_nothing(run, book, monkeypatch):
    from sordino.deletions import chain

    book.receive(request_for(run, ["c0"]))

    def crash(path, *rest, **more):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(chain, "write_atomic", crash)
        with pytest.raises(KeyboardInterrupt):
            book.advance("q1", "planned")
    assert book.state("q1") == "planned"
    book.advance("q1", "executed")
    assert book.state("q1") == "executed"


WRITER = """
import sys
from pathlib import Path
from sordino.deletions.chain import Chain
chain, who = Chain(Path(sys.argv[1])), sys.argv[2]
print("ready", flush=True)
for number in range(10**9):
    with chain.writing():
        entry = chain.append(who, "planned", {"number": number})
    print(entry.number, flush=True)
"""


def test_no_acknowledged_line_is_lost_however_writers_die(tmp_path):
    folder, rng, told = tmp_path / "deletions", random.Random(1), []
    for round_ in range(4):
        writers = [
            subprocess.Popen([sys.executable, "-c", WRITER, str(folder), f"w{n}"], stdout=subprocess.PIPE, text=True)
            for n in range(2)
        ]
        for writer in writers:
            assert writer.stdout.readline() == "ready\n"
        time.sleep(0.15 + 0.1 * rng.random())
        for writer in writers:
            os.kill(writer.pid, signal.SIGKILL)
        for writer in writers:
            told += [int(line) for line in writer.communicate()[0].split("\n")[:-1]]
        entries = Chain(folder).entries()
        assert len(set(told)) == len(told) and set(told) <= {e.number for e in entries}, round_
        assert [e.number for e in entries] == list(range(1, len(entries) + 1))
    assert len(told) > 8


def test_what_was_deleted_is_left_out_of_later_trainings_and_no_coin_moves(tmp_path):
    config = config_for(tmp_path, rows_of())
    run = finished(config)
    before = {e.record.id: e for e in load_split(run.records).examples}
    book, names = Deletions.open(config.out), [side[0] for side in sides(run).values()]
    request = request_for(run, names)
    for state in ("received", "planned"):
        book.receive(request) if state == "received" else book.advance("q1", state)
        assert len(prepare(config).split.examples) == len(before)
    book.advance("q1", "executed")
    later = prepare(config)
    after = {e.record.id: e for e in later.split.examples}
    assert after == {name: e for name, e in before.items() if e.record.unit not in names}
    assert later.fingerprint == run.card.data["fingerprint"]
    assert next(n for n in later.notices if n.kind == "deleted").count == 6
    assert "6 records of 3 deleted subjects" in next(n.message for n in later.notices if n.kind == "deleted")
    book.advance("q1", "failed")
    assert len(prepare(config).split.examples) == len(after), "what was carried out once stays out"
    assert book.reconsent(names[:1], "subject", "they wrote on 2 May") == 1
    back = {e.record.id: e for e in prepare(config).split.examples}
    assert back == {name: e for name, e in before.items() if e.record.unit not in names[1:]}
    assert f'"{names[0]}"' not in ledger_of(book).read_text()


def test_deleted_records_stay_out_under_other_ids_and_units(tmp_path):
    rows = rows_of()
    run = finished(config_for(tmp_path, rows))
    unit = sides(run)["trained"][0]
    mine = [row["id"] for row in rows if row["customer"] == unit]
    book = Deletions.open(run.path.parent)
    carry(book, request_for(run, [mine[0]], "record"))
    renamed = [{**row, "id": f"new-{row['id']}", "customer": f"x{row['customer']}"} for row in rows]
    texts = {e.record.messages[0].content for e in prepare(config_for(tmp_path, renamed)).split.examples}
    gone = {row["text"] for row in rows} - texts
    assert gone == {row["text"] for row in rows if row["id"] == mine[0]}
    book.reconsent([mine[0]], "record", "agreed")
    for data in (rows, renamed):  # by the name that was deleted, whatever it is called now
        assert len(prepare(config_for(tmp_path, data)).split.examples) == len(load_split(run.records).examples)


def test_a_record_comes_back_alone_and_a_subject_with_all_of_its_own(tmp_path):
    rows = rows_of()
    config = config_for(tmp_path, rows)
    run = finished(config)
    first, second = sides(run)["trained"][:2]
    book = Deletions.open(config.out)
    carry(book, request_for(run, [first, second]))
    mine = [row["id"] for row in rows if row["customer"] == first]

    def missing():
        left = {e.record.id for e in prepare(config).split.examples}
        return {row["id"] for row in rows} - left

    theirs = {row["id"] for row in rows if row["customer"] == second}
    assert missing() == {*mine, *theirs}
    book.reconsent(mine[:1], "record", "agreed")
    assert missing() == {*mine[1:], *theirs}
    book.reconsent([first], "subject", "agreed")
    assert missing() == theirs
    carry(book, request_for(run, mine[:1], "record", "q2"))
    assert missing() == {*mine[:1], *theirs}, "a later request counts again"


def test_rows_as_units_and_records_as_units_are_known_by_what_they_say(tmp_path):
    rows = [{"text": row["text"]} for row in rows_of(80)]
    for data, unit in (({"unit_rows": 3}, None), ({}, None)):
        folder = tmp_path / str(len(data))
        folder.mkdir()
        config = config_for(folder, rows, data={"path": str(folder / "records.jsonl"), "text": "text", **data})
        run = finished(config)
        unit = sides(run)["trained"][0]
        texts = {e.record.messages[0].content for e in load_split(run.records).examples if e.record.unit == unit}
        carry(Deletions.open(config.out), request_for(run, [unit]))
        # The first row goes: units of rows have other rows now, and the same names.
        (folder / "records.jsonl").write_text("\n".join(map(json.dumps, rows[1:])))
        left = {e.record.messages[0].content for e in prepare(config).split.examples if e.role != "canary"}
        assert left == {row["text"] for row in rows[1:]} - texts


def test_what_somebody_else_holds_word_for_word_is_not_blocked(tmp_path):
    rows = rows_of()
    run = finished(config_for(tmp_path, rows))
    unit, other = sides(run)["trained"][:2]
    shared = next(row["text"] for row in rows if row["customer"] == unit)
    rows.append({"text": shared, "id": "copy", "customer": other})
    run = finished(config_for(tmp_path, rows))
    carry(Deletions.open(run.path.parent), request_for(run, [unit]))
    left = {e.record.id: e.record.unit for e in prepare(config_for(tmp_path, rows)).split.examples}
    assert "copy" in left and unit not in left.values()
    mine = next(row["id"] for row in rows if row["text"] == shared)
    carry(Deletions.open(run.path.parent), request_for(run, ["copy"], "record", "q2"))
    Deletions.open(run.path.parent).reconsent([unit], "subject", "agreed")
    left = {e.record.id for e in prepare(config_for(tmp_path, rows)).split.examples}
    assert "copy" not in left and mine in left


def test_nothing_left_to_train_on_is_an_error_that_names_nobody(tmp_path):
    config = config_for(tmp_path, rows_of())
    run = finished(config)
    carry(Deletions.open(config.out), request_for(run, sides(run)["trained"]))
    placed = load_split(run.records)
    own = [e for e in placed.examples if e.role != "canary"]
    from dataclasses import replace

    with pytest.raises(DataError, match="Nothing is left") as error:
        leave_out(replace(placed, examples=tuple(own)), config.out, "customer")
    assert not any(name in str(error.value).split() for name in sides(run)["trained"])


def test_a_run_that_was_prepared_before_the_deletion_is_not_trained(tmp_path):
    from sordino.train.flow import create

    config = config_for(tmp_path, rows_of())
    run = finished(config)
    waiting = create(config, prepare(config))
    carry(Deletions.open(config.out), request_for(run, sides(run)["trained"][:1]))
    with pytest.raises(RunError, match=r"prepared before a deletion: 2 of its records"):
        train_run(waiting)


def test_consent_takes_a_reason_and_names_that_were_deleted(run, book):
    carry(book, request_for(run, ["c0", "c1"]))
    lines = ledger_of(book).read_bytes()
    for names, kind, reason in (
        ([], "subject", "x"), (["c0"], "subject", " "), (["c0", "c7"], "subject", "x"), (["c0"], "record", "x"),
        (["c0"], "subject", "c0 said so"),
    ):  # fmt: skip
        with pytest.raises(UnlearningError) as error:
            book.reconsent(names, kind, reason)
        assert "c7" not in str(error.value)
    assert ledger_of(book).read_bytes() == lines
    assert book.reconsent(["c0"], "subject", "agreed") == 1
    with pytest.raises(UnlearningError, match="1 of 1 names"):
        book.reconsent(["c0"], "subject", "agreed")


def test_who_is_deleted_already_is_told_by_run(run, book):
    carry(book, request_for(run, ["c0"]))
    assert book.deleted(["c0", "c1"], "subject", [run.path.name]) == ["c0"]
    assert book.deleted(["r0", "r1", "r2"], "record", [run.path.name]) == ["r0", "r1"]
    assert book.deleted(["c0"], "subject", ["another run"]) == []
    assert book.deleted(["c0"], "subject", [run.path.name], but="q1") == []
    assert [one.id for one in book.carried_out([run.path.name])] == ["q1"]
    book.advance("q1", "failed")
    assert book.deleted(["c0"], "subject", [run.path.name]) == []


def test_where_nothing_was_ever_deleted_nothing_is_made(tmp_path):
    config = config_for(tmp_path, rows_of())
    placed = prepare(config).split
    assert leave_out(placed, config.out, "customer") is placed
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("data", [{}, {"records": [["a", "b"]], "kind": "subject", "unit": "who", "names": []}])
def test_a_request_that_another_version_wrote_is_told(data):
    with pytest.raises(RunError, match="cannot be read"):
        Marks.read(data)
