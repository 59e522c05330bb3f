"""What a rule keeps of one use of a parameter, and what is made of it: gradient norms of units, and their clipped sum.

A weight's gradient is a sum of outer products, Σ_s left_s ⊗ right_s over the positions s of a unit. Whether the
products are ever formed is decided by cost; an embedding's left vectors are one-hot and stay ids.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Capture", "Dense", "Grams", "Outer", "Rows", "combined", "contribute", "squared_norms", "without"]

# So many products of positions are held at once: 64 MB in float32.
_AT_ONCE = 1 << 24


@dataclass(frozen=True, eq=False)
class Dense:
    """The gradient itself, `values` (units, *shape of the parameter)."""

    values: Tensor


@dataclass(frozen=True, eq=False)
class Outer:
    """Σ_s left_s ⊗ right_s, `left` (units, S, m) and `right` (units, S, n), of a parameter (m, n)."""

    left: Tensor
    right: Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Row `ids` (units, S) of a parameter (count, n) has the gradient `values` (units, S, n)."""

    ids: Tensor
    values: Tensor
    count: int


Capture = Dense | Outer | Rows


class Grams:
    """Products of the positions of recent inputs: queries, keys and values share theirs, and so do gate and up."""

    def __init__(self) -> None:
        self.recent: list[tuple[Tensor, int, Tensor]] = []

    def of(self, x: Tensor) -> Tensor:
        """The products x xᵀ (units, S, S) of `x` (units, S, d), in float32 or more."""
        for known, version, gram in self.recent:
            if _place(known) == _place(x) and version == x._version:
                return gram
        gram = _product(x, x.transpose(1, 2))
        # The input is held as long as its products: its address is not given to another meanwhile.
        self.recent = [*self.recent[-1:], (x, x._version, gram)]
        return gram


def combined(captures: Sequence[Capture]) -> list[Capture]:
    """All uses of a parameter as one capture; as two, `Outer` and `Rows`, where head and embedding are tied.

    What is cheaper formed is formed: d·p ≤ S·(d+p) numbers are fewer than were captured, and cost less.
    """
    dense = [c.values for c in captures if isinstance(c, Dense)]
    outer, rows = [c for c in captures if isinstance(c, Outer)], [c for c in captures if isinstance(c, Rows)]
    found: list[Capture] = []
    if outer:
        one = Outer(_joined([c.left for c in outer]), _joined([c.right for c in outer]))
        m, n = one.left.shape[2], one.right.shape[2]
        cheap = m * n <= one.left.shape[1] * (m + n) and not rows
        found.append(_formed(one) if cheap or dense else one)
    if rows:
        one_hot = Rows(_joined([c.ids for c in rows]), _joined([c.values for c in rows]), rows[0].count)
        found.append(_formed(one_hot) if dense else one_hot)
    formed = [c.values for c in found if isinstance(c, Dense)]
    if not dense and len(formed) < 2:
        return found
    every = dense + formed
    return [Dense(every[0] if len(every) == 1 else torch.stack([_exact(v) for v in every]).sum(0))]


def squared_norms(captures: Sequence[Capture], grams: Grams) -> Tensor:
    """‖gradient‖² (units) of one parameter whose uses `combined` has joined, in float32 or more."""
    total = sum(_square(c, grams) for c in captures)
    if len(captures) == 2:
        outer, rows = captures
        assert isinstance(outer, Outer)
        assert isinstance(rows, Rows)
        total = total + 2 * _cross(outer, rows)
    assert isinstance(total, Tensor)
    # Rounding of large terms that cancel may leave a little less than nothing.
    return total.clamp(min=0)


