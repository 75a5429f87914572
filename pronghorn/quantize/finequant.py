"""FineQuant (Kim et al., 2023, arXiv 2308.09723, section 3): how many inputs share a scale is chosen for each
matrix, from its weights alone.

From one scale for a whole row the group is halved as long as that makes the relative error smaller by a
factor: a matrix with outliers in places gets small groups, one without them does not pay for scales. The
paper leaves its threshold to the reader; here a finer group must bring the error below 0.92 of the coarser
one's, and the group that the format names is the smallest. Departures: after a whole row come groups of 128,
64 and 32, which kernels know; scales are those of least squared error (`quantize.fit`), not of the largest
magnitude.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pronghorn.ops.codes import Codes, Grid
from pronghorn.quantize.fit import fit

ALPHA = 0.92  # a finer grouping must bring the error below this share of the coarser one's
GROUPS = (128, 64, 32)
ROWS = 1024  # rows looked at to choose, evenly spread


def finequant(w: NDArray[np.float32], grid: Grid) -> Codes:
    """w (n_out, n_in) -> codes on `grid` with a group of its own choice, no smaller than `grid.group`."""
    return fit(w, choose(w, grid))


def choose(w: NDArray[np.float32], grid: Grid) -> Grid:
    """`grid` with the group for this matrix."""
    some = np.asarray(w[:: max(1, len(w) // ROWS)], np.float32)
    tried = [replace(grid, group=g) for g in GROUPS if grid.group <= g < some.shape[1]] if grid.group else []
    if not grid.offset:  # an offset for a whole row has no kernel
        tried = [replace(grid, group=0, scale="float32"), *tried]
    best, least = grid, np.inf
    for one in tried:
        error = float(((fit(some, one).dense() - some) ** 2).sum()) ** 0.5
        if error >= ALPHA * least:
            break
        best, least = one, error
    return best
