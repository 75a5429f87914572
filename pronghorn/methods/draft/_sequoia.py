"""The best shape and size of a draft tree for the acceptance measured (Sequoia, Chen et al., 2024,
arXiv 2402.12374, sections 4.1 and 4.3).

Acceptance is a table: the chance that the child of some rank is the one to stand, once its parent, at some
depth, stands. The paper's depends on the rank alone; deeper children of a weak drafter stand less often, so
here there is a row for each depth. A tree is worth the sum over its nodes of the product of chances along
their paths, and the best tree of n nodes is found exactly by dynamic programming over (depth, rank, n).

The table depends on how drafts are drawn and on the temperature: keep one for each.
"""

from __future__ import annotations

import heapq
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft

Table = tuple[tuple[float, ...], ...]  # by depth of the parent, then by rank of the child
Shape = tuple[int, ...]  # parent of each node, -1: the pending token

DEPTH, WIDTH = 8, 8
FIRST, LESS = 0.6, 0.35  # acceptance of a first child, and what is left of it for the next, until measured
USUAL: Table = ((*(FIRST * LESS**rank for rank in range(WIDTH)),),) * DEPTH
MEMORY = 256.0  # trials that are remembered
WEIGHT = 8.0  # trials that a guess counts as
SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 256)
UNPRICED = 8  # nodes while nothing is known of costs


@lru_cache(maxsize=256)
def _solved(accept: Table, nodes: int) -> tuple[list[NDArray[np.float64]], list[list[NDArray[np.int64]]]]:
    """worth[d][m]: of the best m nodes below a node at depth d; taken[d][b][m]: of m nodes for its children
    from rank b on, how many child b has, itself counted. Where it has none there are no younger ones."""
    i = np.arange(nodes + 1)
    left = i[:, None] - i[None, :]  # by (nodes, what child b has of them)
    worth: list[NDArray[np.float64]] = [np.zeros(nodes + 1)]
    taken: list[list[NDArray[np.int64]]] = []
    for chances in reversed(accept):
        below = np.concatenate([[0.0], 1 + worth[0][:-1]])
        best = np.zeros(nodes + 1)
        choices: list[NDArray[np.int64]] = []
        for chance in reversed(chances):
            value = np.where(left >= 0, best[np.maximum(left, 0)] + chance * below[None, :], -np.inf)
            value[:, 0] = 0.0
            choices.insert(0, value.argmax(axis=1))
            best = value.max(axis=1)
        worth.insert(0, best)
        taken.insert(0, choices)
    return worth, taken


def expected(accept: Table, nodes: int) -> NDArray[np.float64]:
    """Tokens of a step, its bonus included, for the best tree of 0, 1, ... `nodes` nodes."""
    return 1 + _solved(accept, nodes)[0][0]


@lru_cache(maxsize=256)
def shape(accept: Table, nodes: int) -> Shape:
    """The best tree of at most `nodes` nodes, best nodes first, parents and elder siblings before others."""
    _, taken = _solved(accept, nodes)

    def children(depth: int, n: int) -> list[int]:
        """Nodes of each child's subtree."""
        sizes: list[int] = []
        for choice in taken[depth]:
            if not (m := int(choice[n])):
                break
            sizes.append(m)
            n -= m
        return sizes

    parents: list[int] = []
    heap: list[tuple[float, int, int, int, list[int], int]] = []

    def offer(node: int, depth: int, worth: float, sizes: list[int], rank: int) -> None:
        if rank < len(sizes):
            chance = worth * accept[depth][rank]
            heapq.heappush(heap, (-chance, node, rank, depth, sizes, len(heap)))

    if accept:
        offer(-1, 0, 1.0, children(0, nodes), 0)
    worths = {-1: 1.0}
    while heap:
        minus, node, rank, depth, sizes, _ = heapq.heappop(heap)
        new = len(parents)
        parents.append(node)
        worths[new] = -minus
        offer(node, depth, worths[node], sizes, rank + 1)
        if sizes[rank] > 1:
            offer(new, depth + 1, worths[new], children(depth + 1, sizes[rank] - 1), 0)
    return tuple(parents)


def bushy(nodes: int, depth: int) -> Shape:
    """As many children for all nodes of a level, no fewer than on the next: the fullest such tree."""
    branch = [1] * depth
    while True:
        more = [[b + (i == level) for i, b in enumerate(branch)] for level in range(depth)]
        fit = [m for m in more if sum(np.cumprod(m)) <= nodes and m == sorted(m, reverse=True)]
        if not fit:
            break
        branch = min(fit, key=max)
    parents: list[int] = []
    last = [-1]
    for b in branch:
        parents += [p for p in last for _ in range(b)]
        last = list(range(len(parents) - b * len(last), len(parents)))
    return tuple(parents)


def size(accept: Table, room: DraftRoom, most: int, level: float = 0.0, seqs: int = 1) -> tuple[int, int]:
    """(nodes, depth) of the tree that gives the most tokens per second on this machine, (0, 0) where none
    pays. level: seconds that a level takes to draft; seqs: sequences in the step that draft such a tree."""
    most = min(most, room.rows // max(1, seqs))
    plain = room.cost.predict(room.base, room.read)
    if plain <= 0 or most <= 0:
        return (min(most, UNPRICED), len(accept)) if most > 0 else (0, 0)
    each = room.read // max(1, room.base)
    best, at = seqs / plain, (0, 0)
    for depth in range(1, len(accept) + 1):
        tokens = expected(accept[:depth], most)
        for n in [s for s in SIZES if s < most] + [most]:
            rows = seqs * n
            seconds = room.cost.predict(room.base + rows, room.read + rows * each) + depth * level
            if n >= depth and seqs * tokens[n] / seconds > best * (1 + 1e-9):
                best, at = seqs * float(tokens[n]) / seconds, (n, depth)
    return at


class Ranks:
    """Acceptance by depth and rank, counted. Old counts fade."""

    def __init__(self) -> None:
        self._trials = np.full((DEPTH, WIDTH), WEIGHT)
        self._stood = np.array(USUAL) * WEIGHT

    def note(self, draft: Draft, accept: Accept) -> None:
        """What became of a draft: at each node that stood, which of its children did."""
        children: dict[int, list[int]] = {}
        for i, p in enumerate(draft.parent.tolist()):
            children.setdefault(p, []).append(i)
        for depth, node in enumerate([-1, *accept.path][:DEPTH]):
            mine = children.get(node, [])[:WIDTH]
            fade = np.minimum(1.0, MEMORY / (self._trials[depth, : len(mine)] + 1))
            stood = np.isin(mine, accept.path)
            self._trials[depth, : len(mine)] = (self._trials[depth, : len(mine)] + 1) * fade
            self._stood[depth, : len(mine)] = (self._stood[depth, : len(mine)] + stood) * fade

    def table(self) -> Table:
        """Rounded, so that a shape lasts for a while."""
        return tuple(tuple(float(x) for x in row) for row in np.round(self._stood / self._trials, 2))
