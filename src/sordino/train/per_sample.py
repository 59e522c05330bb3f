"""The way in which private training gets the gradient norms of units: the fastest that fits into memory.

As in `memory`, nothing is guessed: the clipper itself runs on a model without storage, as shapes only, while the
tensors that live at once are counted.
"""

import weakref
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from sordino.classifier import Classes, class_logits
from sordino.config import RunConfig
from sordino.dp.engine import Clipper, Clipping, Mode
from sordino.dp.plan import DPPlan
from sordino.errors import DPError
from sordino.model import head_of, pick_device
from sordino.model.methods import virtual_tokens
from sordino.model.methods.extra_rows import EXTRA
from sordino.records import DataConfig
from sordino.serialize import Tokens
from sordino.train.memory import Memory, budget, by_formula, memory_rows, shape_of, silent
from sordino.train.objective import autocast, check_precision, recomputed

__all__ = ["AtOnce", "Way", "at_once", "choose", "private_rows", "step_memory"]

_MODES: tuple[Mode, ...] = ("book-keeping", "two-backward", "one-by-one")


@dataclass(frozen=True, kw_only=True)
class AtOnce:
    """What a part of a step computes at most: `units` of `rows` sequences of `length` tokens, in `parts` parts."""

    units: int
    rows: int
    length: int
    parts: int

    def of(self, mode: Mode) -> "AtOnce":
        """The same in `mode`: one by one, each unit is a part of its own."""
        if mode != "one-by-one":
            return self
        return AtOnce(units=1, rows=self.rows, length=self.length, parts=self.parts * self.units)


@dataclass(frozen=True, kw_only=True)
class Way:
    """The `mode` of the clipper, why it was taken, and the memory of a step where that decided."""

    mode: Mode
    reason: str
    memory: Memory | None = None

    def __str__(self) -> str:
        """Mode and reason."""
        return f"{self.mode}, {self.reason}"


