"""Relearning: is what was forgotten learned again sooner than what was never known?"""

import dataclasses
import math
import shutil
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sordino.config import MethodConfig, TrainConfig
from sordino.errors import UnlearningError
from sordino.model import Model, attach
from sordino.model.combined import Combined
from sordino.model.methods.lora import freeze_a
from sordino.results import Robustness
from sordino.run import Run
from sordino.train.loop import train
from sordino.train.progress import Progress
from sordino.unlearn.robustness.attacked import Attacked, Sample, Streams, area, auc_of, difference

__all__ = ["halves", "parted", "relearning", "with_adapter"]

# Points of a curve, at most; each asks the model about all records that are watched.
_POINTS = 8
_NAME = "relearned"


def relearning(attacked: Attacked, *, epochs: int = 1) -> Robustness:
    """Tune the model again on half of what it forgot, and watch the other half against never-trained records.

    The control is tuned on as many never-trained records and watched on others of the same units; both AUCs are against
    the same never-trained records, which neither saw. The estimate is the difference of the AUCs at the end: above 0,
    what was forgotten came back sooner than what is new is learned, so it was still there (as in Hu et al. 2024,
    arXiv:2406.13356). Raises `UnlearningError` where there are too few records to part.
    """
    before = dict(attacked.spent)
    rng, units = (np.random.default_rng([attacked.seed, stream]) for stream in (Streams.SPLIT, Streams.CONTROL))
    ours, watched = halves(attacked.forget, rng)
    control, reference = parted(attacked.never, len(attacked.forget), units)
    theirs, others = halves(control, rng)
    count = min(len(ours), len(theirs))
    ours, theirs = (one.chosen(sorted(rng.choice(len(one), count, replace=False).tolist())) for one in (ours, theirs))
    curves, ends = [], []
    for name, taught, asked in (("forgotten", ours, watched), ("control", theirs, others)):
        curve, losses = _relearned(attacked, name, taught, (asked, reference), epochs)
        curves.append(curve)
        ends.append(auc_of(-losses[0], -losses[1], asked, reference))
    adapter = "a new adapter" if attacked.config.method.kind in ("lora", "full") else "what the run had tuned"
    return Robustness(
        name="relearning",
        what=f"AUC of the other half of forgotten records after {epochs} epoch{'s' * (epochs > 1)} of tuning on one "
        "half, less that of never-trained records after the same on as many of them",
        estimate=difference(ends[0], ends[1]),
        curve=tuple(curves[0]),
        control=tuple(curves[1]),
        note=f"tuned: {adapter}, with the run's own settings, on {count} records a side; watched: {len(watched)} "
        f"forgotten and {len(others)} never trained on, against {len(reference)} others; {attacked.told(before)}",
    )


def halves(sample: Sample, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Two halves by lot, each unit's records as evenly in both as their number allows."""
    if len(sample) < 2:
        message = "There is 1 record, which cannot be parted into one to learn from and one to watch."
        raise UnlearningError(message, "Relearning needs 2 records to forget, and 3 that were never trained on.")
    order = rng.permutation(len(sample))
    order = order[np.argsort(sample.group[order], kind="stable")]
    # Who has an odd number gives the odd one to either side in turn.
    return sample.chosen(sorted(order[::2].tolist())), sample.chosen(sorted(order[1::2].tolist()))


def parted(sample: Sample, wanted: int, rng: np.random.Generator) -> tuple[Sample, Sample]:
    """Whole units with about `wanted` records, half of the units at most, and the rest; `rng` draws the units."""
    units = rng.permutation(np.unique(sample.group))
    taken: list[int] = []
    for unit in units[: len(units) // 2].tolist():
        if len(taken) >= max(2, wanted):
            break
        taken += np.flatnonzero(sample.group == unit).tolist()
    rest = sorted(set(range(len(sample))) - set(taken))
    if len(taken) < 2 or not rest:
        message = f"{len(sample)} never-trained records of {len(units)} units are too few to part for a control."
        raise UnlearningError(message, "Hold out more units by coin (split.candidates).")
    return sample.chosen(sorted(taken)), sample.chosen(rest)


def _relearned(
    attacked: Attacked, name: str, taught: Sample, watched: tuple[Sample, Sample], epochs: int
) -> tuple[list[tuple[int, float]], list[np.ndarray]]:
    """The AUC of the first sample against the second as steps go by, and the losses of both at the end."""
    model = with_adapter(attacked.load(), attacked.config.method, attacked.seed)
    pieces = [p for t in taught.tokens for p in t.pieces(attacked.serializer.max_length) if p.target[1:].any()]
    config = _settings(attacked.config.train, epochs)
    steps = epochs * math.ceil(len(pieces) / config.batch_size)
    every = math.ceil(steps / _POINTS)
    last = [attacked.plain_loss(sample) for sample in watched]
    curve = [(0, area(-last[0], -last[1]))]
    advance = attacked.ticker(f"relearning, {name}", steps)

    def monitor(progress: Progress, total: int) -> None:
        nonlocal last
        advance(1)
        if progress.step % every == 0 or progress.step == total:
            last = attacked.losses(model, *watched)
            curve.append((progress.step, area(-last[0], -last[1])))

    # What was half done is done anew: its curve was in memory.
    folder = attacked.folder / "relearning"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "private").mkdir(mode=0o700, parents=True)
    try:
        progress = train(Run(folder), model, (pieces, []), config, seed=attacked.seed, monitor=monitor)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    attacked.spent["tokens"] += progress.tokens
    return curve, last


def _settings(config: TrainConfig, epochs: int) -> TrainConfig:
    """The run's own, for a short training that nothing stops, and of which nothing is kept."""
    return dataclasses.replace(
        config, epochs=epochs, select="last", stop_loss=None, monitor=None, dropout=None, goldfish=0,
        checkpoint_every=10**9, validate_every=None,
    )  # fmt: skip


def with_adapter(model: Model, method: MethodConfig, seed: int) -> Model:
    """`model` with a new LoRA adapter over all that it is, alone trainable, drawn by `seed`.

    A model tuned in a way that adapters cannot lie over has what was tuned in it trainable instead.
    """
    module: Any = model.module
    lora = method if method.kind == "lora" else MethodConfig()
    if method.kind == "full":
        return attach(model, lora, seed)
    if method.kind != "lora":
        _reopened(module)
        return model
    shared = module.shared if isinstance(module, Combined) else module
    before = next(iter(shared.peft_config))
    torch.manual_seed(seed)
    shared.add_adapter(_NAME, _like(shared.peft_config[before], lora))
    if isinstance(module, Combined):
        module.more = (_NAME,)
    else:
        shared.base_model.set_adapter([before, _NAME])
    _only(module, lambda name: f".{_NAME}." in f"{name}.")
    if lora.variant == "ffa":
        freeze_a(module)
    return model


def _like(known: Any, lora: MethodConfig) -> Any:
    """The configuration of an adapter on the same modules, of the rank and scale that the run was tuned with."""
    from peft import LoraConfig

    return LoraConfig(
        task_type=known.task_type, r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout,
        target_modules=known.target_modules, use_rslora=lora.variant == "rslora", use_dora=lora.variant == "dora",
        fan_in_fan_out=known.fan_in_fan_out,
    )  # fmt: skip


def _reopened(module: Any) -> None:
    if hasattr(module, "peft_config"):
        _only(module, lambda name: ".ia3_" in name or "prompt_encoder." in name)


def _only(module: Any, chosen: Callable[[str], bool]) -> None:
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(chosen(name))
