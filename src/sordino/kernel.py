"""The sums of `reduction` over a vocabulary, compiled for this processor when first used.

Twelve passes over logits, one for each torch operation, cost more than making the logits does; this is
one pass. Numba compiles it (once on a machine: the result is cached), so that users need no compiler.
"""

from typing import Any

import numpy as np

from sordino.compiled import compiled

__all__ = ["sums"]

_F, _I = np.float32, np.int32
# eˣ = 2ᵏ eʳ with k = round(x / ln 2) and |r| ≤ ln 2 / 2; ln 2 in two parts, so that k ln 2 is exact
# enough; eʳ = 1 + r + r² P(r), P as in Cephes' expf (Moshier): within 2 units in the last place.
_LOG2E, _LN2_HIGH, _LN2_LOW = _F(1.44269504), _F(0.693359375), _F(-2.12194440e-4)
_P = tuple(map(_F, (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2, 1.6666665459e-1, 0.5)))
_P0, _P1, _P2, _P3, _P4, _P5 = _P
_LOWEST, _HALF, _ONE = _F(-87.0), _F(0.5), _F(1.0)
_BIAS, _MANTISSA, _NONE = _I(127), _I(23), _I(0)


# Sums may be taken in any order, as vectors do; no other rule of floating point is given up.
@compiled("void(f4[:,::1], i8[::1], f4[::1], f4[:,::1], i8, i8)", fastmath={"reassoc", "contract", "nsz"})
def sums(logits: Any, targets: Any, peaks: Any, out: Any, first: int, last: int) -> None:
    """Fill columns `first` to `last` of `out` (6, N): logit − max, rank and top of the targets, S₀, S₁ and S₂.

    `logits` (N, V), `targets` (N), and `peaks` (N), the largest logit of each row.
    """
    size = _I(logits.shape[1])
    for i in range(first, last):
        row = logits[i]
        peak, at = peaks[i], row[targets[i]]
        rank, top = _NONE, size
        # Three loops without branches, each of which the compiler turns into vector instructions.
        for j in range(size):
            rank += _I(1) if row[j] > at else _NONE
        for j in range(size):
            here = _I(j) if row[j] == peak else size
            top = here if here < top else top
        s0, s1, s2 = _F(0.0), _F(0.0), _F(0.0)
        for j in range(size):
            x = max(row[j] - peak, _LOWEST)
            k = _I(x * _LOG2E - _HALF)
            r = x - _F(k) * _LN2_HIGH - _F(k) * _LN2_LOW
            p = ((((_P0 * r + _P1) * r + _P2) * r + _P3) * r + _P4) * r + _P5
            weight = (p * r * r + r + _ONE) * _I((k + _BIAS) << _MANTISSA).view(np.float32)
            s0 += weight
            weight *= x
            s1 += weight
            s2 += weight * x
        # Where the peak is no number, no logit equals it.
        out[0, i], out[1, i], out[2, i] = at - peak, rank, min(top, size - _I(1))
        out[3, i], out[4, i], out[5, i] = s0, s1, s2
