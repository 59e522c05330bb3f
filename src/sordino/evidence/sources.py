"""A digest of Sordino's own source: which code made a result."""

from functools import cache
from pathlib import Path

from sordino.evidence.digests import digest, digest_file

__all__ = ["code_digest", "digest_of_sources"]


def digest_of_sources(folder: Path) -> str:
    """blake2b-128, in hex, of the Python files below `folder`: their paths from there, and contents, in order."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*.py"))
    return digest(*(part for name, path in files for part in (name, digest_file(path))))


@cache
def code_digest() -> str:
    """`digest_of_sources` of the package that is running."""
    return digest_of_sources(Path(__file__).parents[1])
