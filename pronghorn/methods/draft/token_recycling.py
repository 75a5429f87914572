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

With adaptive=true the chances are measured instead: for every kept row, which rank the token that came had
among the successors in the table (or that it had none), by level; the shape is made anew from them every
`EVERY` rows. (The paper names a tree that adapts as future work.) Drafts then depend on what was run
before, the output does not.

The table belongs to the instance: all sequences of an engine share it, 32 bytes per token of the
vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.draft._ranks import Ranks, Shape, shape, usual
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Ints, Traits

KEPT = 8  # successors per token: the width of the "top8" tap
EVERY = 64  # kept rows after which an adaptive tree is made anew


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


class _Tree:
    """The shape that is drafted, and what it is made from."""

    def __init__(self, nodes: int, depth: int, width: int) -> None:
        self.ranks = Ranks(KEPT)
        self._size = nodes, depth, width
        self._made = 0
        self.shape: Shape = shape(lambda level, rank: usual(rank), *self._size)

    def note(self, level: int, rank: int) -> None:
        self.ranks.note(level, rank)
        if self.ranks.noted - self._made >= EVERY:
            self._made = self.ranks.noted
            self.shape = shape(self.ranks.chance, *self._size)


@dataclass(frozen=True)
class TokenRecycling:
    nodes: int = 16  # nodes of the tree
    depth: int = 6  # levels of the tree
    width: int = 8  # children of a node at most
    adaptive: bool = False  # shape the tree by how often each rank was right

    traits = Traits(Guarantee.EXACT, taps=("top8",))

    def __post_init__(self) -> None:
        for name, top in (("nodes", 1024), ("depth", 64), ("width", KEPT)):
            if not 1 <= getattr(self, name) <= top:
                raise MethodError(f"token-recycling: {name} is from 1 to {top}, not {getattr(self, name)}")

    @cached_property
    def _table(self) -> _Table:
        return _Table()

    @cached_property
    def _tree(self) -> _Tree:
        return _Tree(self.nodes, self.depth, self.width)

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        return [self._one(s.tokens[-1], depth) for s, depth in zip(seqs, k, strict=True)]

    def _one(self, root: int, max_depth: int) -> Draft:
        """The shape filled from the table, without the nodes that have no token or lie too deep."""
        tokens: list[int] = []
        parents: list[int] = []
        number = {-1: -1}  # node of the shape -> node of the draft
        for i, (parent, rank, depth) in enumerate(self._tree.shape):
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
        if self.adaptive:  # before anything is written: the drafts were made from the table as it is
            for seq, draft, accept in zip(seqs, drafts, accepts, strict=True):
                self._measure(seq, _added(draft, accept))
        for seq, draft, accept, tap in zip(seqs, drafts, accepts, taps, strict=True):
            top = np.asarray(tap["top8"], np.int32)  # (1 + n_nodes, 8)
            depth = draft.depths()
            for i in sorted(range(draft.n), key=lambda i: (-depth[i], -i)):
                self._table.put(int(draft.tokens[i]), top[i + 1])
            added = _added(draft, accept)
            if seq.tokens[-len(added) :] == added:  # not so when the text was cut at its end
                self._table.put(seq.tokens[-len(added) - 1], top[0])

    def _measure(self, seq: Seq, added: list[int]) -> None:
        """Note which rank each token that came had among the successors of the one before it."""
        text = seq.tokens[-len(added) - 1 :]
        if text[1:] != added:
            return
        for level, (before, token) in enumerate(zip(text, added), 1):  # noqa: B905  (text is one longer)
            successors = self._table.get(before)
            if successors and successors[0] >= 0:
                self._tree.note(level, successors.index(token) if token in successors else -1)


def _added(draft: Draft, accept: Accept) -> list[int]:
    """The tokens of a step: those that stood, and the target's own."""
    return [*(int(draft.tokens[i]) for i in accept.path), accept.bonus]
