"""What an adversary learns from known people before it asks about the others: a soft prompt, or a short fine-tuning.

It is trained once for a model, its weights, the known records and the settings, and kept in private/.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from sordino.attacks.twins import Twin, pairs_of
from sordino.audit.inputs import Context
from sordino.audit.linked import Entities
from sordino.evidence import digest

__all__ = ["Learned", "recovered", "softened"]

_Arrays = dict[str, np.ndarray]
_Pairs = list[tuple[np.ndarray, np.ndarray]]
Train = Callable[[Any, _Pairs, Callable[[int], None]], _Arrays]


@dataclass(frozen=True, kw_only=True)
class Learned:
    """Arrays that `train` makes of the "tuned" or "base" model (`which`) and `known` people, in so many `steps`.

    `made` turns them into what the attack takes; `settings` are all else that they depend on.
    """

    context: Context
    name: str
    which: str
    known: Sequence[Twin]
    steps: int
    settings: tuple[str, ...]
    train: Train
    made: Callable[[_Arrays], Any]

    @cached_property
    def pairs(self) -> _Pairs:
        """The token ids of the twin prompts of the known people, and of their values."""
        return pairs_of(self.known, self.context.collector.serializer)

    @cached_property
    def key(self) -> str:
        """A digest of all that it depends on."""
        contents = [digest(prefix.tobytes(), "|", suffix.tobytes()) for prefix, suffix in self.pairs]
        return self.context.collector.key((), self.which, f"{self.name}/1", *self.settings, str(self.steps), *contents)

    def get(self, model: Any) -> Any:
        """What was learned: from the store where it is there, else by training on `model`."""
        collector = self.context.collector
        arrays = collector.store.arrays(self.key)
        if arrays is None:
            whose = "model" if self.which == "tuned" else "untuned model"
            arrays = self.train(model, self.pairs, collector.ticker(f"{whose}, {self.name}", self.steps))
            collector.forwards += 1
            manifest = {"definition": f"{self.name}/1", "model": self.which, "pairs": len(self.pairs)}
            collector.store.put_arrays(self.key, arrays, {**manifest, **collector.reader.manifest()})
        return self.made(arrays)


def softened(context: Context, entities: Entities, which: str) -> Learned:
    """A soft prompt of `audit.personal.soft_tokens`, trained on all known people."""
    plan, seed = context.plan.personal, context.seed

    def train(model: Any, pairs: _Pairs, tick: Callable[[int], None]) -> _Arrays:
        from sordino.attacks.soft_prompts import train_soft_prompt

        soft = train_soft_prompt(model, pairs, tokens=plan.soft_tokens, steps=plan.soft_steps, seed=seed, tick=tick)
        return {"vectors": soft.vectors, "losses": np.array(soft.losses)}

    def made(arrays: _Arrays) -> Any:
        from sordino.attacks.soft_prompts import SoftPrompt

        # A copy: what the store maps cannot be written to, which torch warns of.
        return SoftPrompt(vectors=np.array(arrays["vectors"]), losses=tuple(arrays["losses"].tolist()))

    return Learned(
        context=context, name="soft prompt", which=which, known=entities.known_twins(None, seed),
        steps=plan.soft_steps, settings=(str(plan.soft_tokens), str(seed)), train=train, made=made,
    )  # fmt: skip


def recovered(context: Context, entities: Entities, which: str) -> Learned:
    """A fine-tuning on `audit.personal.recovery_people` known people."""
    plan, seed = context.plan.personal, context.seed

    def train(model: Any, pairs: _Pairs, tick: Callable[[int], None]) -> _Arrays:
        from sordino.attacks.overlays import train_overlay

        overlay = train_overlay(model, pairs, steps=plan.recovery_steps, seed=seed, tick=tick)
        factors = {
            f"{name}.{ab}": f for name, pair in overlay.factors.items() for ab, f in zip("ab", pair, strict=True)
        }
        return {**factors, "losses": np.array(overlay.losses)}

    def made(arrays: _Arrays) -> Any:
        from sordino.attacks.overlays import Overlay

        names = [name.removesuffix(".a") for name in arrays if name.endswith(".a")]
        factors = {name: (np.array(arrays[f"{name}.a"]), np.array(arrays[f"{name}.b"])) for name in names}
        return Overlay(factors=factors, losses=tuple(arrays["losses"].tolist()))

    return Learned(
        context=context, name="recovery", which=which, known=entities.known_twins(plan.recovery_people, seed),
        steps=plan.recovery_steps, settings=(str(seed),), train=train, made=made,
    )  # fmt: skip
