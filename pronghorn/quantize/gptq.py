"""GPTQ (Frantar et al., 2022, arXiv 2210.17323, algorithm 1): what rounding an input's weights does wrong,
the weights of later inputs make good, as far as on the calibration text inputs can stand in for each other.

With H the mean of x x^T and U the upper Cholesky factor of its inverse, the rounding error of column j,
divided by U[j, j], is taken from the columns after it along row j of U, lazily in blocks. Departures: the
scales of a group are those of least squared error (`quantize.fit`) over the weights as they are when its turn
comes, each column weighted by what its error will cost, 1 / U[j, j]^2; H is summed in float32. Inputs are
taken in their own order: sorting them by importance would tear groups apart, which the kernels read in one
piece.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import CheckpointError
from pronghorn.ops.codes import NONE, Codes, Grid
from pronghorn.quantize.fit import codes, fit, levels
from pronghorn.quantize.seen import Seen

Floats = NDArray[np.float32]

BLOCK = 128  # columns between updates of all that follow; groups do not straddle it
ROWS = 16384  # outputs worked on at a time
DAMP = 0.01  # of the mean of H's diagonal, added to it


def gptq(w: NDArray[np.float32], grid: Grid, seen: Seen) -> Codes:
    """w (n_out, n_in) -> codes whose product differs least on what was seen. Rounding alone where nothing
    was. Raises `CheckpointError` for weights that have no codes."""
    if not seen.n:
        return fit(w, grid)
    upper = _factor(seen.hessian)
    dead = np.diagonal(seen.hessian) == 0
    parts = []
    for i in range(0, max(len(w), 1), ROWS):
        part = np.array(w[i : i + ROWS], np.float32)
        part[:, dead] = 0  # what is never multiplied need not cost a scale its precision
        parts.append(_rows(part, grid, upper))
    code, scale = (np.concatenate([getattr(p, name) for p in parts]) for name in ("code", "scale"))
    offset = np.concatenate([p.offset for p in parts]) if grid.offset else NONE
    return Codes(grid, code, scale, offset, NONE, NONE)


def _rows(w: Floats, grid: Grid, upper: Floats) -> Codes:
    """Some of the outputs; `w` is lost."""
    n_out, n_in = w.shape
    group = grid.group or n_in
    # of a column's error, once later columns have made good what they can, in units of the largest
    weight = np.square(np.diagonal(upper).min() / np.diagonal(upper))
    parts: list[Codes] = []
    code = np.empty((n_out, n_in), np.uint8)
    a = b = np.zeros(n_out, np.float32)
    for start in range(0, n_in, BLOCK):
        stop = min(start + BLOCK, n_in)
        errors = np.empty((n_out, stop - start), np.float32)
        for j in range(start, stop):
            if j % group == 0:
                end = min(j + group, n_in)
                parts.append(fit(np.ascontiguousarray(w[:, j:end]), grid, weight[j:end]))
                a, b = (x[:, 0] for x in parts[-1].factors())
            code[:, j], value = nearest(w[:, j], a, b, grid)
            errors[:, j - start] = (w[:, j] - value) / upper[j, j]
            w[:, j + 1 : stop] -= errors[:, j - start, None] * upper[None, j, j + 1 : stop]
        w[:, stop:] -= errors @ upper[start:stop, stop:]
    scale = np.concatenate([p.scale for p in parts], axis=1)
    offset = np.concatenate([p.offset for p in parts], axis=1) if grid.offset else NONE
    return Codes(grid, code, scale, offset, NONE, NONE)


def nearest(w: Floats, a: Floats, b: Floats, grid: Grid) -> tuple[NDArray[np.uint8], Floats]:
    """Codes (n,) of weights (n,) with scales a and offsets b, and the values that they stand for."""
    inverse = np.divide(1, a, out=np.zeros_like(a), where=a != 0)
    if grid.offset:
        q = np.clip(np.rint((w - b) * inverse), 0, (1 << grid.bits) - 1)
        return q.astype(np.uint8), a * q + b
    q = levels(w * inverse, grid)
    value: Floats = a * q
    return codes(q, grid), value


def _factor(hessian: Floats) -> Floats:
    """The upper Cholesky factor of the inverse of H, damped; more where H is too near to singular for its
    factor to exist. Inputs that were never seen count as if they were independent."""
    h = hessian.astype(np.float64)
    dead = np.diagonal(h) == 0
    h[dead, dead] = 1
    mean = float(np.diagonal(h).mean())
    for damp in (DAMP, 10 * DAMP, 100 * DAMP):
        damped = h + damp * mean * np.eye(len(h))
        try:
            lower = np.linalg.cholesky(np.linalg.inv(damped))
        except np.linalg.LinAlgError:
            continue
        if np.isfinite(lower).all():
            return np.ascontiguousarray(lower.T, np.float32)
    raise CheckpointError("the calibration text gives values that are not numbers: the model is damaged")
