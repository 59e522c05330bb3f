"""Where models of a run were exported to, so that they are found when what they hold is to go."""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from sordino.evidence import digest_files
from sordino.results import decode, encode
from sordino.run import Run

__all__ = ["FILE", "Exported", "exported_digest", "exports_of", "remember_export"]

FILE = "exports.json"
"""The private file of a run that lists its exports: where they are is nobody else's business."""


class Exported(msgspec.Struct, frozen=True, kw_only=True):
    """An export: the folder it was written to, whether the adapter was merged, and the digest of its weights."""

    path: str
    merged: bool
    weights: str


class _Exports(msgspec.Struct, frozen=True, kw_only=True):
    exports: tuple[Exported, ...]


def exported_digest(folder: Path) -> str:
    """The digest of the weight files in an exported folder."""
    return digest_files(folder.glob("*.safetensors"))


def exports_of(run: Run) -> Sequence[Exported]:
    """All exports of `run` that were written down; raises `RunError` where their list is damaged."""
    path = run.private / FILE
    return decode(path.read_bytes(), _Exports, str(path)).exports if path.exists() else ()


def remember_export(run: Run, out: Path, *, merged: bool) -> None:
    """Write down that `run` was exported to `out`; a run that was shared without its private folder keeps no list."""
    if not run.private.is_dir():
        return
    place = str(out.resolve())
    made = Exported(path=place, merged=merged, weights=exported_digest(out))
    kept = [one for one in exports_of(run) if one.path != place]
    run.write_private(FILE, encode(_Exports(exports=(*kept, made))))
