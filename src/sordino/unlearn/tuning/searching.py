"""Settings found by trials: what is forgotten is to be as likely as records never trained on, at no loss of utility."""

import dataclasses
import itertools
import math
import shutil
import time
from collections.abc import Mapping, Sequence
from typing import Any

from sordino.errors import SordinoError, TrainingError, UnlearningError
from sordino.model import restore
from sordino.records import Example
from sordino.results import Cost
from sordino.run import Run
from sordino.serialize import Serializer, Tokens
from sordino.train.reading import serializer_for
from sordino.train.validation import validation_loss
from sordino.unlearn.base import Child, Deletion, Method
from sordino.unlearn.methods import named
from sordino.unlearn.tuning.opening import Streams, count_targets, seeded, work_folder
from sordino.unlearn.tuning.settings import UnsuitedSettings, all_given
from sordino.unlearn.tuning.trials import FOLDER, Trial, read_trials, write_trials

__all__ = ["GRID", "search", "search_half", "search_validation"]

GRID: Mapping[str, tuple[Any, ...]] = {
    "learning_rate": (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3),
    "epochs": (1, 2, 5, 10),
    "strength": (0.5, 1.0, 2.0, 5.0),
    "steering": (2.0, 6.5, 20.0),
}
"""Values to be tried of the settings that a method has, and that were not given."""

_BATCH = 32
_TOLERANCE = 0.1


