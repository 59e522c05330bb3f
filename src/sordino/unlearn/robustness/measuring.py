"""All attacks on a forgetting, one after the other, each kept as soon as it is done."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from sordino.errors import UnlearningError, did_you_mean
from sordino.evidence import digest
from sordino.results import Cost, Robustness, decode, encode
from sordino.run import Run, write_atomic
from sordino.unlearn.base import Deletion, Say, Ticker
from sordino.unlearn.robustness.attacked import MOST, Attacked
from sordino.unlearn.robustness.prompts import Paraphrases, prompts
from sordino.unlearn.robustness.quantised import quantised
from sordino.unlearn.robustness.relearning import relearning
from sordino.unlearn.robustness.two_checkpoints import two_checkpoints

__all__ = ["ATTACKS", "Measured", "measure"]

ATTACKS: Mapping[str, Callable[[Attacked], Robustness]] = {
    "relearning": relearning,
    "int8": partial(quantised, bits=8),
    "int4": partial(quantised, bits=4),
    "prompts": prompts,
    "two_checkpoints": two_checkpoints,
}
"""The attacks by name."""

# Part of every key: what was found under another definition is not found again.
_DEFINITION = "robustness/1"


@dataclass(frozen=True, kw_only=True)
class _Kept:
    """What an attack found, what it cost, and a key that says of what."""

    key: str
    found: Robustness
    cost: Cost


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What attacks found, why others could not be tried (`missing`, by name: evidence for nothing), and the cost."""

    found: tuple[Robustness, ...]
    missing: Mapping[str, str]
    cost: Cost


def measure(  # noqa: PLR0913 - a run, what it forgot, where to work, and how
    child: Run,
    deletion: Deletion,
    folder: Path,
    *,
    attacks: Sequence[str] = tuple(ATTACKS),
    seed: int = 0,
    most: int = MOST,
    paraphrases: Paraphrases | None = None,
    say: Say = lambda text: None,
    ticker: Ticker = lambda name, total: lambda done: None,
) -> Measured:
    """Try `attacks` on the run `child`, which is to have forgotten what `deletion` says.

    Each is kept in `folder`, which only its owner can read, and not tried again on the same weights with the same
    `seed` and `most` records of a set; with `paraphrases`, prompts are always tried again. What cannot be tried is in
    `missing`. Raises `UnlearningError` for an unknown attack, a classifier, or weights that are not the run's.
    """
    for name in attacks:
        if name not in ATTACKS:
            raise UnlearningError(f"There is no attack on forgetting called {name!r}.", did_you_mean(name, ATTACKS))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    attacked = Attacked(child=child, deletion=deletion, folder=folder, seed=seed, most=most, say=say, ticker=ticker)
    found: list[Robustness] = []
    missing: dict[str, str] = {}
    costs: list[Cost] = []
    for name in attacks:
        attack = ATTACKS[name]
        if name == "prompts" and paraphrases is not None:
            attack = partial(prompts, paraphrases=paraphrases)
        try:
            kept = _once(attacked, name, attack, again=name == "prompts" and paraphrases is not None)
        except UnlearningError as error:
            missing[name] = str(error)
            say(f"{name}: not tried: {error}")
            continue
        found.append(kept.found)
        costs.append(kept.cost)
        say(f"{name}: {kept.found.estimate}")
    cost = Cost(
        seconds=sum(c.seconds for c in costs),
        tokens=sum(c.tokens for c in costs),
        forwards=sum(c.forwards for c in costs),
    )
    return Measured(found=tuple(found), missing=missing, cost=cost)


def _once(attacked: Attacked, name: str, attack: Callable[[Attacked], Robustness], *, again: bool) -> _Kept:
    path = attacked.folder / f"robustness-{name}.json"
    request = attacked.deletion.request.id
    weights = (str(run.card.model["weights"]) for run in (attacked.child, attacked.deletion.run))
    key = digest(_DEFINITION, request, *weights, str(attacked.seed), str(attacked.most))
    if path.exists() and not again:
        known = decode(path.read_bytes(), _Kept, str(path))
        if known.key == key:
            return known
    started, before = time.monotonic(), dict(attacked.spent)
    found = attack(attacked)
    tokens, forwards = (attacked.spent[kind] - before[kind] for kind in ("tokens", "forwards"))
    kept = _Kept(key=key, found=found, cost=Cost(seconds=time.monotonic() - started, tokens=tokens, forwards=forwards))
    write_atomic(path, encode(kept), mode=0o600)
    return kept
