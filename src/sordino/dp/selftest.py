"""The self-test before private training: the engine against one example at a time, on synthetic tokens only."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sordino.dp.engine import Clipper
from sordino.errors import DPError

__all__ = ["self_test", "synthetic"]

LossesOf = Callable[[Tensor, Tensor], Tensor]
# Gradients of single parameters are compared down to this fraction of the whole.
_FLOOR = 0.05


def synthetic(vocabulary: int, length: int, rows: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Random ids (2 · rows, length) of two units and their mask, which is shorter in the second; never private."""
    generator = torch.Generator().manual_seed(20_221)
    ids = torch.randint(0, vocabulary, (2 * rows, length), generator=generator)
    mask = torch.ones_like(ids)
    mask[rows:, length - length // 3 :] = 0
    return ids.to(device), mask.to(device)


def self_test(
    clipper: Clipper, losses_of: LossesOf, *, batch: tuple[Tensor, Tensor], tolerance: float | None = None
) -> float:
    """Compare norms and clipped sums of two units with those of one unit at a time; the largest relative difference.

    `clipper` is between steps. `losses_of(ids, mask)` gives the losses (rows,) that training will use; `batch` is
    that of `synthetic`. Each unit is computed alone, so that a model that mixes examples is found too. Dropout is
    off meanwhile; the model's mode, its gradients and the state of random numbers are as before afterwards. Raises
    `DPError` naming the first parameter that differs by more than `tolerance`: 1e-8 in float64, 1e-3 in float32, 2e-2
    below or under autocast.
    """
    ids, mask = batch
    rows = len(ids) // 2
    module = clipper.module
    with _undisturbed(module), _precisions(module) as kinds, clipper:
        norms = clipper.add(lambda: losses_of(ids, mask), units=2)
        squares = dict(clipper.squares)
        sums = _sums(clipper)
        clipper.detach()
        plain = Clipper(module, clipper.clipping, mode="one-by-one", scale=clipper.scale)
        apart = []
        for first in (0, rows):
            part = slice(first, first + rows)
            alone = plain.add(lambda part=part: losses_of(ids[part], mask[part]), units=1)  # type: ignore[misc]
            apart.append((alone, dict(plain.squares)))
        wanted = _sums(plain)
    limit = tolerance or _tolerance(kinds)
    whole_norm = torch.cat([norm for norm, _ in apart])
    if not whole_norm.isfinite().all():
        raise DPError("The self-test's gradients are not finite.", "Lower the precision less, or check the model.")
    worst = 0.0
    for name in clipper.parameters:
        each = torch.cat([parts[name] for _, parts in apart]).sqrt()
        found = squares[name].sqrt() if name in squares else torch.zeros_like(each)
        worst = max(worst, _check(name, "norms", found - each, (each, whole_norm), limit))
    worst = max(worst, _check("The whole", "norms", norms - whole_norm, (whole_norm, whole_norm), limit))
    total = torch.stack([w.square().sum() for w in wanted.values()]).sum().sqrt()
    for name, value in wanted.items():
        error = (sums[name] - value).square().sum().sqrt()
        size = value.square().sum().sqrt()
        worst = max(worst, _check(name, "clipped sums", error, (size, total), limit))
    return worst


def _check(name: str, what: str, difference: Tensor, sizes: tuple[Tensor, Tensor], limit: float) -> float:
    own, whole = sizes
    relative = float((difference.abs() / (own + _FLOOR * whole).clamp(min=1e-30)).max())
    # Written so that NaN does not pass.
    if not relative <= limit:
        message = f"{name}: {what} of the clipping engine differ by {relative:.2g} from one example at a time,"
        raise DPError(f"{message} of which {limit:g} is allowed.", "Use mode 'one-by-one', and report the model.")
    return relative


def _sums(clipper: Clipper) -> dict[str, Tensor]:
    """The sums of a step, taken from `.grad`, which is dropped."""
    clipper.finish(None, 1.0)
    found = {name: p.grad for name, p in clipper.parameters.items()}
    for parameter in clipper.parameters.values():
        parameter.grad = None
    return {name: g.to(torch.promote_types(g.dtype, torch.float32)) for name, g in found.items() if g is not None}


@contextmanager
def _precisions(module: nn.Module) -> Iterator[list[torch.dtype]]:
    """What the model computes in: the types of its weights, and autocast's, noted as it runs."""
    kinds = [p.dtype for p in module.parameters() if p.is_floating_point()]

    def note(part: nn.Module, args: object) -> None:
        device = next(module.parameters()).device.type
        if torch.is_autocast_enabled(device):
            kinds.append(torch.get_autocast_dtype(device))

    hook = module.register_forward_pre_hook(note)
    try:
        yield kinds
    finally:
        hook.remove()


def _tolerance(kinds: list[torch.dtype]) -> float:
    if any(kind.itemsize < 4 for kind in kinds):
        return 2e-2
    return 1e-8 if all(kind == torch.float64 for kind in kinds) else 1e-3


@contextmanager
def _undisturbed(module: nn.Module) -> Iterator[None]:
    modes = [(part, part.training) for part in module.modules()]
    gradients = [(p, p.grad) for p in module.parameters()]
    devices = sorted({p.device.index for p in module.parameters() if p.is_cuda and p.device.index is not None})
    with torch.random.fork_rng(devices):
        module.eval()
        try:
            yield
        finally:
            for part, training in modes:
                part.training = training
            for parameter, gradient in gradients:
                parameter.grad = gradient
