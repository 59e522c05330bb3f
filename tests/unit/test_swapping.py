"""Folders that change places in one step: a reader never finds none."""

import threading

import pytest

from sordino.train import swapping
from sordino.train.swapping import swap_folder


def put(path, text):
    with swap_folder(path) as folder:
        (folder / "a").write_text(text)
        (folder / "part").mkdir()
        (folder / "part" / "b").write_text(text)


def test_a_reader_finds_the_old_folder_or_the_new_one(tmp_path):
    if not swapping._exchange(*_pair(tmp_path)):
        pytest.skip("this system cannot exchange folders")
    path, stop, missed, read = tmp_path / "weights", threading.Event(), [], []

    def reader():
        while not stop.is_set():
            try:
                path.stat()
                read.append(1)
            except FileNotFoundError as error:
                missed.append(error)

    put(path, "0")
    thread = threading.Thread(target=reader)
    thread.start()
    for number in range(200):
        put(path, str(number))
    stop.set()
    thread.join()
    assert read
    assert not missed
    assert ((path / "a").read_text(), (path / "part" / "b").read_text()) == ("199", "199")


def _pair(folder):
    for name in ("one", "two"):
        (folder / name).mkdir()
    return folder / "one", folder / "two"


@pytest.mark.parametrize("able", [True, False])
def test_what_was_there_is_replaced_and_nothing_is_left_over(tmp_path, monkeypatch, able):
    if not able:
        monkeypatch.setattr(swapping, "_exchange", lambda one, two: False)
    put(tmp_path / "weights", "old")
    (tmp_path / "weights" / "more").write_text("x")
    put(tmp_path / "weights", "new")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights"]
    assert sorted(p.name for p in (tmp_path / "weights").iterdir()) == ["a", "part"]
    assert (tmp_path / "weights" / "part" / "b").read_text() == "new"


def test_an_error_leaves_what_was_there(tmp_path):
    put(tmp_path / "weights", "old")
    with pytest.raises(ZeroDivisionError), swap_folder(tmp_path / "weights"):
        raise ZeroDivisionError
    assert (tmp_path / "weights" / "a").read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights"]


def test_folders_change_names(tmp_path):
    one, two = _pair(tmp_path)
    (one / "x").touch()
    if not swapping._exchange(one, two):
        pytest.skip("this system cannot exchange folders")
    assert (two / "x").exists()
    assert not (one / "x").exists()
    assert not swapping._exchange(one, tmp_path / "none")
