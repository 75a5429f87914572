"""Token Recycling (Luo et al., 2024, arXiv 2408.08696).

A table holds, for every token of the vocabulary, the 8 tokens that the target last found likeliest after
it. A draft is a tree of fixed shape filled from the table; every row that was run, kept or not, writes
its own 8 likeliest successors back.

The shape: a node of child rank r is taken to be right with probability 0.3 / (r + 1)^2.3 given its
parent, and the `nodes` paths of greatest product are drafted. With 80 nodes, depth 6 and width 8 that
gives levels 8, 23, 25, 17, 6, 1, close to the paper's tree (8, 21, 25, 15, 8, 3); the default is smaller
since rows are not free on a CPU. Departures: entries never written are left out instead of meaning token
0; rows write deepest first, so that drafts are the same from run to run and the row nearest to the kept
text has the last word.

The table belongs to the instance: all sequences of an engine share it, 32 bytes per token of the
vocabulary.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Ints, Traits

KEPT = 8  # successors per token: the width of the "top8" tap


class _Table:
    """Successors by falling likelihood: rows (n, KEPT) int32, -1 where nothing was seen."""

    def __init__(self) -> None:
        self.rows: Ints = np.full((0, KEPT), -1, np.int32)

    def get(self, token: int) -> list[int]:
        return self.rows[token].tolist() if token < len(self.rows) else []

    def put(self, token: int, successors: Ints) -> None:
        highest = max(token, int(successors.max()))
        if highest >= len(self.rows):
            more = max(highest + 1, 2 * len(self.rows)) - len(self.rows)
            self.rows = np.concatenate([self.rows, np.full((more, KEPT), -1, np.int32)])
        self.rows[token] = successors


@dataclass(frozen=True)
class TokenRecycling:
    nodes: int = 16  # nodes of the tree
    depth: int = 6  # levels of the tree
    width: int = 8  # children of a node at most

    traits = Traits(Guarantee.EXACT, taps=("top8",))

    def __post_init__(self) -> None:
        for name, top in (("nodes", 1024), ("depth", 64), ("width", KEPT)):
            if not 1 <= getattr(self, name) <= top:
                raise MethodError(f"token-recycling: {name} is from 1 to {top}, not {getattr(self, name)}")

    @cached_property
    def _table(self) -> _Table:
        return _Table()

    @cached_property
    def _shape(self) -> tuple[tuple[int, int, int], ...]:
        """(parent node, child rank, depth) of each node, likeliest first: parents before children."""
        chance = [0.3 / (rank + 1) ** 2.3 for rank in range(self.width)]
        heap: list[tuple[float, tuple[int, ...], int]] = [
            (-chance[rank], (rank,), -1) for rank in range(self.width)
        ]
        out: list[tuple[int, int, int]] = []
        while heap and len(out) < self.nodes:
            minus, path, parent = heapq.heappop(heap)
            out.append((parent, path[-1], len(path)))
            if len(path) < self.depth:
                for rank in range(self.width):
                    heapq.heappush(heap, (minus * chance[rank], (*path, rank), len(out) - 1))
        return tuple(out)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        return [self._one(s.tokens[-1], depth) for s, depth in zip(seqs, k, strict=True)]

    def _one(self, root: int, max_depth: int) -> Draft:
        """The shape filled from the table, without the nodes that have no token or lie too deep."""
        tokens: list[int] = []
        parents: list[int] = []
        number = {-1: -1}  # node of the shape -> node of the draft
        for i, (parent, rank, depth) in enumerate(self._shape):
            if depth > max_depth or parent not in number:
                continue
            at = number[parent]
            successors = self._table.get(root if at < 0 else tokens[at])
            if successors and successors[rank] >= 0:
                number[i] = len(tokens)
                tokens.append(successors[rank])
                parents.append(at)
        return Draft(np.asarray(tokens, np.int32), np.asarray(parents, np.int32))

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        for seq, draft, accept, tap in zip(seqs, drafts, accepts, taps, strict=True):
            top = np.asarray(tap["top8"], np.int32)  # (1 + n_nodes, 8)
            depth = draft.depths()
            for i in sorted(range(draft.n), key=lambda i: (-depth[i], -i)):
                self._table.put(int(draft.tokens[i]), top[i + 1])
            added = [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]
            if seq.tokens[-len(added) :] == added:  # not so when the text was cut at its end
                self._table.put(seq.tokens[-len(added) - 1], top[0])
