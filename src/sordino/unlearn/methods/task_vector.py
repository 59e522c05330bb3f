"""Task arithmetic: what fine-tuning on the records to be forgotten adds is taken away."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import msgspec
import torch
from torch import Tensor

from sordino.config import MethodConfig
from sordino.errors import UnlearningError
from sordino.model import Model, attach, count_parameters
from sordino.model import load as load_model
from sordino.results import Cost
from sordino.train.loop import train
from sordino.train.progress import Progress
from sordino.train.validation import validation_loss
from sordino.unlearn.base import Child, Deletion, unlearner
from sordino.unlearn.tuning.opening import pieces, tuned_state
from sordino.unlearn.tuning.settings import STEPPING, UnsuitedSettings, all_given, train_config
from sordino.unlearn.tuning.working import Worked, begin, finish

__all__ = ["negated", "task_vector"]

_HALVINGS = 6


@unlearner(
    tier="approximate",
    defaults={**STEPPING, "strength": 1.0},
    paper="arXiv:2212.04089",
    passes=lambda settings: float(settings["epochs"]),
)
def task_vector(deletion: Deletion, child: Child) -> Cost:
    """Fine-tuning on what is to be forgotten, negated: θ − λ (θ_forget − θ), λ being `strength`.

    A LoRA adapter is negated as the update that it makes of weights: the result computes BA − λ (B′A′ − BA) exactly,
    with up to twice the rank. Where utility is lost beyond the tolerance, λ is halved, up to six times.
    Source: Ilharco et al. 2023, arXiv:2212.04089.
    """
    settings = all_given("task_vector", task_vector.defaults, child.settings)
    if deletion.config.method.variant == "dora":
        message = "task_vector negates the update of weights, and that of DoRA is no sum of adapters."
        raise UnlearningError(message, "Use a loss, such as npo.")
    work = begin(deletion, child, settings)
    model = work.opened.model
    before = tuned_state(model)
    progress = _fine_tuned(work, settings)
    after = tuned_state(model)
    if all(torch.equal(after[n], b) for n, b in before.items()):
        message = "Fine-tuning on what is to be forgotten changed no weight: there is nothing to negate."
        raise UnsuitedSettings(message, "Raise learning_rate or epochs.")
    made, strength, tried = _negated_enough(work, before, after, settings)
    done = dataclasses.replace(work, opened=dataclasses.replace(work.opened, model=made))
    read = tried * sum(int(t.target[1:].sum()) for t in work.watch.tokens)
    told = {"steps": progress.step, "strength": strength, "stopped": tried > 1}
    return finish(done, told, tokens=progress.tokens, forwards=read, seconds=progress.seconds)


def _negated_enough(
    work: Worked, before: Mapping[str, Tensor], after: Mapping[str, Tensor], settings: Mapping[str, Any]
) -> tuple[Model, float, int]:
    """The model at the largest λ that keeps its utility, that λ, and how many were tried."""
    strength = float(settings["strength"])
    for halved in range(_HALVINGS + 1):
        made = _moved(work, before, after, strength / 2**halved)
        loss = validation_loss(made, work.watch.tokens, settings["batch_size"])
        if work.watch.limit.accepts(loss):
            if halved:
                work.child.say(f"strength was lowered to {strength / 2**halved:g}: utility")
            return made, strength / 2**halved, halved + 1
    message = f"Even with strength {strength / 2**_HALVINGS:g} the loss on validation records is beyond the tolerance."
    raise UnsuitedSettings(message, "Lower learning_rate or epochs, or raise tolerance.")


def _fine_tuned(work: Worked, settings: Mapping[str, Any]) -> Progress:
    """Tune the model on what is to be forgotten."""
    forget = pieces(work.deletion.forget, work.opened.serializer)
    config = train_config(settings, work.deletion.config.train)
    config = dataclasses.replace(config, select="last", validate_every=None)
    steps = -(-len(forget) // config.batch_size) * config.epochs
    advance, done = work.child.ticker("fine-tuning on what is to be forgotten", steps), [0]

    def monitor(progress: Progress, total: int) -> None:
        advance(progress.step - done[0])
        done[0] = progress.step

    return train(work.folder, work.opened.model, (forget, []), config, seed=work.child.seed, monitor=monitor)


def _moved(work: Worked, before: Mapping[str, Tensor], after: Mapping[str, Tensor], strength: float) -> Model:
    """The model with what it had `before` moved away from `after`."""
    method = work.deletion.config.method
    if method.kind == "lora":
        return _adapted(work, before, after, strength)
    model = work.opened.model
    with torch.no_grad():
        for name, parameter in model.module.named_parameters():
            if name in before:
                parameter.copy_(before[name] - strength * (after[name] - before[name]))
    return model


def _adapted(work: Worked, before: Mapping[str, Tensor], after: Mapping[str, Tensor], strength: float) -> Model:
    """The base with an adapter of twice the rank, or of what its weights have at most; the card says which."""
    old = work.opened.model
    state = {n: p.detach() for n, p in old.module.named_parameters() if ".lora_" in n}
    # Factors that are not tuned (FFA) are the same before and after.
    parts = {n: (before.get(n, p), after.get(n, p)) for n, p in state.items()}
    others = [n for n in before if ".lora_A." not in n and ".lora_B." not in n]
    if others or not parts:
        raise UnlearningError("The adapter has parts that are no factors of an update.", "Use a loss, such as npo.")
    factors = {}
    for name in sorted(n for n in parts if ".lora_A." in n):
        factors[name] = negated(parts[name], parts[name.replace(".lora_A.", ".lora_B.")], strength)
    most = max(a.shape[0] for a, _ in factors.values())
    method = work.deletion.config.method
    # PEFT scales an update by alpha / r, or alpha / √r: with alpha as much larger as that, it stays as it was.
    growth = most / method.rank
    alpha = method.alpha * (growth**0.5 if method.variant == "rslora" else growth)
    wider = dataclasses.replace(method, rank=most, alpha=alpha)
    made = attach(load_model(work.deletion.config.model), wider, seed=0)
    with torch.no_grad():
        for name, parameter in made.module.named_parameters():
            if name in factors:
                a, b = factors[name]
                parameter.zero_()[: a.shape[0]] = a
                other = made.module.get_parameter(name.replace(".lora_A.", ".lora_B."))
                other.zero_()[:, : b.shape[1]] = b
    _write_method(work, wider)
    return made


def _write_method(work: Worked, method: MethodConfig) -> None:
    run, sizes = work.child.run, count_parameters(work.deletion.config.model, method)
    config = {**run.card.config, "method": msgspec.to_builtins(method)}
    about = {**run.card.model, **{k: sizes[k] for k in ("parameters", "trainable")}}
    run.write_card(dataclasses.replace(run.card, config=config, model=about))


def negated(down: tuple[Tensor, Tensor], up: tuple[Tensor, Tensor], strength: float) -> tuple[Tensor, Tensor]:
    """Factors A (k, in) and B (out, k) with BA = B₀A₀ − λ (B₁A₁ − B₀A₀); `down` are A₀ and A₁, `up` B₀ and B₁.

    k is twice the rank, but no more than the rank that a matrix of this shape can have.
    """
    a = torch.cat(down)
    b = torch.cat([(1 + strength) * up[0], -strength * up[1]], dim=1)
    most = min(a.shape[1], b.shape[0])
    if a.shape[0] <= most:
        return a, b
    # A product in float64 rounds less than the factors do.
    product = b.double() @ a.double()
    left, values, right = torch.linalg.svd(product, full_matrices=False)
    root = values.sqrt()
    return (root[:, None] * right).to(a.dtype), (left * root).to(b.dtype)
