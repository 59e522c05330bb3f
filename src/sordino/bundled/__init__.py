"""The built-in corpus generator (`corpus`) and the folder of the built-in base model (`TINY`)."""

from pathlib import Path

__all__ = ["TINY"]

TINY = Path(__file__).parent / "tiny"
