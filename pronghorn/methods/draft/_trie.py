"""Continuations counted: the trie of those that are found most often."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pronghorn.types import Ints


class Trie(NamedTuple):
    """Nodes by falling count, parents first. times: continuations that begin so; total: all."""

    token: Ints
    parent: Ints
    times: Ints
    total: int

    def chance(self, doubt: float) -> NDArray[np.float64]:
        """Share of each node among its parent's continuations. doubt: further continuations, which nobody has
        seen, that every parent is taken to have."""
        above = np.where(self.parent < 0, self.total, self.times[self.parent]) if len(self.times) else 0
        shares: NDArray[np.float64] = self.times / (above + doubt)
        return shares


def trie(rows: Ints, most: int) -> Trie:
    """The `most` nodes of greatest count. rows: (n, length) continuations, -1 behind the end of one. Of
    equals the shallower is taken first, then the one whose path has the smaller tokens."""
    n, length = rows.shape
    if not n:
        none = np.zeros(0, np.int32)
        return Trie(none, none, none, 0)
    rows = rows[np.lexsort(rows.T[::-1])]
    begins = np.ones((n, length), np.bool_)  # where another path begins, level by level
    begins[1:] = np.logical_or.accumulate(rows[1:] != rows[:-1], axis=1)
    levels = begins.T.ravel()
    at = np.flatnonzero(levels)  # nodes by level, then by path; the ends of texts among them
    times = np.diff(at, append=n * length)
    token = rows.T.ravel()[at]
    above = np.where(at < n, -1, (np.cumsum(levels) - 1)[at - n])
    best = np.argsort(np.where(token < 0, 0, -times), kind="stable")[:most]  # parents lie before
    best = best[token[best] >= 0]
    number = np.full(len(at) + 1, -1)
    number[best] = np.arange(len(best))
    return Trie(token[best], number[above[best]].astype(np.int32), times[best].astype(np.int32), n)
