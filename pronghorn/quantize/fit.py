"""Codes of least squared error on a grid: the search that every rounding quantizer starts from.

For each group of inputs a few scales are tried that map its largest magnitude a little inside or past the
last level, on either side of a lopsided grid (-8..7) and so with either sign. The best scale for given codes
has a closed form (least squares), which also gives the error without computing it: with levels q, the part
of sum(w^2) that a*q explains is sum(wq)^2 / sum(q^2). The best candidate is refined by rounding and solving
in turn, and codes are rounded once more against the scale as stored, so that its own rounding costs nothing.
With an offset both unknowns are solved for. Weighted sums (`importance`) serve quantizers that know how
large each input usually is.

The search itself is native (`ops/cpu/kernels_fit.cpp`): it is what loading a model in fewer bits waits for.
Its sums may differ in the last bits from one instruction set to another, and so, rarely, may a code.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.ops.codes import NONE, Codes, Grid
from pronghorn.ops.cpu import _native
from pronghorn.ops.panels import dtype_of, numbers, raw

Floats = NDArray[np.float32]

KINDS = {"float32": 0, "bfloat16": 1, "float16": 2}  # of weights, as the native extension counts them
EVEN: Floats = np.zeros(0, np.float32)  # the importance of inputs of which nothing is known


def fit(w: NDArray[Any], grid: Grid, importance: Floats = EVEN) -> Codes:
    """w (n_out, n_in) of any float dtype -> its codes on a grid whose scale is a float. importance: (n_in,)
    weight of an input's squared error, at least 0, or `EVEN`.

    Raises `CheckpointError` for a NaN, an infinity or a group too large for the scale's dtype.
    """
    n_out, n_in = w.shape
    w = w if w.dtype.name in KINDS else w.astype(np.float32)
    factors = (n_out, grid.n_groups(n_in))
    out = Codes(
        grid, np.empty((n_out, n_in), np.uint8), np.empty(factors, dtype_of(grid.scale)),
        np.empty(factors, dtype_of(grid.scale)) if grid.offset else NONE, NONE, NONE,
    )  # fmt: skip
    ending, size = _native.fit(
        KINDS[w.dtype.name], w.view(np.uint16) if w.dtype.itemsize == 2 else w,
        np.ascontiguousarray(importance, np.float32), *numbers(grid),
        out.code, raw(out.scale), raw(out.offset),
    )  # fmt: skip
    if ending == 1:
        raise CheckpointError(
            f"a weight is NaN or infinite and has no {grid.bits}-bit form: the checkpoint is damaged"
        )
    if ending == 2:
        raise _too_large(size, grid)
    return out


def _too_large(size: float, grid: Grid) -> CheckpointError:
    return CheckpointError(
        f"a scale of {size:g} does not fit {grid.scale}: the weights are too large for "
        "grouped codes; keep this matrix in another format, or one scale for a row (group=0)"
    )


def stored(a: Floats, grid: Grid) -> Floats:
    """Scales or offsets as the grid's dtype holds them. Raises `CheckpointError` for what overflows."""
    with np.errstate(over="ignore"):
        out = a.astype(dtype_of(grid.scale)).astype(np.float32)
    if not np.isfinite(out).all():
        raise _too_large(np.abs(a).max(), grid)
    return out


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