def contribute(total: Tensor, captures: Sequence[Capture], factors: Tensor, *, fresh: bool) -> None:
    """Add Σ_u factors_u · gradient_u to `total`, which has the shape of the parameter; `factors` (units).

    What a `fresh` total holds counts for nothing: it need not be filled with zeros first.
    """
    for number, c in enumerate(captures):
        kept = 0 if fresh and number == 0 else 1
        if isinstance(c, Dense):
            total.view(-1).addmv_(c.values.flatten(1).to(total.dtype).t(), factors.to(total.dtype), beta=kept)
        elif isinstance(c, Outer):
            scale = factors.to(total.dtype)[:, None, None]
            left, right = c.left.to(total.dtype), c.right.to(total.dtype)
            # The narrower of the two is scaled.
            left, right = (left * scale, right) if left.shape[2] <= right.shape[2] else (left, right * scale)
            total.addmm_(left.flatten(0, 1).t(), right.flatten(0, 1), beta=kept)
        else:
            values = c.values.to(total.dtype) * factors.to(total.dtype)[:, None, None]
            if not kept:
                total.zero_()
            total.index_add_(0, c.ids.flatten(), values.flatten(0, 1))


def without(capture: Capture, keep: Tensor) -> Capture:
    """The capture of the units `keep` (units, bool) alone: 0 · NaN would still be NaN."""
    if isinstance(capture, Dense):
        return Dense(capture.values[keep])
    if isinstance(capture, Outer):
        return Outer(capture.left[keep], capture.right[keep])
    return Rows(capture.ids[keep], capture.values[keep], capture.count)


def _square(capture: Capture, grams: Grams) -> Tensor:
    if isinstance(capture, Dense):
        # In one pass: squares of all the numbers would have to be written first.
        norms: Tensor = torch.linalg.vector_norm(_exact(capture.values).flatten(1), dim=1)
        return norms.square()
    if isinstance(capture, Rows):
        return _square_of_rows(capture)
    units, positions = capture.left.shape[:2]
    if units * positions**2 <= _AT_ONCE:
        return (grams.of(capture.left) * grams.of(capture.right)).sum((1, 2))
    step = max(1, _AT_ONCE // positions**2)
    parts = zip(torch.split(capture.left, step), torch.split(capture.right, step), strict=True)
    return torch.cat([(_product(a, a.mT) * _product(b, b.mT)).sum((1, 2)) for a, b in parts])


def _square_of_rows(capture: Rows) -> Tensor:
    """Rows of the same id in the same unit are summed first, in a table of those ids that occur."""
    units = capture.ids.shape[0]
    owner = torch.arange(units, device=capture.ids.device)[:, None]
    found, place = torch.unique(owner * capture.count + capture.ids, return_inverse=True)
    values = _exact(capture.values).flatten(0, 1)
    table = values.new_zeros(len(found), values.shape[1]).index_add_(0, place.flatten(), values)
    return values.new_zeros(units).index_add_(0, found // capture.count, table.square().sum(1))


def _cross(outer: Outer, rows: Rows) -> Tensor:
    """⟨G_head, G_embedding⟩ = Σ_ts left[t, id_s] · (right_t · values_s)."""
    step = max(1, _AT_ONCE // (outer.left.shape[1] * rows.ids.shape[1]))
    parts = zip(*(torch.split(t, step) for t in (outer.left, outer.right, rows.ids, rows.values)), strict=True)
    found = []
    for left, right, ids, values in parts:
        picked = left.gather(2, ids[:, None, :].expand(-1, left.shape[1], -1))
        found.append((_exact(picked) * _product(right, values.mT)).sum((1, 2)))
    return torch.cat(found)


def _formed(capture: Outer | Rows) -> Dense:
    if isinstance(capture, Outer):
        return Dense(_product(capture.left.mT, capture.right))
    values = _exact(capture.values)
    table = values.new_zeros(len(values), capture.count, values.shape[2])
    return Dense(table.scatter_add_(1, capture.ids[:, :, None].expand_as(values), values))


def _place(x: Tensor) -> tuple[object, ...]:
    # Not its address, which tensors without storage of their own do not have: see train.per_sample.
    return x.untyped_storage()._cdata, x.storage_offset(), x.shape, x.stride(), x.dtype


def _joined(parts: list[Tensor]) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, 1)


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Batched a b, summed in float32 or more and never rounded to less."""
    if a.dtype == b.dtype and a.dtype in (torch.bfloat16, torch.float16) and a.is_cuda:
        return torch.bmm(a, b, out_dtype=torch.float32)
    kind = torch.promote_types(torch.promote_types(a.dtype, b.dtype), torch.float32)
    return torch.bmm(a.to(kind), b.to(kind))
