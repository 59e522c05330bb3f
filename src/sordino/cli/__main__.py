"""`python -m sordino.cli` is `sordino`."""

from sordino.cli import main

main()
