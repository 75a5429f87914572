"""What calibration saw of the inputs of a product."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
ROWS = 4096  # rows whose products are summed at a time


@dataclass(frozen=True)
class Seen:
    """Of inputs x (n, n_in): hessian (n_in, n_in), the mean of x x^T, float32; mean (n_in,) of |x|; n rows,
    0 where nothing was seen (then the others are empty)."""

    hessian: Floats
    mean: Floats
    n: int

    @property
    def importance(self) -> Floats:
        """(n_in,) mean square of each input, a little above 0."""
        d = np.diagonal(self.hessian)
        out: Floats = d + np.float32(1e-6) * max(float(d.mean()), 1e-30)
        return out


UNSEEN = Seen(np.zeros((0, 0), np.float32), np.zeros(0, np.float32), 0)


def look(x: Floats) -> Seen:
    """x (n, n_in)."""
    n, n_in = x.shape
    if not n:
        return UNSEEN
    hessian, mean = np.zeros((n_in, n_in), np.float32), np.zeros(n_in, np.float64)
    for i in range(0, n, ROWS):
        part = x[i : i + ROWS]
        hessian += part.T @ part
        mean += np.abs(part).sum(axis=0, dtype=np.float64)
    hessian /= n
    return Seen(hessian, (mean / n).astype(np.float32), n)
