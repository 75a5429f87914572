"""The search of `quantize.fit` once more, in NumPy: what the native one is compared with."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pronghorn.ops.codes import NONE, Codes, Grid
from pronghorn.ops.panels import dtype_of
from pronghorn.quantize.fit import codes, levels, stored

Floats = NDArray[np.float32]

ROUNDS = 2  # of rounding and solving in turn, after the best candidate is known
# Levels past the last one at which the largest magnitude of a group is tried, by bits.
PAST = {
    8: (0.0, 0.5, 1.0),
    6: (0.0, 0.5, 1.0),
    5: (0.0, 0.5, 1.0),
    4: (-0.4, 0.0, 0.4, 0.8, 1.3),
    3: (-0.4, 0.0, 0.4, 0.8, 1.2),
    2: (-0.4, -0.1, 0.2, 0.5, 0.8),
}
# Shares of a group's range that the levels of a grid with an offset span, by bits.
SHRINK = {
    8: (1.0,),
    6: (1.0, 0.95),
    5: (1.0, 0.93),
    4: (1.0, 0.92, 0.84),
    3: (1.0, 0.88, 0.76),
    2: (1.0, 0.8, 0.6),
}


def fit(w: Floats, grid: Grid, importance: Floats) -> Codes:
    """w (n_out, n_in), n_in in whole groups. importance: (n_in,)."""
    n_out, n_in = w.shape
    group = grid.group or n_in
    cut, weight = w.reshape(n_out, -1, group), importance.reshape(1, -1, group)
    code, a, b = (_affine if grid.offset else _scaled)(cut, weight, grid)
    dtype = dtype_of(grid.scale)
    return Codes(
        grid, code.reshape(n_out, n_in), a.astype(dtype), b.astype(dtype) if grid.offset else NONE, NONE, NONE
    )


def _dot(a: Floats, b: Floats) -> Floats:
    out: Floats = np.einsum("rgk,rgk->rg", a, b)
    return out


def _inverse(a: Floats) -> Floats:
    """1 / a, 0 where a is 0 or so small that there is no float for it."""
    with np.errstate(divide="ignore", over="ignore"):
        out: Floats = np.float32(1) / a
    out[~np.isfinite(out)] = 0
    return out


def _scaled(w: Floats, weight: Floats, grid: Grid) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """w (n, n_groups, group) -> codes of that shape, scales and zeros (n, n_groups)."""
    ends = (grid.table[0], grid.table[-1]) if grid.table else (-grid.zero, (1 << grid.bits) - 1 - grid.zero)
    unit = 1.0 if not grid.table else 16.0  # about one step between levels
    most = np.abs(w).argmax(axis=2)
    top = np.take_along_axis(w, most[:, :, None], axis=2)[:, :, 0]  # signed, the largest magnitude
    wh = w * weight
    best, scale = np.full(top.shape, -1.0, np.float32), np.zeros_like(top)

    def solve(a: Floats) -> tuple[Floats, Floats]:
        """The part that codes near w / a explain, and the scale that explains it."""
        q = levels(w * _inverse(a)[:, :, None], grid)
        wq = _dot(wh, q)
        qq = _dot(q, q * weight)
        fitted = np.divide(wq, qq, out=np.zeros_like(wq), where=qq > 0)
        return wq * fitted, fitted

    def consider(a: Floats) -> None:
        part, fitted = solve(a)
        fitted = np.clip(fitted, np.minimum(low, high), np.maximum(low, high))
        better = part > best
        best[better] = part[better]
        scale[better] = fitted[better]

    for end in ends:
        past = [end + np.sign(end) * unit * t for t in PAST[grid.bits]]
        low, high = top / np.float32(past[0]), top / np.float32(past[-1])
        for level in past:
            consider(top / np.float32(level))
    least = np.abs(top) / np.float32(max(np.abs(ends)) + unit * PAST[grid.bits][-1])
    for _ in range(ROUNDS):
        part, fitted = solve(scale)
        better = (part > best) & (np.abs(fitted) >= least)
        best[better] = part[better]
        scale[better] = fitted[better]
    a = stored(scale, grid)
    return codes(levels(w * _inverse(a)[:, :, None], grid), grid), a, np.zeros_like(a)


# ------------------------------------------------------------------------------ a scale and an offset


def _affine(w: Floats, weight: Floats, grid: Grid) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """As `_scaled`, values a * code + b."""
    last = np.float32((1 << grid.bits) - 1)
    wh = w * weight
    low, high = (f(w, axis=2) for f in (np.min, np.max))
    n = np.broadcast_to(weight.sum(2), low.shape)
    sw = wh.sum(axis=2)
    best = np.full(low.shape, np.inf, np.float32)
    scale, offset = np.zeros_like(low), np.zeros_like(low)

    def consider(a: Floats, b: Floats) -> None:
        q = (w - b[:, :, None]) * _inverse(a)[:, :, None]
        np.rint(q, out=q)
        np.clip(q, 0, last, out=q)
        qh = q * weight
        sq, sqq, swq = qh.sum(axis=2), _dot(q, qh), _dot(q, wh)
        det = n * sqq - sq * sq
        ok = det > 1e-6 * n * sqq
        fa = np.where(ok, np.divide(n * swq - sq * sw, det, out=np.zeros_like(det), where=ok), a)
        fb = np.where(n > 0, (sw - fa * sq) / np.maximum(n, 1e-30), b)
        # the error without sum(w^2), which is the same for all
        err = fa * fa * sqq + n * fb * fb + 2 * (fa * fb * sq - fa * swq - fb * sw)
        better = err < best
        best[better] = err[better]
        scale[better], offset[better] = fa[better], fb[better]

    middle, half = (low + high) / 2, (high - low) / 2
    for f in SHRINK[grid.bits]:
        f32 = np.float32(f)
        consider(2 * half * f32 / last, middle - half * f32)
        if f < 1:  # one end alone
            consider(half * (1 + f32) / last, middle - half * f32)
            consider(half * (1 + f32) / last, low)
    for _ in range(ROUNDS):
        consider(scale, offset)
    a, b = stored(scale, grid), stored(offset, grid)
    q = (w - b[:, :, None]) * _inverse(a)[:, :, None]
    return np.clip(np.rint(q), 0, last).astype(np.uint8), a, b
