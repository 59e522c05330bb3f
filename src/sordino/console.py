"""What a person sees while work goes on: bars on a terminal, plain lines elsewhere, words on stderr."""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sordino.results import Notice

if TYPE_CHECKING:
    from rich.progress import Progress as Bars

__all__ = ["Display", "display", "say", "show_notices"]

# Seconds between plain lines, where there is no terminal to draw bars on.
_EVERY = 10.0


def say(text: str) -> None:
    """One line on stderr."""
    print(text, file=sys.stderr, flush=True)


def show_notices(notices: Sequence[Notice]) -> None:
    """Every notice on stderr, a line each."""
    for notice in notices:
        say(f"note: {notice.message}")


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Display:
    """Progress of named tasks."""

    def __init__(self, bars: "Bars | None") -> None:
        """Draw on `bars`, or write plain lines where there are none."""
        self.bars = bars

    def task(self, name: str, total: int) -> Callable[..., None]:
        """Start a task; call the result with how much more is done and, if wanted, a text."""
        if self.bars is not None:
            bars, task = self.bars, self.bars.add_task(name, total=max(1, total), note="")

            def advance(done: int, note: str = "") -> None:
                if note:
                    bars.update(task, advance=done, note=note)
                else:
                    bars.update(task, advance=done)

            return advance
        return self._lines(name, total)

    def _lines(self, name: str, total: int) -> Callable[..., None]:
        started = shown = time.monotonic()
        reached = 0

        def advance(done: int, note: str = "") -> None:
            nonlocal shown, reached
            reached += done
            now = time.monotonic()
            if now - shown < _EVERY and reached < total:
                return
            shown = now
            spent = now - started
            left = spent / reached * (total - reached) if reached else 0.0
            words = [f"{name}: {reached:,}/{total:,}", note, f"{_clock(spent)} spent, {_clock(left)} left"]
            say(" ".join(w for w in words if w))

        return advance

    def training(self) -> Callable[[Any, int], None]:
        """A monitor for the training loop: loss, tokens a second, time left."""
        advance: Callable[..., None] | None = None
        before, tokens, began = 0, 0, time.monotonic()

        def monitor(progress: Any, steps: int) -> None:
            nonlocal advance, before, tokens, began
            if advance is None:
                advance = self.task("training", steps - progress.step + 1)
                before, tokens, began = progress.step - 1, progress.tokens, time.monotonic()
            spent = time.monotonic() - began
            speed = f" {(progress.tokens - tokens) / spent:,.0f} tokens/s" if spent > 1 else ""
            held = f" validation {progress.validation:.3f}" if progress.validation is not None else ""
            advance(progress.step - before, f"loss {progress.loss:.3f}{held}{speed}")
            before = progress.step

        return monitor


@contextmanager
def display() -> Iterator[Display]:
    """A `Display` on stderr."""
    if not sys.stderr.isatty():
        yield Display(None)
        return
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description:24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=Console(stderr=True)) as bars:
        yield Display(bars)
