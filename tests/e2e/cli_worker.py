"""The command line in a process of its own, forked from a server that has imported everything already.

A process that is to die kills itself at a named point, as a power cut would: nothing is cleaned up.
"""

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

__all__ = ["ENVIRONMENT", "WITNESS", "Death", "preload", "run_cli"]

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "120",
    "PYTHONWARNINGS": "error",
}

WITNESS = "witness"
"""A file that, where it is there, gets a line for every part of a private step that has seen records."""

Death = tuple[str, int]
"""Where a process dies: a point of `_points`, and at which passage of it, from 1."""

_PRELOAD = ["sordino.cli", "sordino.train.flow", "sordino.train.loop", "sordino.audit.flow", "peft"]


def preload() -> Any:
    """Return a context whose processes start in a tenth of a second, on one thread."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([*_PRELOAD, "transformers.models.llama.modeling_llama"])
    return context


def run_cli(arguments: Sequence[str], folder: Path, death: Death | None) -> None:
    """Run `sordino arguments` in `folder`; stdout and stderr go to files of that name there."""
    import torch

    torch.set_num_threads(1)
    os.chdir(folder)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    if Path(WITNESS).exists():
        _witness()
    if death is not None:
        _points()[death[0]](_countdown(death[1]))
    from sordino.cli import main

    sys.argv = ["sordino", *arguments]
    main(arguments)


def _witness() -> None:
    from sordino.dp.mechanism import Mechanism

    original, file = Mechanism.clip, os.open(WITNESS, os.O_WRONLY | os.O_APPEND)

    def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
        os.write(file, f"{os.getpid()} {self._open}\n".encode())
        return original(self, *args, **kwargs)

    Mechanism.clip = patched  # type: ignore[method-assign]


def _countdown(passages: int) -> Callable[[], None]:
    left = passages

    def passed() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    return passed


def _points() -> dict[str, Callable[[Callable[[], None]], None]]:
    import torch

    from sordino.dp.mechanism import Mechanism
    from sordino.dp.sampling import PoissonSampler
    from sordino.ledger import Journal
    from sordino.run import Run
    from sordino.train import checkpoint, loop
    from sordino.train.promise import Promise

    def before(owner: Any, name: str) -> Callable[[Callable[[], None]], None]:
        def arm(passed: Callable[[], None]) -> None:
            original = getattr(owner, name)

            def patched(*args: Any, **kwargs: Any) -> Any:
                passed()
                return original(*args, **kwargs)

            setattr(owner, name, patched)

        return arm

    def half_written(passed: Callable[[], None]) -> None:
        original = checkpoint.save_file

        def patched(tensors: Any, path: str) -> None:
            original(tensors, path)
            os.truncate(path, os.path.getsize(path) // 2)
            passed()
            original(tensors, path)

        checkpoint.save_file = patched

    def step_done(passed: Callable[[], None]) -> None:
        original = torch.optim.AdamW.step

        def patched(self: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(self, *args, **kwargs)
            passed()
            return result

        torch.optim.AdamW.step = patched  # type: ignore[method-assign]

    return {
        "in a step": step_done,
        "before its losses are written": before(loop._Trainer, "write_losses"),
        "before a checkpoint": before(loop._Trainer, "checkpoint"),
        "in a half-written checkpoint": half_written,
        "before a folder is renamed": before(Path, "rename"),
        "before something private is kept": before(Run, "write_private"),
        "before data is flushed": before(os, "fsync"),
        "before a step is in the journal": before(Journal, "start"),
        "before units are sampled": before(PoissonSampler, "batch"),
        "before gradients are clipped": before(Mechanism, "clip"),
        "before noise is added": before(Mechanism, "release"),
        "before the promise ends": before(Promise, "keep"),
    }
