"""The command line: argument parsing only. stdout is data, stderr is words."""

from sordino.cli.parsing import _run, app, main

__all__ = ["_run", "app", "main"]
