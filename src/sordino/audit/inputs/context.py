"""What an input of attacks is made from."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

from sordino.audit.collecting import Collector
from sordino.records import Example
from sordino.results import AuditPlan, InputPlan
from sordino.signals import Signals

__all__ = ["Context", "Pair"]

Pair = tuple[Signals, Signals | None]
"""The signals of the tuned model and, where there is one, of the untuned model."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """The run (`collector`), the `examples` that are judged, and those whose membership the adversary knows.

    `known` are records with another role than candidate: trained on for certain, or certainly not. `seed`
    is the audit's own. `notes` are what is to stand beside the results of attacks on an input, by its name, and
    `seconds` what each input took. `kept` is what was found in the records and is needed again.
    """

    collector: Collector
    examples: Sequence[Example]
    known: Sequence[Example]
    plan: AuditPlan
    seed: int
    notes: dict[str, list[str]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    kept: dict[str, object] = field(default_factory=dict)

    @property
    def settings(self) -> InputPlan:
        """What the plan says of inputs."""
        return self.plan.inputs

    @property
    def members(self) -> list[Example]:
        """Known records that were trained on."""
        return [e for e in self.known if e.included]

    @property
    def nonmembers(self) -> list[Example]:
        """Known records that were not."""
        return [e for e in self.known if not e.included]

    @contextmanager
    def timed(self, name: str) -> Iterator[None]:
        """Add the seconds that what is done inside takes to those of `name`."""
        started = time.monotonic()
        yield
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 2)

    def say(self, name: str, text: str) -> None:
        """Have `text` stand, once, beside the results of attacks on the input `name`."""
        said = self.notes.setdefault(name, [])
        if text not in said:
            said.append(text)
