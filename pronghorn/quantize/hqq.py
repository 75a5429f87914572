"""HQQ (Badri and Shaji, 2023, "Half-Quadratic Quantization of Large Machine Learning Models"): offsets found
by a robust fit, without text.

For each group the scale is that of the range, and the offset minimises the p-norm of the error, p = 0.7,
which cares for the many weights more than for the few outliers. Half-quadratic splitting alternates between
a shrinkage of the error and the mean of what is left. The best offset met is kept, so the mean error is never
above that of the start. Departures: the stored offset is a float16, as the scale, and codes are rounded once
more against both as stored.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.ops.codes import NONE, Codes, Grid
from pronghorn.quantize.fit import stored

Floats = NDArray[np.float32]

P, BETA, GROW, ROUNDS = 0.7, 10.0, 1.01, 20  # of the paper: norm, weight of the split, its growth, at most
BLOCK = 1 << 18  # weights at a time


def hqq(w: NDArray[np.float32], grid: Grid) -> Codes:
    """w (n_out, n_in) -> codes with an offset for each group. Raises `MethodError` for a grid without."""
    if grid.offset != "value":
        raise MethodError("hqq finds offsets, and this format has none: add symmetric=false to its options")
    n_out, n_in = w.shape
    n_groups = grid.n_groups(n_in)
    code = np.empty((n_out, n_in), np.uint8)
    ab = np.empty((2, n_out, n_groups), np.float16)
    step = max(1, BLOCK // n_in)
    pad = n_groups * grid.group - n_in
    for i in range(0, n_out, step):
        # what lies past the end repeats the last weight, which widens no range
        part = np.pad(np.asarray(w[i : i + step], np.float32), ((0, 0), (0, pad)), mode="edge")
        cut = part.reshape(len(part), n_groups, grid.group)
        q, a, b = _search(cut, grid)
        code[i : i + step] = q.reshape(len(part), -1)[:, :n_in]
        ab[:, i : i + step] = a, b
    return Codes(grid, code, ab[0], ab[1], NONE, NONE)


def _search(w: Floats, grid: Grid) -> tuple[NDArray[np.uint8], Floats, Floats]:
    """w (n, n_groups, group) -> codes, scales and offsets."""
    last = np.float32((1 << grid.bits) - 1)
    low, high = w.min(axis=2), w.max(axis=2)
    flat = high - low < 1e-4 * np.maximum(np.abs(high), np.abs(low))  # a constant is an offset alone
    a = stored(np.where(flat, 0, (high - low) / last), grid)
    inverse = np.divide(1, a, out=np.zeros_like(a), where=a > 0)[:, :, None]
    zero = np.where(flat, 0, -low * inverse[:, :, 0])
    best, least = zero, np.full(zero.shape, np.inf, np.float32)
    beta = BETA
    for _ in range(ROUNDS + 1):
        q = np.clip(np.rint(w * inverse + zero[:, :, None]), 0, last)
        error = w - (q - zero[:, :, None]) * a[:, :, None]
        size = np.abs(error)
        mean = size.mean(axis=2)
        better = mean < least
        if not better.any():
            break
        best, least = np.where(better, zero, best), np.where(better, mean, least)
        with np.errstate(divide="ignore"):
            kept = np.sign(error) * np.maximum(size - size ** np.float32(P - 1) / np.float32(beta), 0)
        zero = (q - (w - kept) * inverse).mean(axis=2)
        beta *= GROW
    b = stored(np.where(flat, (high + low) / 2, -best * a), grid)
    q = np.clip(np.rint((w - b[:, :, None]) * inverse), 0, last)
    return q.astype(np.uint8), a, b
