"""What a training needs of a device's memory, before any weight is loaded.

Nothing is guessed from formulas: the model is built without storage and a batch is led through it as
shapes only (PyTorch's fake tensors), while the tensors that autograd would keep are counted.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sordino.classifier import Classes
from sordino.config import RunConfig, TrainConfig
from sordino.model import pick_device, weightless
from sordino.model.methods.extra_rows import hang, width_of
from sordino.train.dropout import set_dropout
from sordino.train.objective import autocast, check_precision, recomputed

__all__ = [
    "Memory",
    "advice",
    "budget",
    "by_formula",
    "capacity",
    "estimate",
    "memory_rows",
    "plan_memory",
    "shape_of",
    "silent",
]

_CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes of a training step at its peak; `traced` is False where activations had to come from a formula."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    traced: bool

    @property
    def total(self) -> int:
        """All of them together."""
        return self.weights + self.gradients + self.optimizer + self.activations


def shape_of(config: RunConfig, classes: Classes | None) -> tuple[Any, Any, int]:
    """The model of `config` on the meta device, ready to be tuned, its settings, and how many logits a target has."""
    module = weightless(config.model, config.method, classes).module.train()
    if config.train.dropout is not None:
        set_dropout(module, config.train.dropout)
    settings = module.config.get_text_config()
    if classes is None:
        audit = config.canaries.audit
        new = audit.count if audit.design == "new-token" else 0
        if new:
            hang(module, torch.empty(new, width_of(module), device="meta"))
        return module, settings, int(settings.vocab_size) + new
    # Which token is padding changes no size, but without one a decoder takes no batch.
    settings.pad_token_id = module.config.pad_token_id = 0
    return module, settings, len(classes.labels)


def estimate(config: RunConfig, records: int, length: int, classes: Classes | None = None) -> Memory:
    """The memory of a step on `records` sequences of `length` tokens at once; tuned as `config` says.

    Weights, gradients and the two moments of AdamW are exact, all float32. Activations are what autograd
    keeps, with the loss; in training with `gradient_checkpointing`, the inputs of the layers and one layer.
    """
    module, settings, width = shape_of(config, classes)
    parameters = list(module.parameters())
    tuned = sum(4 * p.numel() for p in parameters if p.requires_grad)
    try:
        kept, again, traced = *_traced(module, settings, config.train, (records, length)), True
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError):
        kept, again, traced = *by_formula(settings, config.train, (records, length)), False
    # The loss: log-probabilities are kept, and their gradient and that of the logits are made from them. All
    # three are gone before the first layer is computed again.
    logits = 4 * records * (length if classes is None else 1) * width
    return Memory(
        weights=sum(4 * p.numel() for p in parameters),
        gradients=tuned,
        optimizer=2 * tuned,
        activations=kept + max(3 * logits, again),
        traced=traced,
    )


def _traced(module: Any, settings: Any, train: TrainConfig, shape: tuple[int, int]) -> tuple[int, int]:
    """Bytes that autograd keeps of the model, up to and without the loss, and what computing a layer again adds."""
    whole = _kept(module, train.precision, shape, on=False)
    if not train.gradient_checkpointing:
        return whole, 0
    inputs = _kept(module, train.precision, shape, on=True)
    return inputs, max(0, whole - inputs) // max(1, int(settings.num_hidden_layers))


def _kept(module: Any, precision: str, shape: tuple[int, int], *, on: bool) -> int:
    from torch._subclasses.fake_tensor import FakeTensorMode

    kept: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        # Held on to until all are counted, so that no storage takes the address of one that is gone.
        kept[tensor.untyped_storage()._cdata] = tensor
        return tensor

    named = [*module.named_parameters(), *module.named_buffers()]
    with silent(), FakeTensorMode(allow_non_fake_inputs=True):
        state = {n: torch.empty(t.shape, dtype=t.dtype, requires_grad=t.requires_grad) for n, t in named}
        known = {t.untyped_storage()._cdata for t in state.values()}
        ids = torch.zeros(shape, dtype=torch.long)
        hooks: Any = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
        with recomputed(module, on=on), hooks, autocast(precision, torch.device("cpu")):
            inputs = {"input_ids": ids, "use_cache": False}
            output = torch.func.functional_call(module, state, (), inputs).logits
        del output
        return sum(int(t.untyped_storage().nbytes()) for address, t in kept.items() if address not in known)


@contextmanager
def silent() -> Iterator[None]:
    """Torch says nothing of what cannot be traced."""
    # What cannot be traced is logged as an error by torch, and answered here by a formula.
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(before)


def by_formula(settings: Any, train: TrainConfig, shape: tuple[int, int]) -> tuple[int, int]:
    """The same of a plain transformer (Korthikanti et al. 2022, equation 1, attention not materialised)."""
    records, length = shape
    layers, width = settings.num_hidden_layers, settings.hidden_size
    size = 4 if train.precision == "fp32" else 2
    layer: int = 17 * size * records * length * width
    inputs: int = 4 * records * length * width * layers
    return (inputs, layer) if train.gradient_checkpointing else (layer * layers, 0)


def capacity(device: torch.device) -> int:
    """The bytes that `device` has: of the GPU, or the machine's RAM as far as this process may use it."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[1])
    if device.type == "mps":
        return int(torch.mps.recommended_max_memory())
    has = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    limits = [text for path in _CGROUPS if (text := _read(path)).isdigit()]
    return min(has, *map(int, limits)) if limits else has


