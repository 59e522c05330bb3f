"""What a person asked `sordino unlearn` for: who is to go, what a plan has to promise, and settings."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sordino.errors import ConfigError

if TYPE_CHECKING:
    from sordino.unlearn.planning import Policy

__all__ = ["Asked", "Kind", "Wanted", "parsed"]

Kind = Literal["subject", "record"]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """Who or what is to go, as it was given: `request` names one that is there already."""

    subjects: tuple[str, ...] = ()
    records: tuple[str, ...] = ()
    file: Path | None = None
    kind: Kind | None = None
    acknowledged: bool = False
    request: str | None = None

    def check_alone(self, dry_run: bool) -> None:
        """Raise `ConfigError` where an earlier request is named together with what makes a new one."""
        given = {
            "--subject": self.subjects, "--record": self.records, "--names": self.file, "--kind": self.kind,
            "--acknowledge": self.acknowledged, "--dry-run": dry_run,
        }  # fmt: skip
        used = [flag for flag, value in given.items() if value]
        if used:
            raise ConfigError(
                f"--request and {used[0]} are given together.", "A request keeps its names: plan it alone."
            )

    def names(self) -> tuple[Kind, tuple[str, ...]]:
        """What kind of thing is named, and the names; raises `ConfigError` unless it is one kind, and not nothing."""
        from sordino.unlearn.requests import names_from

        given = {"--subject": self.subjects, "--record": self.records, "--names": self.file}
        used = [flag for flag, value in given.items() if value]
        if len(used) != 1:
            what = "nothing is named" if not used else f"{' and '.join(used)} are given together"
            raise ConfigError(f"For a request, {what}.", "Give --subject, --record, or a file with --names.")
        if self.file is not None:
            return self.kind or "subject", names_from(self.file)
        if self.kind is not None:
            raise ConfigError(f"--kind {self.kind} was given without --names.", "It says what is in that file.")
        return ("subject", self.subjects) if self.subjects else ("record", self.records)


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What is asked of a plan, as it was given."""

    least: Literal["exact", "dp", "approximate"] = "approximate"
    method: str | None = None
    settings: tuple[str, ...] = ()
    search: int = 0
    epsilon: float | None = None
    delta: float | None = None

    def policy(self) -> "Policy":
        """The same, checked: raises `ConfigError`."""
        from sordino.unlearn.planning import Policy

        if self.search < 0:
            raise ConfigError(f"--search is {self.search}.", "Give a number of trials, 0 for none.")
        if self.epsilon is not None and not 0 < self.epsilon < float("inf"):
            raise ConfigError(f"--epsilon is {self.epsilon}.", "Give a positive number.")
        if self.delta is not None and not 0 < self.delta < 1:
            raise ConfigError(f"--delta is {self.delta}.", "Give a probability far below 1 / subjects.")
        if (self.epsilon is None) != (self.delta is None):
            raise ConfigError("--epsilon and --delta belong together.", "Give both, or neither.")
        if self.settings and self.method is None:
            raise ConfigError("--setting was given without --method.", "Name the method whose settings they are.")
        return Policy(
            least=self.least, method=self.method, settings=parsed(self.settings), search=self.search,
            epsilon=self.epsilon, delta=self.delta,
        )  # fmt: skip


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """Settings from `name=value`, the values as YAML reads them; raises `ConfigError`."""
    import yaml

    found: dict[str, Any] = {}
    for word in words:
        name, sign, text = word.partition("=")
        if not sign or not name.isidentifier():
            raise ConfigError(f"--setting is {word!r}.", "Give name=value, such as learning_rate=1e-4.")
        if name in found:
            raise ConfigError(f"--setting {name} was given twice.", "Give it once.")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--setting {word!r} cannot be read.", "Give name=value.") from error
        # YAML 1.1 takes 1e-4, without a point, for a text.
        found[name] = _number(value) if isinstance(value, str) else value
    return found


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text
