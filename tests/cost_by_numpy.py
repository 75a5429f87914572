"""The curve of `_native.fit_steps`, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.cost import KNOTS

FLAT, ROUNDS, SURE, FAINT = 8, 6, 3, 1e-3


def fit(seen: NDArray[np.float64], price: float) -> tuple[list[float], float]:
    """Non-negative unknowns: seconds of one row, the slope of each piece, the price of a read."""
    rows, read, seconds = seen.T
    # sizes never seen: on the line between neighbours; beyond the last no cheaper than in proportion. One
    # or two steps of a size may have been held up: they count for less than that
    pure = np.maximum(seconds - price * read, 0.1 * seconds)
    group = np.ceil(np.log2(rows))
    there, times = np.unique(group, return_counts=True)
    known = there[times >= SURE] if times.max() >= SURE else there
    sizes, typical = np.array([(np.median(rows[group == g]), np.median(pure[group == g])) for g in known]).T
    knots = np.array(KNOTS, float)
    doubt = np.isin(np.log2(knots), there) & ~np.isin(np.log2(knots), known)
    likely = np.interp(knots, sizes, typical)
    likely *= np.maximum(1, knots / max(sizes[-1], FLAT))
    a = np.concatenate([_columns(rows, read), _columns(knots, np.zeros(len(knots)))])
    y = np.concatenate([seconds, likely])
    a /= y[:, None]  # errors count in proportion
    weight = np.concatenate([np.ones(len(rows)), np.where(doubt, SURE, FAINT)])
    size = np.sqrt(np.maximum((a * a).mean(axis=0), 1e-30))  # columns alike, for the solver
    a /= size
    old = np.zeros(len(size))
    old[-1] = price * size[-1]
    x = _positive(a, weight, old, np.ones(len(size)))
    for _ in range(ROUNDS):
        said = np.maximum(a @ x, 0.05)  # in proportion to what is predicted: half the steps take longer
        x = _positive(a, weight / (said * np.maximum(np.abs(said - 1), 0.02 * said)), old, x)
    x /= size
    return [float(t) for t in _columns(knots, np.zeros(len(knots))) @ x], float(x[-1])


def _columns(rows: NDArray[Any], read: NDArray[Any]) -> NDArray[np.float64]:
    """What each unknown is multiplied with: 1, the rows within each piece, the reads."""
    low = np.array(KNOTS[:-1], float)
    part = np.clip(rows[:, None] - low, 0, low)
    part[:, -1] = np.maximum(rows - low[-1], 0)
    return np.concatenate([np.ones((len(rows), 1)), part, read[:, None].astype(float)], axis=1)


def _positive(
    a: NDArray[Any], weight: NDArray[Any], old: NDArray[Any], x: NDArray[Any]
) -> NDArray[np.float64]:
    """Weighted least squares for a x = 1 with x >= 0, starting from x; of what the data leave open, the
    price of a read stays as it was."""
    left = (a * weight[:, None]).T @ a
    right = a.T @ weight + FAINT * old
    left[np.diag_indices_from(left)] += 1e-9
    left[-1, -1] += FAINT
    used, x = x > 0, np.maximum(x, 0)
    for _ in range(4 * len(x)):  # Lawson and Hanson's active sets, from where the last fit ended
        best = np.zeros(len(x))
        best[used] = np.linalg.solve(left[np.ix_(used, used)], right[used])
        if (low := used & (best <= 0)).any():
            step = (x[low] / np.maximum(x[low] - best[low], 1e-300)).min()
            x = x + step * (best - x)
            used &= ~(low & (x <= 1e-12))
            continue
        x = best
        gain = np.where(used, 0, right - left @ x)
        if gain.max() <= 1e-9:
            break
        used[gain.argmax()] = True
    return x
