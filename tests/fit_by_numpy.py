"""Codes of least squared error on a grid: the search that every rounding quantizer starts from.

For each group of inputs a few scales are tried that map its largest magnitude a little inside or past the
last level, on either side of a lopsided grid (-8..7) and so with either sign. The best scale for given codes
has a closed form (least squares), which also gives the error without computing it: with levels q, the part
of sum(w^2) that a*q explains is sum(wq)^2 / sum(q^2). The best candidate is refined by rounding and solving
in turn, and codes are rounded once more against the scale as stored, so that its own rounding costs nothing.
With an offset both unknowns are solved for. Weighted sums (`importance`) serve quantizers that know how
large each input usually is.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.ops.codes import NONE, Codes, Grid
from pronghorn.ops.panels import dtype_of

Floats = NDArray[np.float32]

BLOCK = 1 << 16  # weights searched at a time: what stays in a core's cache
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
EVEN: Floats = np.ones(1, np.float32)  # the importance of inputs of which nothing is known


def fit(w: NDArray[Any], grid: Grid, importance: Floats = EVEN) -> Codes:
    """w (n_out, n_in) of any float dtype -> its codes on a grid whose scale is a float. importance: (n_in,)
    weight of an input's squared error, at least 0, or `EVEN`.

    Raises `CheckpointError` for a NaN, an infinity or a group too large for the scale's dtype.
    """
    n_out, n_in = w.shape
    group = grid.group or max(n_in, 1)
    n_groups = grid.n_groups(n_in)
    weight = _padded(np.broadcast_to(importance, n_in)[None], n_groups * group)
    even = importance.min() == importance.max() and n_in == n_groups * group
    weight = (EVEN if even else weight).reshape(1, -1, 1 if even else group)
    out = Codes(
        grid, np.empty((n_out, n_in), np.uint8), np.empty((n_out, n_groups), dtype_of(grid.scale)),
        np.empty((n_out, n_groups), dtype_of(grid.scale)) if grid.offset else NONE, NONE, NONE,
    )  # fmt: skip
    step = max(1, BLOCK // max(n_in, 1))

    def some(i: int) -> None:
        part = np.asarray(w[i : i + step], np.float32)
        if not np.isfinite(part).all():
            raise CheckpointError(
                f"a weight is NaN or infinite and has no {grid.bits}-bit form: the checkpoint is damaged"
            )
        cut = _padded(part, n_groups * group).reshape(len(part), n_groups, group)
        code, a, b = (_affine if grid.offset else _scaled)(cut, weight, grid)
        out.code[i : i + step] = code.reshape(len(part), -1)[:, :n_in]
        out.scale[i : i + step] = a
        if grid.offset:
            out.offset[i : i + step] = b

    _all(some, range(0, n_out, step))
    return out


def _all(do: Any, items: Iterable[int]) -> None:
    """On two threads or more, one for each processor: NumPy lets go of the interpreter in what counts."""
    items = list(items)
    if len(items) < 4:
        for i in items:
            do(i)
        return
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(do, items):
            pass


def _padded(a: Any, n: int) -> Any:
    return a if a.shape[1] == n else np.pad(a, ((0, 0), (0, n - a.shape[1])))


def stored(a: Floats, grid: Grid) -> Floats:
    """Scales or offsets as the grid's dtype holds them. Raises `CheckpointError` for what overflows."""
    with np.errstate(over="ignore"):
        out = a.astype(dtype_of(grid.scale)).astype(np.float32)
    if not np.isfinite(out).all():
        raise CheckpointError(
            f"a scale of {np.abs(a).max():g} does not fit {grid.scale}: the weights are too large for "
            "grouped codes; keep this matrix in another format, or one scale for a row (group=0)"
        )
    return out


def _dot(a: Floats, b: Floats) -> Floats:
    out: Floats = np.einsum("rgk,rgk->rg", a, b)
    return out


# ------------------------------------------------------------------------------ a scale alone


@cache
def _halves(table: tuple[int, ...]) -> Floats:
    """Nearest level of a table for floor(2 x) + 256, x from -128 to 127.5: boundaries between whole levels
    lie at multiples of a half."""
    x = np.arange(-256, 256) / 2 + 0.25
    near = np.abs(x[:, None] - np.asarray(table)[None]).argmin(axis=1)
    out: Floats = np.asarray(table, np.float32)[near]
    return out


def levels(x: Floats, grid: Grid) -> Floats:
    """The nearest levels, as float32; `x` is lost."""
    if grid.table:
        x *= 2
        np.floor(x, out=x)
        np.clip(x, -256, 255, out=x)
        x += 256
        return np.take(_halves(grid.table), x.astype(np.int16))
    low = -grid.zero
    np.rint(x, out=x)
    np.clip(x, low, low + (1 << grid.bits) - 1, out=x)
    return x


def codes(q: Floats, grid: Grid) -> NDArray[np.uint8]:
    """Codes of levels."""
    if grid.table:
        of = np.zeros(256, np.uint8)
        of[np.asarray(grid.table) + 128] = np.arange(16)
        return of[q.astype(np.int16) + 128]
    return (q + grid.zero).astype(np.uint8)


def _inverse(a: Floats) -> Floats:
    """1 / a, 0 where a is 0 or so small that there is no float for it."""
    with np.errstate(divide="ignore", over="ignore"):
        out: Floats = np.float32(1) / a
    out[~np.isfinite(out)] = 0
    return out


def _scaled(w: Floats, weight: Floats, grid: Grid) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """w (n, n_groups, group) -> codes of that shape, scales and zeros (n, n_groups)."""
    even = weight.size == 1
    ends = (grid.table[0], grid.table[-1]) if grid.table else (-grid.zero, (1 << grid.bits) - 1 - grid.zero)
    unit = 1.0 if not grid.table else 16.0  # about one step between levels
    most = np.abs(w).argmax(axis=2)
    top = np.take_along_axis(w, most[:, :, None], axis=2)[:, :, 0]  # signed, the largest magnitude
    wh = w if even else w * weight
    best, scale = np.full(top.shape, -1.0, np.float32), np.zeros_like(top)

    def solve(a: Floats) -> tuple[Floats, Floats]:
        """The part that codes near w / a explain, and the scale that explains it."""
        q = levels(w * _inverse(a)[:, :, None], grid)
        wq = _dot(wh, q)
        qq = _dot(q, q if even else q * weight)
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
    even = weight.size == 1
    last = np.float32((1 << grid.bits) - 1)
    wh = w if even else w * weight
    low, high = (f(w, axis=2) for f in (np.min, np.max))
    n = np.full(low.shape, w.shape[2], np.float32) if even else np.broadcast_to(weight.sum(2), low.shape)
    sw = wh.sum(axis=2)
    best = np.full(low.shape, np.inf, np.float32)
    scale, offset = np.zeros_like(low), np.zeros_like(low)

    def consider(a: Floats, b: Floats) -> None:
        q = (w - b[:, :, None]) * _inverse(a)[:, :, None]
        np.rint(q, out=q)
        np.clip(q, 0, last, out=q)
        qh = q if even else q * weight
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
