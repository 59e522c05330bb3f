"""Training anew: exact for any model, and what everything else is measured against."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import msgspec

from sordino.records.placed import unit_of
from sordino.results import Cost
from sordino.run import Run
from sordino.train.flow import train_run
from sordino.train.progress import Progress
from sordino.unlearn.base import Child, Deletion, unlearner

__all__ = ["retrain"]


class _Held(Run):
    """A run whose lock whoever calls a method holds already."""

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold nothing: it is held."""
        yield


@unlearner(tier="exact")
def retrain(deletion: Deletion, child: Child) -> Cost:
    """Train anew on what stays, under the same configuration and seed: exact, and the yardstick of all costs.

    On a CPU with as many threads the weights are, bit for bit, those of a run trained without the deleted. It goes on
    from its last checkpoint. Under differential privacy it spends anew: its ledger is composed with the earlier ones.
    """
    start, run = time.monotonic(), _Held(child.run.path)
    if run.card.status == "unlearning":
        # The card is that of the parent: nothing of its training is true of this one.
        config = _fitting(deletion, child)
        run.write_card(dataclasses.replace(run.card, status="prepared", training={}, privacy={}, config=config))
    if run.card.status != "trained":
        last, ticks = [0], list[Callable[[int], None]]()

        def monitor(progress: Progress, steps: int) -> None:
            if not ticks:
                ticks.append(child.ticker("training anew, steps", steps))
            ticks[0](progress.step - last[0])
            last[0] = progress.step

        train_run(run, say=child.say, monitor=monitor)
    card = run.card
    run.write_card(dataclasses.replace(card, status="unlearning"))
    seconds = max(time.monotonic() - start, float(card.training["seconds"]))
    return Cost(seconds=seconds, tokens=int(card.training["tokens"]), share=1.0)


def _fitting(deletion: Deletion, child: Child) -> dict[str, Any]:
    """The configuration of the run; batches of all units that differential privacy protects are of all that stay."""
    config, left = deletion.config, deletion.left.training
    found: dict[str, Any] = msgspec.to_builtins(config)
    if config.dp is not None:
        units = len({unit_of(example, config.dp.unit) for example in left})
        if units < config.train.batch_size:
            child.say(f"{units:,} units stay: train.batch_size is {units:,} instead of {config.train.batch_size:,}")
            found["train"]["batch_size"] = units
    return found
