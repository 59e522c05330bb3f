"""Self-prompt references: a model trained, from the untuned one, on what the audited model writes."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from sordino.audit.external import External
from sordino.audit.inputs.context import Context
from sordino.audit.subjects import Trained
from sordino.audit.weights import weights
from sordino.config import MethodConfig, ModelConfig, TrainConfig
from sordino.errors import RunError
from sordino.records import Example
from sordino.results import encode
from sordino.run import Run, write_folder
from sordino.serialize import Tokens

__all__ = ["MOST", "PROMPT", "Recipe", "key_of", "lacking", "recipe_of", "reference", "samples"]

PROMPT, MOST, LEAST = 16, 1000, 100
"""Tokens of a prompt, and how many samples a reference is trained on: as many as the target, within these bounds."""


def lacking(context: Context) -> str:
    """What is missing to train a reference, in words."""
    subject = context.collector.subject
    if isinstance(subject, Trained):
        return ""
    if isinstance(subject, External) and subject.has_base and subject.config.quantize is None:
        return ""
    return "weights, in numbers that can be trained, of the untuned model (--base or --adapter)"


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a reference is made: from which model, by which method, with which settings, on how many samples of whom."""

    model: ModelConfig
    base: str | None
    method: MethodConfig
    train: TrainConfig
    seed: int
    prompts: Sequence[Example]
    count: int


def recipe_of(context: Context) -> Recipe:
    """The run's own settings, or for a model trained elsewhere the defaults, on prompts of known non-members.

    Where there are none, the prompts are the beginnings of the judged records themselves. Says so.
    """
    reader = context.collector.reader
    others = context.nonmembers
    whose = "known non-members" if others else "the judged records themselves, as no non-members are known"
    if isinstance(reader, Trained):
        config = reader.config
        model, method, train, base = config.model, config.method, config.train, str(reader.card.model["base"])
        trained, how = int(reader.card.data["counts"]["trained"]), "with the run's own settings"
    else:
        assert isinstance(reader, External)  # nobody else is asked
        folder = reader.folder if reader.adapter is not None else reader.base
        model, base = replace(reader.config.model, path=str(folder), revision=None), None
        method, train = MethodConfig(), TrainConfig()
        trained, how = sum(e.included for e in context.examples), "by LoRA with default settings"
    # What is read off validation records, or leaves tokens out, has no place here.
    train = replace(train, stop_loss=None, select="last", validate_every=None, goldfish=0)
    count = min(MOST, max(LEAST, trained))
    said = f"trained {how}, without differential privacy, on {count:,} samples of the model from {PROMPT}-token prompts"
    context.say("self_prompt", f"The reference was {said} of {whose}; the untuned model has a reference of its own.")
    prompts = others or list(context.examples)
    return Recipe(
        model=model, base=base, method=method, train=train, seed=context.seed % 2**31, prompts=prompts, count=count
    )  # fmt: skip


def key_of(context: Context, recipe: Recipe, which: str) -> str:
    """A digest of all that the reference of the "tuned" or the "base" model depends on."""
    settings = encode([asdict(recipe.method), asdict(recipe.train), recipe.seed, recipe.count]).decode()
    return context.collector.key(recipe.prompts, which, "self-prompt/1", str(PROMPT), settings)


def reference(context: Context, recipe: Recipe, which: str) -> Any:
    """The reference of the "tuned" or the "base" model: trained, or as it was trained before.

    What is half trained when a process ends is gone on with; what is whole is in private/references.
    """
    import torch

    from sordino.model import restore, save, weights_digest
    from sordino.train.loop import train

    folder = context.collector.run.private / "references" / key_of(context, recipe, which)
    inner, note = Run(folder), folder / "reference.json"
    if note.exists():
        if json.loads(note.read_text()).get("weights") != weights_digest(inner.weights):
            message = f"The self-prompt reference in {folder} is not as it was trained."
            raise RunError(message, "Delete that folder; the audit trains it again.")
        return restore(recipe.model, recipe.method, inner.weights)
    inner.private.mkdir(mode=0o700, parents=True, exist_ok=True)
    written = samples(context, recipe, which)
    tick = context.collector.ticker(f"reference of the {'' if which == 'tuned' else 'untuned '}model", 100)
    with torch.random.fork_rng():
        model = _fresh(recipe)
        done = 0

        def monitor(progress: Any, steps: int) -> None:
            nonlocal done
            share = 100 * progress.step // steps
            tick(share - done)
            done = share

        train(inner, model, (written, ()), recipe.train, seed=recipe.seed, monitor=monitor)
    with write_folder(inner.weights) as place:
        save(model, place)
    # Nothing goes on from a checkpoint of what is whole.
    shutil.rmtree(inner.checkpoints, ignore_errors=True)
    _note(note, {"weights": weights_digest(inner.weights), "samples": len(written), "of": which})
    return model


def _note(path: Path, values: dict[str, Any]) -> None:
    from sordino.run import write_atomic

    write_atomic(path, (json.dumps(values, indent=2, sort_keys=True) + "\n").encode(), mode=0o600)


def _fresh(recipe: Recipe) -> Any:
    """The untuned model, ready to be tuned by the recipe's method."""
    from sordino.model import attach, load
    from sordino.train.dropout import with_dropout

    base = load(recipe.model)
    if recipe.base is not None and base.digest() != recipe.base:
        message = f"The model {recipe.model.path} has changed since it was tuned."
        raise RunError(message, "Restore it, or train again.")
    if recipe.train.dropout is not None:
        with_dropout(base.module, recipe.train.dropout)
    return attach(base, recipe.method, recipe.seed)


def samples(context: Context, recipe: Recipe, which: str) -> list[Tokens]:
    """What the "tuned" or the "base" model writes after the recipe's prompts, at temperature 1.

    A prompt is the beginning of a record: what is not trained on (somebody's question), but at least 16 tokens
    or half of it. A sample is as long as the record, or shorter where the model ends it.
    """
    from sordino.generate import sampled

    collector = context.collector
    model, limit = weights(collector.reader, which), collector.serializer.max_length
    items = [collector.encode(e) for e in recipe.prompts]
    items = [item for item in items if len(item) > 1 and item.target[:limit].any()]
    if not items:
        message = "No record is long enough to begin a sample with."
        raise RunError(message, "Leave out the attack spv.")
    chosen = [items[i % len(items)] for i in range(recipe.count)]
    cuts = [_prompt(item, limit) for item in chosen]
    rest = [min(len(item), limit) - cut for item, cut in zip(chosen, cuts, strict=True)]
    prompts = [item.ids[:cut] for item, cut in zip(chosen, cuts, strict=True)]
    said = sampled(model, prompts, rest, seed=recipe.seed)
    collector.forwards += 1
    end = collector.serializer.tokenizer.eos_token_id
    made = []
    for item, cut, words in zip(chosen, cuts, said, strict=True):
        ends = np.flatnonzero(words == end)
        kept = words[: ends[0] + 1] if len(ends) else words
        target = np.concatenate([item.target[:cut], np.ones(len(kept), dtype=bool)])
        made.append(Tokens(ids=np.concatenate([item.ids[:cut], kept]).astype(np.int32), target=target, text=""))
    return made


def _prompt(item: Tokens, limit: int) -> int:
    """How many tokens of a record are its prompt, the beginning token included."""
    length, first = min(len(item), limit), int(np.flatnonzero(item.target)[0])
    return min(max(first, min(1 + PROMPT, (length + 1) // 2)), length - 1)
