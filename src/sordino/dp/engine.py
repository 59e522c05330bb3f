"""Clipped sums of the gradients of units, in one backward pass (Bu et al. 2022, arXiv:2210.00038)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sordino.dp.captures import Capture, Grams, combined, contribute, squared_norms, without
from sordino.dp.patched import Patched
from sordino.dp.tape import Tape
from sordino.errors import DPError

__all__ = ["Clipper", "Clipping", "Mode", "clip_factors"]

Mode = Literal["book-keeping", "two-backward", "one-by-one"]
_STABLE = 0.01


@dataclass(frozen=True, kw_only=True)
class Clipping:
    """How the gradient g of a unit is bounded; `norm` is C, the sensitivity of the sum under add/remove.

    flat: g · min(1, C/‖g‖) (Abadi et al. 2016, algorithm 1). automatic: g · C/(‖g‖ + 0.01) (Bu et al. 2022,
    arXiv:2206.07136). per-layer: flat in each of L modules with C/√L, so that √Σ C_l² = C (McMahan et al. 2018).
    """

    norm: float = 1.0
    kind: Literal["flat", "automatic", "per-layer"] = "flat"

    def __post_init__(self) -> None:
        """Raises `DPError` where the norm bounds nothing."""
        if not 0 < self.norm < float("inf"):
            raise DPError(f"The clip norm is {self.norm}.", "It must be positive and finite.")


def clip_factors(norms: Tensor, bound: float, kind: str) -> Tensor:
    """What to multiply gradients of `norms` by, so that none is longer than `bound`; 1 for a norm of 0 if flat."""
    if kind == "automatic":
        return bound / (norms + _STABLE)
    return torch.where(norms > bound, bound / norms, torch.ones_like(norms))


class Clipper:
    """Sums the clipped gradients of units over the micro-batches of a step, adds noise once, and sets `.grad`.

    book-keeping: one backward pass; inputs and output gradients of large weights are kept until its end.
    two-backward: the first finds the norms, the second sums; no more memory than training without clipping.
    one-by-one: a plain backward pass a unit, exact for any model. Give `add` one unit at a time: that costs
    least, and only then can a gradient that is not finite be told from the others.

    Losses are multiplied by `scale` before the backward pass and gradients divided by it, which float16 needs:
    choose it once, whatever the data are.

    While it is attached (`with clipper:`), the forwards of modules with trainable parameters are replaced by
    ones that compute the same. Raises `DPError` naming the module that no rule fits.
    """

    def __init__(
        self, module: nn.Module, clipping: Clipping, *, mode: Mode = "book-keeping", scale: float = 1.0
    ) -> None:
        self.module, self.clipping, self.mode, self.scale = module, clipping, mode, scale
        if not 0 < scale < float("inf"):
            raise DPError(f"The scale of losses is {scale}.", "It must be positive and finite.")
        self.parameters = {name: p for name, p in module.named_parameters() if p.requires_grad}
        if not self.parameters:
            raise DPError("No parameter is trainable.", "Attach a method of tuning first.")
        _refuse_mixing(module)
        self.tape = Tape(next(iter(self.parameters.values())).device)
        self.patched = Patched(module, self.tape, self.parameters)
        if mode != "one-by-one":
            self.patched.forwards()  # what cannot be patched is refused here
        self.squares: dict[str, Tensor] = {}
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._sums: dict[str, Tensor] = {}

    def attach(self) -> None:
        """Replace the forwards; does nothing where that is done already, or not needed."""
        if self.mode != "one-by-one":
            self.patched.attach()

    def detach(self) -> None:
        """Put every forward back as it was."""
        self.patched.detach()

    def __enter__(self) -> "Clipper":
        """Attached as long as the context is open."""
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """As it was before, also after errors."""
        self.detach()

    def add(self, losses: Callable[[], Tensor], *, units: int) -> Tensor:
        """Add the clipped gradients of `units` units to the step's sum; their norms (units), before clipping.

        `losses()` runs the model and gives one loss a row (rows,), where rows = units · k, those of a unit
        next to each other, and a unit's loss is the sum of theirs. A unit whose gradient is not finite adds
        nothing. `.grad` is dropped. Raises `DPError` where a gradient escapes its rule; the step's sum is then lost.
        """
        try:
            values = self._values(losses, units)
            run = {"book-keeping": self._book_keeping, "two-backward": self._twice, "one-by-one": self._one_by_one}
            return run[self.mode](values)
        except BaseException:
            self._sums.clear()
            raise

    def norms(self, losses: Callable[[], Tensor], *, units: int) -> Tensor:
        """The norms (units) of the gradients of `units` units, as `add` finds them; nothing is summed or kept."""
        values = self._values(losses, units)
        if self.mode == "one-by-one":
            norms = self._one_by_one(values)
            self._sums.clear()
            return norms
        self._first_pass(values, keep=False, again=False)
        return self._factors()[0]

    def _values(self, losses: Callable[[], Tensor], units: int) -> Tensor:
        if self.mode != "one-by-one" and not self.patched.attached:
            raise DPError("The clipper is not attached.", "Use it as a context: `with clipper: ...`.")
        for parameter in self.parameters.values():
            parameter.grad = None
        with torch.enable_grad():
            self.tape.start(units)
            values = losses()
        self._check(values, units)
        return values if self.scale == 1 else values * self.scale

    @torch.no_grad()
    def finish(self, noise: Callable[[str, Tensor], None] | None, expected: float) -> None:
        """Set every `.grad` to (sum + noise) / `expected` in the parameter's type, and begin the next step's sum.

        `noise(name, tensor)` adds the noise of the parameter `name` to the sum, float32 or more and contiguous; it
        is called once a parameter. `expected` is the expected number of units of a step.
        """
        if not 0 < expected < float("inf"):
            raise DPError(f"The expected batch is {expected}.", "It must be positive and finite.")
        for name, parameter in self.parameters.items():
            total = self._sums.pop(name, None)
            if total is None:
                total = _wide(torch.zeros_like(parameter))
            if noise is not None:
                noise(name, total)
            parameter.grad = total.div_(expected).to(parameter.dtype)

    def _check(self, values: Tensor, units: int) -> None:
        seen, rows = self.tape.rows, values.shape[0] if values.dim() == 1 else 0
        if units < 1 or not rows or rows % units or seen not in (0, rows):
            message = f"{units} units have losses of shape {tuple(values.shape)}, of {seen or 'unknown'} rows."
            raise DPError(message, "Give one loss a row, and as many rows for every unit.")
        if not values.requires_grad:
            raise DPError("The losses depend on no trainable parameter.", "Compute them with gradients enabled.")
        self.tape.rows = rows

    def _book_keeping(self, values: Tensor) -> Tensor:
        kept = self._first_pass(values, keep=True, again=False)
        norms, factors = self._factors()
        with torch.no_grad():
            for name in list(kept):
                self._contribute(name, kept.pop(name), factors[name], norms)
        return norms

    def _twice(self, values: Tensor) -> Tensor:
        self._first_pass(values, keep=False, again=True)
        norms, factors = self._factors()

        def take(parameter: nn.Parameter, capture: Capture) -> None:
            name = self._names[id(parameter)]
            self._contribute(name, [capture], factors[name], norms)

        self._backward(values, take, again=False)
        return norms

    def _first_pass(self, values: Tensor, *, keep: bool, again: bool) -> dict[str, Sequence[Capture]]:
        """The squared norms of each parameter's gradients, and if `keep` what they are made of."""
        self.squares = {}
        kept: dict[str, Sequence[Capture]] = {}
        shared: dict[str, list[Capture]] = {}
        grams = Grams()

        def settle(name: str, captures: Sequence[Capture]) -> None:
            held = combined(captures)
            self.squares[name] = squared_norms(held, grams) / self.scale**2
            if keep:
                kept[name] = held

        def take(parameter: nn.Parameter, capture: Capture) -> None:
            name = self._names[id(parameter)]
            if self.tape.uses[id(parameter)] != 1:
                # The norm of a sum needs all of it.
                shared.setdefault(name, []).append(capture)
            elif name in self.squares:
                raise DPError(f"{name} has more gradients than uses.", "Use mode 'one-by-one'.")
            else:
                settle(name, [capture])

        self._backward(values, take, again=again)
        with torch.no_grad():
            for name, captures in shared.items():
                settle(name, captures)
        return kept

    def _backward(self, values: Tensor, take: Callable[[nn.Parameter, Capture], None], *, again: bool) -> None:
        with self._taking(take):
            torch.autograd.backward(values, torch.ones_like(values), retain_graph=again)
        escaped = [name for name, p in self.parameters.items() if p.grad is not None]
        if escaped:
            for name in escaped:
                self.parameters[name].grad = None
            message = f"{escaped[0]} is used outside the module that it belongs to: its gradient was not clipped."
            raise DPError(message, "Use mode 'one-by-one'.")

    @contextmanager
    def _taking(self, take: Callable[[nn.Parameter, Capture], None]) -> Iterator[None]:
        self.tape.take = take
        try:
            yield
        finally:
            self.tape.take = None

    def _one_by_one(self, values: Tensor) -> Tensor:
        units, own = self.tape.units, list(self.parameters.values())
        losses = values.reshape(units, -1).sum(1)
        per_unit: dict[str, list[Tensor]] = {name: [] for name in self.parameters}
        norms = []
        for unit in range(units):
            more = unit + 1 < units
            found: Sequence[Tensor | None] = torch.autograd.grad(
                losses[unit], own, retain_graph=more, allow_unused=True
            )
            with torch.no_grad():
                used = {n: g for n, g in zip(self.parameters, found, strict=True) if g is not None}
                self.squares = {n: (_wide(g).square().sum() / self.scale**2)[None] for n, g in used.items()}
                for name in self.parameters:
                    per_unit[name].append(self.squares.get(name, values.new_zeros(1, dtype=self._wide())))
                norm, factors = self._factors()
                if not norm.isfinite() and units > 1:
                    # A backward pass of one unit touches the rows of the others, and 0 · NaN is NaN: who is it?
                    message = f"Of {units} units in one batch, one has a gradient that is not finite."
                    raise DPError(message, "In mode 'one-by-one', give `add` one unit at a time.")
                if norm.isfinite():
                    for name, g in used.items():
                        part = _wide(g) * (factors[name] / self.scale)
                        self._sums[name] = self._sums[name].add_(part) if name in self._sums else part
                norms.append(norm)
        self.squares = {name: torch.cat(parts) for name, parts in per_unit.items()}
        return torch.cat(norms)

    def _factors(self) -> tuple[Tensor, dict[str, Tensor]]:
        """The norms (units) of whole gradients, and what each parameter's are multiplied by."""
        total = torch.stack([s.to(self._wide()) for s in self.squares.values()]).sum(0).sqrt() if self.squares else None
        if total is None:
            total = torch.zeros(self.tape.units, dtype=self._wide(), device=self.tape.anchor.device)
        bound, kind = self.clipping.norm, self.clipping.kind
        if kind != "per-layer":
            factors = clip_factors(total, bound, kind)
            return total, dict.fromkeys(self.squares, factors)
        groups: dict[str, Tensor] = {}
        for name, square in self.squares.items():
            group = self.patched.group[name]
            groups[group] = groups.get(group, torch.zeros_like(total)) + square
        share = bound / len(set(self.patched.group.values())) ** 0.5
        each = {group: clip_factors(square.sqrt(), share, "flat") for group, square in groups.items()}
        return total, {name: each[self.patched.group[name]] for name in self.squares}

    def _contribute(self, name: str, captures: Sequence[Capture], factors: Tensor, norms: Tensor) -> None:
        finite = norms.isfinite()
        if not finite.all():
            if not finite.any():
                return
            captures, factors = [without(c, finite) for c in captures], factors[finite]
        fresh = name not in self._sums
        if fresh:
            parameter = self.parameters[name]
            kind = torch.promote_types(parameter.dtype, torch.float32)
            self._sums[name] = torch.empty(parameter.shape, dtype=kind, device=parameter.device)
        contribute(self._sums[name], captures, factors / self.scale, fresh=fresh)

    def _wide(self) -> torch.dtype:
        doubles = any(p.dtype == torch.float64 for p in self.parameters.values())
        return torch.float64 if doubles else torch.float32


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _refuse_mixing(module: nn.Module) -> None:
    for name, found in module.named_modules():
        statistics: Any = getattr(found, "track_running_stats", False)
        if isinstance(found, nn.modules.batchnorm._BatchNorm) or statistics:
            message = f"{name or 'The model'} is {type(found).__name__}, which mixes the examples of a batch."
            raise DPError(message, "Replace it by GroupNorm or LayerNorm.")
