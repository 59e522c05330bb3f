"""Quantisation: does what was forgotten come back in the numbers that the model is deployed in?"""

import dataclasses
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal

import numpy as np
from torch import nn

from sordino import stats
from sordino.errors import UnlearningError
from sordino.model import unwrapped
from sordino.model.combined import Combined
from sordino.model.methods.layout import conv1d
from sordino.results import Robustness
from sordino.unlearn.robustness.attacked import Attacked, area, estimated, labels

__all__ = ["QUANTISER", "Bits", "quantise", "quantised"]

Bits = Literal[4, 8]

QUANTISER = "torchao"
"""The library that quantises."""

_GROUP = 32
# What is folded into the weights before they are quantised; all else stays beside them, as it is deployed.
_FOLDABLE = ("LORA", "IA3")


def quantised(attacked: Attacked, bits: Bits) -> Robustness:
    """Fold the adapter into its base, quantise the weights to `bits`, and ask the model again.

    The estimate is the AUC of forgotten against never-trained records by their losses after quantisation, less that
    before: above 0, the forgetting was in differences that rounding takes away (Zhang et al. 2024, arXiv:2410.16454).
    Raises `UnlearningError` where torchao is not installed, or would leave most weights as they are.
    """
    before, sides = dict(attacked.spent), (attacked.forget, attacked.never)
    advance = attacked.ticker(f"int{bits}", 2)
    plain, model = [attacked.plain_loss(side) for side in sides], attacked.load()
    advance(1)
    module, form = _deployed(model.module)
    how = quantise(module, bits)
    rounded = attacked.losses(_with(model, module), *sides)
    advance(1)
    found = stats.paired_delong(-np.concatenate(rounded), -np.concatenate(plain), *labels(*sides))
    old, new = (area(-two[0], -two[1]) for two in (plain, rounded))
    worse = rounded[1].mean() - plain[1].mean()
    return Robustness(
        name=f"int{bits}",
        what=f"AUC of forgotten against never-trained records with weights in {bits} bits, less that in float32",
        estimate=estimated(found.interval),
        note=f"{form}; {how}; AUC before {old:.3f}, after {new:.3f}; loss of never-trained records rose by {worse:.3f} "
        f"nats a token; {attacked.told(before)}",
    )


def _with(model: Any, module: Any) -> Any:
    return dataclasses.replace(model, module=module)


def _deployed(module: Any) -> tuple[Any, str]:
    """The model with its adapter folded in where that is exact, and in words what was quantised."""
    if isinstance(module, Combined):
        return module, "the base, with the adapters that share it as they are"
    adapters = getattr(module, "peft_config", {})
    if not adapters:
        return module, "the whole model"
    if any(str(config.peft_type.value) not in _FOLDABLE for config in adapters.values()):
        return module, "the base, with what was tuned beside it as it is"
    return module.merge_and_unload(safe_merge=True), "the base with its adapter folded in"


def quantise(module: nn.Module, bits: Bits) -> str:
    """Round the weights of linear layers below the head to `bits`, in place; returns in words how.

    Eight bits: one scale a row. Four bits: one scale for 32 weights, for a row where its length is no multiple of 32.
    Weights only: activations stay as they are. Raises `UnlearningError`.
    """
    _linear(module)
    base = unwrapped(getattr(module, "shared", module))
    head = list(base.get_output_embeddings().modules())
    fixed = {id(p) for m in base.modules() if m in head or isinstance(m, nn.Embedding) for p in m.parameters()}
    chosen = {
        id(m): m for name, m in base.named_modules()
        if isinstance(m, nn.Linear) and id(m.weight) not in fixed and not _added(name)
    }  # fmt: skip
    total = sum(p.numel() for n, p in base.named_parameters() if id(p) not in fixed and not _added(n))
    rounded = sum(m.weight.numel() for m in chosen.values())
    if rounded * 2 < total or not chosen:
        message = f"{rounded:,} of {total:,} weights are in linear layers, which is what is quantised."
        raise UnlearningError(message, "Audit this model as it is deployed, behind --endpoint URL.")
    whole = _apply(module, bits, chosen)
    some = "" if bits == 8 else f"; {len(chosen) - whole} layers have groups of {_GROUP}, {whole} one scale a row"
    what = f"{rounded:,} weights of {len(chosen)} layers"
    return f"torchao, int{bits} weights only, {what}{some}; head and embedding as they are"


def _added(name: str) -> bool:
    return ".lora_" in name or ".ia3_" in name or "sordino_tuning" in name or "prompt_encoder" in name


def _apply(module: nn.Module, bits: Bits, chosen: dict[int, nn.Linear]) -> int:
    """Quantise the layers `chosen`; returns how many have one scale a row."""
    import torch

    narrow: Any = getattr(torch, "int4")  # noqa: B009 - unknown to torch's own annotations
    with _quiet():
        try:
            # By name, since its annotations are not everywhere where these are checked.
            ao: Any = import_module(f"{QUANTISER}.quantization")
        except ImportError as error:
            message = "torchao, which quantises weights, is not installed."
            raise UnlearningError(message, "`pip install torchao`, at the version in constraints.txt.") from error
        odd = {key for key, layer in chosen.items() if bits == 8 or layer.in_features % _GROUP}

        def those(keys: set[int]) -> Callable[[nn.Module, str], bool]:
            return lambda layer, name: id(layer) in keys

        row = ao.Int8WeightOnlyConfig() if bits == 8 else ao.IntxWeightOnlyConfig(narrow, granularity=ao.PerAxis(0))
        ao.quantize_(module, row, filter_fn=those(odd))
        if bits == 4:
            group = ao.IntxWeightOnlyConfig(narrow, granularity=ao.PerGroup(_GROUP))
            ao.quantize_(module, group, filter_fn=those(set(chosen) - odd))
    return len(odd)


@contextmanager
def _quiet() -> Iterator[None]:
    # On a machine without a GPU, torchao says of each of its kernels that it could not be loaded.
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _linear(module: nn.Module) -> None:
    """GPT-2 keeps its linear layers transposed, under a name of their own: make them like all others."""
    for owner in list(module.modules()):
        for name, layer in list(owner.named_children()):
            if type(layer) is conv1d():
                old: Any = layer
                made = nn.Linear(old.weight.shape[0], old.weight.shape[1], device=old.weight.device)
                made.weight = nn.Parameter(old.weight.detach().T.contiguous(), requires_grad=False)
                made.bias = nn.Parameter(old.bias.detach().clone(), requires_grad=False)
                setattr(owner, name, made)