def budget(config: RunConfig, device: torch.device) -> int:
    """The bytes that training may use: those of `device`, or fewer where `train.memory` says so."""
    has, allowed = capacity(device), config.train.memory
    return has if allowed is None else min(has, round(allowed * 2**30))


def _read(path: str) -> str:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def advice(config: RunConfig, has: int, sequences: int, length: int, classes: Classes | None = None) -> str:
    """What to set so that a step fits into `has` bytes: more parts, or else checkpointing and as few parts as do."""
    train, at_once = config.train, min(config.train.batch_size, sequences)
    for checkpointing in sorted({train.gradient_checkpointing, True}):
        tried = replace(config, train=replace(train, gradient_checkpointing=checkpointing))
        # What a step needs grows by the same amount with every sequence.
        one, two = (estimate(tried, n, length, classes).total for n in (1, 2))
        if one > has:
            continue
        parts = -(-at_once // min(at_once, 1 + (has - one) // (two - one)))
        named = [] if checkpointing == train.gradient_checkpointing else ["train.gradient_checkpointing: true"]
        if parts > train.accumulation:
            named.append(f"train.accumulation: {parts}")
        return f"It would fit with {' and '.join(named)}."
    how = "a smaller model" if config.method.kind != "full" else "method.kind: lora"
    return f"Not even one sequence at a time fits: lower train.max_length, or use {how}."


def plan_memory(config: RunConfig, sequences: int, length: int, classes: Classes | None = None) -> dict[str, Any]:
    """Rows of `sordino train --dry-run` about memory: bytes by use, what the device has, and advice."""
    device = pick_device(config.model.device)
    check_precision(config.train.precision, device)
    sequences, length = max(1, sequences), max(1, length)
    at_once = -(-min(config.train.batch_size, sequences) // config.train.accumulation)
    found = estimate(config, at_once, length, classes)
    has = budget(config, device)
    rows = memory_rows(found, device, has)
    if found.total > has:
        rows["advice"] = advice(config, has, sequences, length, classes)
    return rows


def memory_rows(found: Memory, device: torch.device, has: int) -> dict[str, Any]:
    """Bytes by use, the `has` bytes that there are, and whether they suffice."""
    rows: dict[str, Any] = {
        "bytes of weights": found.weights,
        "bytes of gradients": found.gradients,
        "bytes of optimizer": found.optimizer,
        "bytes of activations": found.activations,
        "bytes in all": found.total,
        f"bytes of {'memory' if device.type == 'cpu' else device.type}": has,
        "fits": found.total <= has,
    }
    if not found.traced:
        rows["activations"] = "by a formula: this architecture cannot be traced"
    return rows