def search_half(never: Sequence[Example], seed: int) -> tuple[list[Example], list[Example]]:
    """`never` in halves, for the search and for the verification; what shares a coin stays together."""
    groups = sorted({e.group for e in never})
    drawn = seeded(seed, Streams.SEARCH).permutation(len(groups))
    chosen = {groups[i] for i in drawn[: len(groups) // 2].tolist()}
    return [e for e in never if e.group in chosen], [e for e in never if e.group not in chosen]


def search_validation(deletion: Deletion, seed: int) -> tuple[list[Example], list[Example]]:
    """The validation records in halves, for the search and for the verification."""
    return search_half(deletion.validation, seed)


def search(
    deletion: Deletion,
    child: Child,
    method: str,
    budget: int,
    grid: Mapping[str, Sequence[Any]] = GRID,
) -> Child:
    """The child with the settings that served best of `budget` trials; the first trial has the settings it came with.

    A trial is a whole unlearning with half of the held-out and half of the validation records. The best is that
    whose loss on what is to be forgotten comes closest to that on held-out records, while the validation loss stays
    within the tolerance. The first half of the trials is drawn from the `grid`, the others are near the best, with a
    learning rate that was not tried. Settings that are no longer the method's defaults are not searched. Trials are
    kept in the child's private folder, and those that were made are not made again.

    Raises `UnlearningError` where no trial keeps the utility, or nothing is held out, and whatever else no settings
    would change.
    """
    if type(budget) is not int or budget < 1:
        raise UnlearningError(f"The budget of the search is {budget!r}.", "Allowed: a whole number of trials, from 1.")
    chosen = named(method)
    settings = all_given(method, chosen.defaults, child.settings)
    half, _ = search_half(deletion.never, child.seed)
    watched, _ = search_validation(deletion, child.seed)
    if not half or not (watched or not deletion.validation):
        message = f"{len(deletion.never)} held-out and {len(deletion.validation)} validation records are too few."
        raise UnlearningError(message, "A search needs two of each: give the settings instead.")
    seen = dataclasses.replace(deletion, never=half, validation=watched)
    trials = read_trials(child.run)
    planned = _planned(chosen, settings, grid, budget, child.seed)
    near = "learning_rate" in _free(chosen, settings, grid)
    count = budget if near else len(planned)
    advance = child.ticker("search", count)
    for number in range(count):
        if number >= len(trials):
            tried = _nearer(trials, settings, number, -(-budget // 2)) if near else None
            trials.append(_tried(seen, child, chosen, tried or planned[number % len(planned)], number))
            write_trials(child.run, trials)
        advance(1)
    best = _best(trials[:count], settings.get("tolerance"))
    child.say(f"best of {count} trials: {_words(best)}")
    return dataclasses.replace(child, settings=dict(best.settings))


def _planned(
    method: Method, settings: Mapping[str, Any], grid: Mapping[str, Sequence[Any]], budget: int, seed: int
) -> list[dict[str, Any]]:
    """The settings to be tried: those given, then others in an order drawn by the generator."""
    free = _free(method, settings, grid)
    made = [dict(settings)]
    made += [{**settings, **dict(zip(free, v, strict=True))} for v in itertools.product(*(grid[n] for n in free))]
    rest = [m for i, m in enumerate(made) if m not in made[:i]][1:]
    order = seeded(seed, Streams.TRIALS).permutation(len(rest)).tolist()
    return [made[0], *(rest[i] for i in order)][:budget]


def _free(method: Method, settings: Mapping[str, Any], grid: Mapping[str, Sequence[Any]]) -> list[str]:
    """What is searched: settings that are still the method's defaults."""
    return [name for name in grid if name in method.defaults and settings[name] == method.defaults[name]]


def _nearer(trials: Sequence[Trial], settings: Mapping[str, Any], number: int, drawn: int) -> dict[str, Any] | None:
    """The best trial so far with a higher or lower learning rate, in steps that halve; None while trials are drawn.

    It is lower where too much was forgotten, or utility was lost; higher where too little was forgotten.
    """
    scored = [t for t in trials if t.score is not None and math.isfinite(t.score) and t.utility is not None]
    if number < drawn or not scored:
        return None
    limit = _limit(settings.get("tolerance"))
    best = min(scored, key=lambda t: (float(t.utility or 0) > limit, float(t.score or 0)))
    lower = float(best.utility or 0) > limit or float(best.forget or 0) > float(best.never or 0)
    step = 3.0 ** (0.5 ** (1 + number - drawn))
    rate = best.settings["learning_rate"]
    return {**best.settings, "learning_rate": float(f"{rate / step if lower else rate * step:.3g}")}


def _limit(tolerance: float | None) -> float:
    return 1 + (_TOLERANCE if tolerance is None else tolerance)


def _tried(deletion: Deletion, child: Child, method: Method, settings: dict[str, Any], number: int) -> Trial:
    started = time.monotonic()
    folder = work_folder(work_folder(child.run, FOLDER), f"trial-{number}")
    folder.write_card(child.run.card)
    trial = dataclasses.replace(child, run=folder, settings=settings, say=lambda text: None)
    trial = dataclasses.replace(trial, ticker=lambda name, total: lambda done: None)
    try:
        cost = method.run(deletion, trial)
        found = _measured(deletion, trial.run, cost, settings)
    except (UnsuitedSettings, TrainingError) as error:
        if _lasting(error):
            raise
        spent = Cost(seconds=time.monotonic() - started, tokens=_tokens_spent(folder))
        found = Trial(settings=settings, cost=spent, failed=type(error).__name__)
    shutil.rmtree(folder.path, ignore_errors=True)
    return found


def _lasting(error: SordinoError) -> bool:
    """Whether all other settings would fail in the same way."""
    return "disk is full" in error.message or "Out of memory" in error.message


def _tokens_spent(folder: Run) -> int:
    """Scored tokens of a trial that ended in an error, as far as its last checkpoint tells."""
    import json

    told = sorted(folder.private.glob("*/private/checkpoints/last/progress.json"))
    return sum(int(json.loads(path.read_text())["tokens"]) for path in told)


def _measured(deletion: Deletion, run: Run, cost: Cost, settings: Mapping[str, Any]) -> Trial:
    """The losses of a trial, and of the model before."""
    after, read = _losses(deletion, run, (deletion.forget, deletion.never, _utility(deletion)))
    before, more = _losses(deletion, deletion.run, (_utility(deletion),))
    utility = None if after[2] is None or not before[0] else after[2] / before[0]
    return Trial(
        settings=settings,
        cost=dataclasses.replace(cost, forwards=cost.forwards + read + more),
        forget=after[0],
        never=after[1],
        utility=utility,
    )


def _utility(deletion: Deletion) -> Sequence[Example]:
    return deletion.validation or [e for e in deletion.retain if e.role != "canary"][: len(deletion.never)]


def _losses(deletion: Deletion, run: Run, parts: Sequence[Sequence[Example]]) -> tuple[list[float | None], int]:
    from sordino.config import recorded

    config = recorded(run.card.config, str(run.path / "run.json"))
    model = restore(config.model, config.method, run.weights)
    serializer = serializer_for(config, model.tokenizer, model.context)
    made = [_sequences(part, serializer) for part in parts]
    return [validation_loss(model, one, _BATCH) for one in made], sum(map(count_targets, made))


def _sequences(examples: Sequence[Example], serializer: Serializer) -> list[Tokens]:
    found = (p for e in examples for p in serializer.encode(e.record).pieces(serializer.max_length))
    return [p for p in found if p.target[1:].any()]


def _best(trials: Sequence[Trial], tolerance: float | None) -> Trial:
    limit = _limit(tolerance)
    good = [
        t for t in trials
        if t.score is not None and math.isfinite(t.score) and t.utility is not None and t.utility <= limit
    ]  # fmt: skip
    if not good:
        failed = sum(bool(t.failed) for t in trials)
        message = f"None of {len(trials)} trials kept the validation loss within {limit - 1:.0%} ({failed} failed)."
        raise UnlearningError(message, "Give the search more trials, raise tolerance, or use the exact tier.")
    return min(good, key=lambda t: float("inf") if t.score is None else t.score)


def _words(trial: Trial) -> str:
    keys = [name for name in GRID if name in trial.settings]
    told = ", ".join(f"{name} {trial.settings[name]:g}" for name in keys)
    return f"{told} (loss {trial.forget:.4g}, never trained on {trial.never:.4g}, utility ×{trial.utility:.3g})"
