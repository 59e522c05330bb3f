"""A folder put in the place of another in one step, so that who reads it meanwhile finds the old one or the new one."""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sordino.run import write_folder

__all__ = ["swap_folder"]

_HERE, _SWAP = -100, 2  # AT_FDCWD; RENAME_EXCHANGE of Linux and RENAME_SWAP of macOS


def _exchange(one: Path, two: Path) -> bool:
    """Let two folders change names in one step; False where system or disk cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(two)
    try:
        if sys.platform == "darwin":
            return bool(libc.renamex_np(*names, ctypes.c_uint(_SWAP)) == 0)
        return bool(libc.renameat2(_HERE, names[0], _HERE, names[1], ctypes.c_uint(_SWAP)) == 0)
    except AttributeError:
        return False


@contextmanager
def swap_folder(path: Path) -> Iterator[Path]:
    """A temporary folder that becomes `path` when the block ends well; at no moment is there none, or half of one.

    Where the system cannot exchange folders, there is none for the moment between two renames, as in `write_folder`.
    """
    if not path.exists():
        with write_folder(path) as folder:
            yield folder
        return
    # A name that `Run.tidy` removes after a crash.
    other = path.with_name(f".{path.name}.next")
    with write_folder(other) as folder:
        yield folder
    if not _exchange(other, path):
        with write_folder(path) as folder:
            shutil.copytree(other, folder, dirs_exist_ok=True)
    shutil.rmtree(other, ignore_errors=True)
