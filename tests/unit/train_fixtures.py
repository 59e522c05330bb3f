"""Small things that tests of training share: random records as tokens, run folders, and models to train."""

import copy
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from sordino.config import TrainConfig
from sordino.model import Model
from sordino.run import Run
from sordino.serialize import Tokens
from sordino.train.checkpoint import trainable
from sordino.train.loop import train


def some_tokens(count: int, seed: int = 0, *, prompt: bool = False, vocabulary: int = 2048) -> list[Tokens]:
    """Random records of 4 to 24 tokens; with `prompt` the first half of each is context only."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        ids = rng.integers(3, vocabulary, rng.integers(4, 25)).astype(np.int32)
        target = np.ones(len(ids), dtype=bool)
        target[: len(ids) // 2 if prompt else 1] = False
        made.append(Tokens(ids=ids, target=target, text="…"))
    return made


def new_run(folder: Path, name: str = "t") -> Run:
    """An empty run folder."""
    return Run.create(folder, name, "0000")


def fresh(model: Model) -> Model:
    """A copy of `model` that may be trained."""
    return Model(module=copy.deepcopy(model.module), tokenizer=model.tokenizer, config=model.config)


def saved(shapes: Mapping[str, Callable[[], Any]], tokenizer: Any, folders: Any) -> dict[str, Path]:
    """A folder with a model of each shape and the tokenizer, made by pytest's factory of `folders`."""
    made = {}
    for name, make in shapes.items():
        made[name] = folders.mktemp(name)
        torch.manual_seed(0)
        make().save_pretrained(made[name])
        tokenizer.save_pretrained(made[name])
    return made


def weights(model: Model) -> dict[str, torch.Tensor]:
    """A copy of what training may change."""
    return {name: p.detach().clone() for name, p in trainable(model.module).items()}


def tune(
    folder: Path, model: Model, training: Sequence[Tokens], config: TrainConfig, validation: Sequence[Tokens] = ()
) -> tuple[Run, list[float]]:
    """Train `model` in a new run; the run and the loss of every step."""
    run, losses = new_run(folder), []
    train(
        run, model, (training, list(validation)), config, seed=3,
        monitor=lambda progress, steps: losses.append(progress.loss),
    )  # fmt: skip
    return run, losses
