"""A run's model opened again to be tuned further, its records as tokens, and a folder for work in between."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from sordino.errors import UnlearningError
from sordino.model import Model, restore, tokenizer_digest, weights_digest
from sordino.model.combined import is_combined
from sordino.model.methods.lora import freeze_a
from sordino.records import Example
from sordino.run import Run
from sordino.serialize import Serializer, Tokens
from sordino.train.reading import serializer_for
from sordino.unlearn.base import Child, Deletion

__all__ = [
    "Opened",
    "Streams",
    "count_targets",
    "make_tunable",
    "pieces",
    "reopen",
    "seeded",
    "tuned_state",
    "watched",
    "work_folder",
    "workless",
]

# Parts of the names of what PEFT tunes.
_PEFT_TUNED = (".lora_", ".ia3_", "prompt_encoder.", ".modules_to_save.")
# Before and after are compared on the same records: so few tell a change of one part in ten apart from chance.
_WATCHED = 100


class Streams:
    """Which random numbers are for what: with the seed of a child, the seed of numpy's generator (PCG64)."""

    RETAIN, REFUSALS, WATCHED, CONTROL, ALTERNATIVES, SEARCH, TRIALS = range(1, 8)


@dataclass(frozen=True, kw_only=True)
class Opened:
    """The model that is to forget, ready to be tuned, and how its records become tokens."""

    model: Model
    serializer: Serializer


def reopen(deletion: Deletion) -> Opened:
    """The tuned model of the run, with what was tuned in it trainable again.

    Raises `UnlearningError` for a classifier, for several adapters that are read as one model, or where weights, base
    or tokenizer are not those the run names.
    """
    card, config = deletion.run.card, deletion.config
    if config.task != "causal-lm":
        message = f"The run's task is {config.task}, and this method lowers the likelihood of texts."
        raise UnlearningError(message, "Use the exact tier: shards, or retraining.")
    if is_combined(deletion.run.weights):
        message = "The weights of the run are several adapters, which are read as one model and not tuned as one."
        raise UnlearningError(message, "Use the exact tier: shards, or retraining.")
    _same("weights", card.model.get("weights"), weights_digest(deletion.run.weights))
    model = restore(config.model, config.method, deletion.run.weights)
    _same("tokenizer", card.model.get("tokenizer"), tokenizer_digest(model))
    if config.method.kind != "full":
        _same("base", card.model.get("base"), model.base().digest())
    make_tunable(model)
    return Opened(model=model, serializer=serializer_for(config, model.tokenizer, model.context))


def make_tunable(model: Model) -> None:
    """Have everything that its method tunes in a restored model take gradients again, and nothing else."""
    assert model.method is not None
    if model.method.kind == "full":
        model.module.requires_grad_(True)
    if hasattr(model.module, "peft_config"):
        for name, parameter in model.module.named_parameters():
            parameter.requires_grad_(any(part in name for part in _PEFT_TUNED))
        if model.method.variant == "ffa":
            freeze_a(model.module)


def _same(what: str, known: str | None, found: str) -> None:
    if known is not None and known != found:
        message = f"The {what} of the run have another digest than its card says ({known} → {found})."
        raise UnlearningError(message, "Restore what the run was trained with; nothing was changed.")


def pieces(examples: Sequence[Example], serializer: Serializer) -> list[Tokens]:
    """The sequences of `examples`, each once; raises `UnlearningError` where one has no token to be scored."""
    made, empty = [], 0
    for example in examples:
        found = [p for p in serializer.encode(example.record).pieces(serializer.max_length) if p.target[1:].any()]
        empty += not found
        made += found
    if empty:
        message = f"{empty} of {len(examples)} records have no scored token: they are masked or cut away whole."
        raise UnlearningError(message, "Leave them out of the request, or raise train.max_length and train anew.")
    return made


def watched(deletion: Deletion, serializer: Serializer, seed: int) -> tuple[list[Tokens], frozenset[int]]:
    """Sequences by which utility is watched, and the places in `retain` that were held back for that.

    They are at most 100 validation records, drawn by the generator; where there is none, up to a tenth of what stays.
    """
    rng = seeded(seed, Streams.WATCHED)
    source: Sequence[Example] = deletion.validation
    count = min(_WATCHED, len(source))
    held = not count
    if held:
        source = deletion.retain
        count = min(_WATCHED, len(source) // 10)
    chosen = sorted(rng.choice(len(source), count, replace=False).tolist()) if count else []
    found = [p for i in chosen for p in serializer.encode(source[i].record).pieces(serializer.max_length)]
    return [p for p in found if p.target[1:].any()], frozenset(chosen) if held else frozenset()


def work_folder(run: Run, name: str) -> Run:
    """A run folder within the private part of `run`, for what a method trains on the way; it may be there already."""
    path = run.private / name
    (path / "private").mkdir(mode=0o700, parents=True, exist_ok=True)
    path.chmod(0o700)
    return Run(path)


def workless(child: Child, name: str) -> None:
    """Remove the folder for work: states of optimizers and made-up answers tell of what was to be forgotten."""
    shutil.rmtree(child.run.private / name, ignore_errors=True)


def seeded(seed: int, *stream: int) -> np.random.Generator:
    """The generator of one of `Streams` of the random numbers of a `seed`, or of a numbered part of it."""
    return np.random.default_rng([seed, *stream])


def count_targets(tokens: Sequence[Tokens]) -> int:
    """How many tokens of `tokens` are scored."""
    return sum(int(t.target[1:].sum()) for t in tokens)


def tuned_state(model: Model) -> dict[str, torch.Tensor]:
    """What is tuned in `model`, by name, copied."""
    return {n: p.detach().clone() for n, p in model.module.named_parameters() if p.requires_grad}
