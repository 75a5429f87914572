"""Trees of ranks: which child ranks are worth a node, by a formula or by what was measured."""

from __future__ import annotations

import heapq
from collections.abc import Callable

LEVELS = 3  # told apart; what lies deeper counts as the last
WEIGHT = 16.0  # trials that the formula counts as
MEMORY = 1024.0  # trials that are remembered; older ones fade

Shape = tuple[tuple[int, int, int], ...]  # (parent node, child rank, depth), likeliest first


def usual(rank: int) -> float:
    """The chance that the child of a rank is right, before anything was measured."""
    return float(0.3 / (rank + 1) ** 2.3)


def shape(chance: Callable[[int, int], float], nodes: int, depth: int, width: int) -> Shape:
    """The `nodes` paths of greatest product of chance(level, rank); parents before children. Of equals the
    path of smaller ranks comes first."""
    heap: list[tuple[float, tuple[int, ...], int]] = [(-chance(1, r), (r,), -1) for r in range(width)]
    heapq.heapify(heap)
    out: list[tuple[int, int, int]] = []
    while heap and len(out) < nodes:
        minus, path, parent = heapq.heappop(heap)
        out.append((parent, path[-1], len(path)))
        if len(path) < depth:
            for rank in range(width):
                heapq.heappush(heap, (minus * chance(len(path) + 1, rank), (*path, rank), len(out) - 1))
    return tuple(out)


class Ranks:
    """How often the child of each rank was right, by level, once its parent was."""

    def __init__(self, width: int) -> None:
        self.noted = 0
        self._trials = [0.0] * LEVELS
        self._hits = [[0.0] * width for _ in range(LEVELS)]

    def note(self, level: int, rank: int) -> None:
        """rank: that of the token which came, -1 when it had none."""
        at = min(level, LEVELS) - 1
        if self._trials[at] >= MEMORY:
            self._trials[at] /= 2
            self._hits[at] = [h / 2 for h in self._hits[at]]
        self._trials[at] += 1
        if rank >= 0:
            self._hits[at][rank] += 1
        self.noted += 1

    def chance(self, level: int, rank: int) -> float:
        at = min(level, LEVELS) - 1
        return (self._hits[at][rank] + WEIGHT * usual(rank)) / (self._trials[at] + WEIGHT)