def at_once(plan: DPPlan, members: Sequence[Sequence[int]], training: Sequence[Tokens], accumulation: int) -> AtOnce:
    """What a step computes at once, at most, where unit u has the sequences `members[u]` of those in `training`."""
    units = min(plan.cap, -(-plan.batch // accumulation))
    rows = min(plan.settings.records_per_unit, max(map(len, members), default=1))
    length = max(map(len, training), default=0)
    return AtOnce(units=units, rows=rows, length=max(2, length), parts=-(-plan.cap // units))


def choose(config: RunConfig, most: AtOnce, classes: Classes | None = None) -> Way:
    """The way of `train.per_sample`; for `auto`, the first that fits of book-keeping, two-backward and one-by-one.

    One-by-one, which is exact for any model, is also taken where the clipper refuses something about the model.
    """
    wanted = config.train.per_sample
    if wanted != "auto":
        return Way(mode=wanted, reason="as configured")
    has, before = budget(config, pick_device(config.model.device)), ""
    for mode in _MODES[:2]:
        try:
            found = step_memory(config, most, mode, classes)
        except DPError as error:
            before = f"because {error.message.partition(':')[0].rstrip('.')}"
            break
        told = f"{_gib(found.total)} of {_gib(has)}"
        if found.total <= has:
            return Way(mode=mode, reason=before or f"which takes {told}", memory=found)
        before = f"because {mode} would take {told}"
    return Way(mode="one-by-one", reason=before, memory=step_memory(config, most, "one-by-one", classes))


def _gib(size: int) -> str:
    return f"{size / 2**30:.3g} GiB"


def step_memory(config: RunConfig, most: AtOnce, mode: Mode, classes: Classes | None = None) -> Memory:
    """The memory of a private step in `mode`: sums of clipped gradients in place of gradients, noise and captures.

    Raises `DPError` where the clipper refuses the model.
    """
    module, settings, _ = shape_of(config, classes)
    parameters = list(module.parameters())
    tuned = sum(4 * p.numel() for p in parameters if p.requires_grad)
    part = most.of(mode)
    try:
        peak, traced = _peak(_shaping(config), part, mode, classes), True
    except DPError:
        raise
    except Exception:  # what cannot be traced fails in many ways, and is answered by a formula
        shape = (part.units * part.rows, part.length)
        kept, again = by_formula(settings, config.train, shape)
        # Book-keeping holds output gradients beside the inputs that autograd keeps.
        peak, traced = tuned + (2 if mode == "book-keeping" else 1) * kept + again, False
    return Memory(
        weights=sum(4 * p.numel() for p in parameters),
        gradients=tuned,
        optimizer=2 * tuned,
        activations=max(0, peak - tuned),
        traced=traced,
    )


def _shaping(config: RunConfig) -> RunConfig:
    """What of `config` decides about memory."""
    train = replace(config.train, memory=None, per_sample="auto")
    kept = {name: getattr(config, name) for name in ("task", "model", "method", "dp")}
    return RunConfig(data=DataConfig(path=""), train=train, **kept)


# A dry run, the training and its card ask for the same figure, which takes a second or more.
@lru_cache(maxsize=32)
def _peak(config: RunConfig, part: AtOnce, mode: Mode, classes: Classes | None) -> int:
    """Bytes beyond the weights that a step holds at its peak: sums, activations, captures, noise."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert config.dp is not None
    module, _, width = shape_of(config, classes)
    live = _Live()
    with ExitStack() as stack:
        stack.enter_context(silent())
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(live)
        _materialise(module)
        losses = _losses(module, config, part, classes, width)
        weights, live.peak = live.held, 0
        stack.enter_context(recomputed(module, on=config.train.gradient_checkpointing))
        kind = "flat" if config.dp.clipping == "adaptive" else config.dp.clipping
        clipping = Clipping(norm=config.dp.clip_norm, kind=kind)
        with Clipper(module, clipping, mode=mode) as clipper:
            clipper.add(losses, units=part.units)
            if mode == "one-by-one":
                clipper.add(losses, units=part.units)
        clipper.finish(lambda name, noise: None, 1.0)
    # From the second part on, the sum of those before is there; one by one, the second was computed.
    before = part.parts > 1 and mode != "one-by-one"
    sums: int = sum(4 * p.numel() for p in module.parameters() if p.requires_grad)
    return live.peak - weights + before * sums


def _losses(module: Any, config: RunConfig, part: AtOnce, classes: Classes | None, width: int) -> Callable[[], Tensor]:
    """The losses of rows as `Objective.rows` computes them, every token a target."""
    rows = part.units * part.rows
    ids = torch.zeros((rows, part.length), dtype=torch.long)
    wanted = torch.zeros(rows if classes is not None else rows * part.length, dtype=torch.long)
    # Where the head is trained, or virtual tokens are cut off, whole logits are copied to pick from.
    head = [] if classes is not None else [*head_of(module).parameters(), *_more(module)]
    copied = any(p.requires_grad for p in head) or bool(virtual_tokens(config.method))

    def losses() -> Tensor:
        with autocast(config.train.precision, torch.device("cpu")):
            if classes is not None:
                logits = class_logits(module, ids, torch.ones_like(ids))
            else:
                logits = module(input_ids=ids, use_cache=False).logits
        logits = logits[:, -part.length :].reshape(len(wanted), width) if classes is None else logits
        if copied:
            logits = logits.index_select(0, torch.zeros(len(wanted), dtype=torch.long))
        each = cross_entropy(logits.float(), wanted, reduction="none")
        return each.view(rows, -1).sum(1)

    return losses


def _more(module: nn.Module) -> list[nn.Parameter]:
    """The rows of new tokens behind the head."""
    found = getattr(module, EXTRA, None)
    return [] if found is None else list(found.parameters())


def _materialise(module: nn.Module) -> None:
    """Give every parameter and buffer of `module` a fake tensor for its own; shared ones stay shared."""
    made: dict[int, Any] = {}
    for part in module.modules():
        for own in (part._parameters, part._buffers):
            for name, value in own.items():
                if value is None:
                    continue
                if id(value) not in made:
                    fake: Tensor = torch.empty(value.shape, dtype=value.dtype)
                    trained = isinstance(value, nn.Parameter)
                    made[id(value)] = (nn.Parameter(fake, value.requires_grad) if trained else fake, value)
                own[name] = made[id(value)][0]


class _Live(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of tensors that live, and answers what shapes do not tell: numbers are finite, ids differ."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held = self.peak = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            return args[0].dtype == torch.bool
        if func is torch.ops.aten._unique2.default:
            made: Any = (torch.empty_like(args[0]).flatten(), torch.empty_like(args[0]), args[0].new_empty(0))
        else:
            made = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(made):
            if isinstance(leaf, Tensor):
                self._count(leaf.untyped_storage())
        return made

    def _count(self, storage: Any) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self.seen:
            self.seen.add(key)
            weakref.finalize(storage, self._gone, key, size)
            self.held += size
            self.peak = max(self.peak, self.held)

    def _gone(self, key: int, size: int) -> None:
        self.seen.remove(key)
        self.held -= size


def private_rows(config: RunConfig, most: AtOnce, classes: Classes | None = None) -> dict[str, Any]:
    """Rows of `sordino train --dry-run` about the memory of private training, and the way it is done."""
    device = pick_device(config.model.device)
    check_precision(config.train.precision, device)
    way, has = choose(config, most, classes), budget(config, device)
    memory = way.memory or step_memory(config, most, way.mode, classes)
    rows = {"per-sample gradients": str(way), **memory_rows(memory, device, has)}
    if memory.total > has:
        rows["advice"] = _advice(config, has, most, classes)
    return rows


def _advice(config: RunConfig, has: int, most: AtOnce, classes: Classes | None) -> str:
    train = config.train
    for checkpointing in sorted({train.gradient_checkpointing, True}):
        tried = replace(config, train=replace(train, gradient_checkpointing=checkpointing, per_sample="auto"))
        found = choose(tried, most, classes).memory
        if found is not None and found.total <= has:
            named = [] if train.per_sample == "auto" else ["train.per_sample: auto"]
            named += [] if checkpointing == train.gradient_checkpointing else ["train.gradient_checkpointing: true"]
            return f"It would fit with {' and '.join(named)}."
    how = "a smaller model" if config.method.kind != "full" else "method.kind: lora"
    return f"Not even one unit at a time fits: lower train.max_length or dp.records_per_unit, or use {how}."
