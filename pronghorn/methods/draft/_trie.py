"""Continuations counted: the trie of those that are found most often."""

from __future__ import annotations

from typing import Any, NamedTuple

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
    equals the shallower is taken first, then the one whose parent comes first, or with the smaller token."""
    levels: list[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]] = []
    at = np.full(len(rows), -1, np.int64)  # node that each continuation has come to
    base, live = 0, np.arange(len(rows))
    for column in rows.T:
        live = live[column[live] >= 0]
        if not len(live):
            break
        keys, inverse, count = np.unique(
            (at[live] + 1 << 32) + column[live], return_inverse=True, return_counts=True
        )
        kept = np.sort(np.argsort(-count, kind="stable")[:most])  # the others cannot be among the best of all
        number = np.full(len(keys), -1)
        number[kept] = base + np.arange(len(kept))
        levels.append((keys[kept] & 0xFFFFFFFF, (keys[kept] >> 32) - 1, count[kept]))
        at[live] = number[inverse]
        live = live[at[live] >= 0]
        base += len(kept)
    if not levels:
        none = np.zeros(0, np.int32)
        return Trie(none, none, none, len(rows))
    token, parent, count = (np.concatenate(x) for x in zip(*levels, strict=True))
    best = np.argsort(-count, kind="stable")[:most]  # a child counts no more than its parent, and lies behind
    number = np.full(base + 1, -1)
    number[best] = np.arange(len(best))
    above = np.where(parent[best] < 0, base, parent[best])
    return Trie(token[best].astype(np.int32), number[above].astype(np.int32), count[best].astype(np.int32),
                len(rows))  # fmt: skip
