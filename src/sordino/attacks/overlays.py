"""A short fine-tuning that leaves no trace: low-rank corrections laid over a model's linear layers by hooks.

As LoRA (Hu et al. 2021, arXiv:2106.09685) on every linear layer below the head, whatever the model was tuned by, and
tuned or not. It imports torch: attacks import it inside their functions, so that listing them does not.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from sordino.attacks.frozen import frozen
from sordino.attacks.soft_prompts import Pair, shuffled
from sordino.errors import AuditError, ConfigError, ModelError
from sordino.model import Model, head_of
from sordino.model.methods import OWN
from sordino.model.methods.layout import conv1d

__all__ = ["Overlay", "train_overlay"]

Tick = Callable[[int], None]
RANK, SCALING = 16, 2.0
"""Those of the default LoRA: a rank of 16, and alpha 32."""

# Parts of names by which what a method has added is known.
_ADDED = (".lora_", ".ia3_", ".prompt_encoder.", f".{OWN}.")


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """`factors` of each layer by name, A (rank, d) and B (o, rank); `losses` (steps) are of training."""

    factors: Mapping[str, tuple[np.ndarray, np.ndarray]]
    losses: tuple[float, ...] = ()

    @contextmanager
    def over(self, model: Model) -> Iterator[None]:
        """The model computes with the corrections while this is open; its weights are not touched."""
        layers = _layers(model)
        if set(layers) != set(self.factors):
            message = f"The corrections are for {len(self.factors)} layers, and the model has {len(layers)} others."
            raise ModelError(message, "Lay them over the model that they were trained on.")
        there = {n: tuple(torch.from_numpy(f).to(model.device) for f in pair) for n, pair in self.factors.items()}
        with _corrected({n: layers[n] for n in there}, there):
            yield


def train_overlay(  # noqa: PLR0913 - how it is trained, each part of it
    model: Model,
    pairs: Sequence[Pair],
    *,
    steps: int = 40,
    learning_rate: float = 1e-3,
    batch_size: int = 16,
    seed: int = 0,
    tick: Tick = lambda done: None,
) -> Overlay:
    """Corrections under which `model` gives the suffix of each pair after its prefix; the model stays as it is.

    `steps` of Adam at a rate that falls linearly from `learning_rate` to 0, over batches of `batch_size` pairs in
    shuffled order; the loss is the mean over the suffixes of the mean loss of their tokens, in nats. A begins uniform
    within ±1/√d, B at 0. All that is drawn depends on `seed`. Raises `ConfigError` for settings or pairs that cannot be
    trained on, `ModelError` where no layer can be corrected, and `AuditError` where the loss is not finite.
    """
    _check(model, pairs, steps, learning_rate, batch_size)
    layers, generator = _layers(model), torch.Generator().manual_seed(seed)
    there = {name: _start(layer, generator, model.device) for name, layer in layers.items()}
    order = shuffled(len(pairs), min(batch_size, len(pairs)), np.random.default_rng([seed, 42]))
    optimizer, losses = torch.optim.Adam([f for pair in there.values() for f in pair], lr=learning_rate), []
    with frozen(model) as module, torch.enable_grad(), _corrected(layers, there):
        for step in range(steps):
            optimizer.param_groups[0]["lr"] = learning_rate * (1 - step / steps)
            loss = _loss(model, module, [pairs[i] for i in next(order)])
            if not torch.isfinite(loss):
                message = f"The loss of the fine-tuning is {float(loss.detach())} at step {step + 1} of {steps}."
                raise AuditError(
                    message, f"Lower the learning rate, which is {learning_rate:g}, or look at the weights."
                )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            losses.append(float(loss.detach()))
            tick(1)
    factors = {name: (a.detach().cpu().numpy(), b.detach().cpu().numpy()) for name, (a, b) in there.items()}
    return Overlay(factors=factors, losses=tuple(losses))


def _check(model: Model, pairs: Sequence[Pair], steps: int, learning_rate: float, batch_size: int) -> None:
    for name, value in (("steps", steps), ("batch_size", batch_size)):
        if value < 1:
            raise ConfigError(f"{name} of a fine-tuning is {value}.", "Allowed: at least 1.")
    if not 0 < learning_rate < float("inf"):
        raise ConfigError(f"learning_rate of a fine-tuning is {learning_rate}.", "Allowed: above 0.")
    bad = sum(not len(prefix) or not len(suffix) for prefix, suffix in pairs)
    if not pairs or bad:
        message = f"{bad} of {len(pairs)} pairs have an empty prefix or suffix." if pairs else "There are no pairs."
        raise ConfigError(message, "Give at least one pair, of one token or more on either side.")
    longest = max(len(prefix) + len(suffix) for prefix, suffix in pairs)
    if longest > model.context:
        raise ConfigError(f"A pair has {longest} tokens; the model reads {model.context}.", "Shorten its prefix.")


def _layers(model: Model) -> dict[str, nn.Module]:
    """The linear layers below the head, by name, without those that a method of tuning has added."""
    kinds, head = (nn.Linear, conv1d()), {id(m) for _, m in head_of(model.module).named_modules()}
    found = {
        name: layer
        for name, layer in model.module.named_modules()
        if isinstance(layer, kinds) and id(layer) not in head
        and not any(part in f".{name}." for part in _ADDED)
    }  # fmt: skip
    if not found:
        message = f"{type(model.module).__name__} has no linear layers that could be corrected."
        raise ModelError(message, "Fine-tune the model as it was before it was quantised.")
    return found


def _start(layer: Any, generator: torch.Generator, device: torch.device) -> tuple[Tensor, Tensor]:
    shape: Any = layer.weight.shape if type(layer) is conv1d() else (layer.in_features, layer.out_features)
    inner, outer = shape
    # Drawn on the CPU, so that it is the same everywhere.
    a = (torch.rand(RANK, inner, generator=generator) * 2 - 1) / inner**0.5
    b = torch.zeros(outer, RANK)
    return a.to(device).requires_grad_(True), b.to(device).requires_grad_(True)


@contextmanager
def _corrected(layers: Mapping[str, nn.Module], factors: Mapping[str, tuple[Tensor, ...]]) -> Iterator[None]:
    def hook_of(a: Tensor, b: Tensor) -> Callable[..., Tensor]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
            low: Tensor = args[0].to(a.dtype) @ a.T
            return output + (SCALING * (low @ b.T)).to(output.dtype)

        return hook

    handles = [layer.register_forward_hook(hook_of(*factors[name])) for name, layer in layers.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _loss(model: Model, module: Any, pairs: Sequence[Pair]) -> Tensor:
    rows = [np.concatenate(pair) for pair in pairs]
    ids = np.full((len(rows), max(map(len, rows))), int(model.tokenizer.pad_token_id or 0))
    mask, scored = np.zeros(ids.shape, dtype=np.int64), np.zeros(ids.shape)
    for number, (row, (prefix, suffix)) in enumerate(zip(rows, pairs, strict=True)):
        ids[number, : len(row)], mask[number, : len(row)] = row, 1
        scored[number, len(prefix) : len(row)] = 1 / (len(suffix) * len(pairs))
    inputs, weights = torch.from_numpy(ids).to(model.device), torch.from_numpy(scored).to(model.device)[:, 1:]
    logits = module(input_ids=inputs, attention_mask=torch.from_numpy(mask).to(model.device), use_cache=False).logits
    where = weights > 0
    each = cross_entropy(logits[:, :-1][where].float(), inputs[:, 1:][where], reduction="none")
    return (each * weights[where].to(each.dtype)).sum()
