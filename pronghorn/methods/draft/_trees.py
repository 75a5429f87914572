"""Trees of drafted tokens, grown level by level from a draft model's distributions.

    chain     one token a level
    best      the paths of highest probability, `nodes` tokens in all; never drawn
    rsd-c     so many children of every node of a level, drawn without replacement (Recursive Speculative
              Decoding with constant branching, Jeon et al., 2024, arXiv 2402.14160)
    rsd-s     stochastic beam search (same paper): paths drawn without replacement, `nodes / depth` a level
    sequoia   the shape that is best for the acceptance measured (`_sequoia.py`), children drawn without
              replacement
    multi     all children of a node but the last are the likeliest tokens, the last is drawn from the rest
              (the greedy scheme of Hu et al., 2025, arXiv 2502.18779), for the verifier multi-draft

Siblings come in the order in which they were drawn, which is the one to verify them in; of a node's children
only the last may be dropped, and never for what token it is. So the score of a drawn node does not depend on
its token, and whoever prunes by scores keeps the distribution. Where a distribution has fewer tokens than a
node was to have children it gets fewer.

`greedy`: the likeliest tokens take the place of drawn ones, for temperature 0; such drafts have no q.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from pronghorn import rng
from pronghorn.methods.draft._growers import Beam, Best, Child, Multi, Noise, Probs, Shaped
from pronghorn.methods.draft._sequoia import USUAL, Table, bushy, shape
from pronghorn.seq import Seq
from pronghorn.types import Draft

KINDS = ("chain", "best", "rsd-c", "rsd-s", "sequoia", "multi")


class Grower(Protocol):
    """One draft's tree. Node i is the i-th child that it returned; -1 is the pending token, at depth 0.

    sampled: its tokens are drawn, so its drafts carry q.
    """

    sampled: bool

    def grow(self, depth: int, frontier: Sequence[int], q: Probs) -> list[Child]:
        """Children of the nodes `frontier`, which are at `depth`, in the order in which they are verified.
        q (len(frontier), n_vocab): the draft model's distributions after those nodes."""
        ...

    def open(self) -> list[int]:
        """Nodes of the last level that may have children: the frontier to come."""
        ...

    def order(self) -> list[int]:
        """The nodes to verify, best first, parents before children."""
        ...

    def rows(self, q: Probs, tokens: Sequence[int]) -> Probs:
        """What each of a node's children was drawn from; q repeated means without replacement."""
        ...


def grower(
    kind: str, nodes: int, depth: int, noise: Noise, greedy: bool = False, accept: Table = USUAL
) -> Grower:
    """A tree of `nodes` tokens at most, `depth` at most deep. noise: a stream for each depth; accept: chance
    of each child by depth and rank, for sequoia."""
    nodes, depth = max(nodes, 0), max(min(nodes, depth), 0)
    if kind == "best":
        return Best(nodes)
    if kind == "rsd-s":
        return Beam(nodes // max(depth, 1), depth, noise, greedy)
    if kind == "multi":
        return Multi(bushy(nodes, depth), noise, greedy)
    shapes = {"chain": lambda: tuple(range(-1, depth - 1)), "rsd-c": lambda: bushy(nodes, depth),
              "sequoia": lambda: shape(accept[:depth], nodes)}  # fmt: skip
    return Shaped(shapes[kind](), noise, greedy)


def noise(seq: Seq) -> Noise:
    """The streams that a draft of this sequence draws from."""
    return lambda depth: rng.stream(seq.request.seed, seq.branch, len(seq.tokens) + depth, rng.DRAFT)


class Growth:
    """A draft while it grows: run the draft model over `draft`, hand its distributions after the nodes
    `frontier` to `extend`, and so on until there is no frontier. `done` is the draft to verify."""

    def __init__(self, grower: Grower, depth: int) -> None:
        self._grower, self._left, self._level = grower, depth, 0
        self.frontier: list[int] = [-1] if depth > 0 else []
        self._tokens: list[int] = []
        self._parent: list[int] = []
        self._score: list[float] = []
        self._q: list[Probs] = []

    @property
    def draft(self) -> Draft:
        return Draft(np.array(self._tokens, np.int32), np.array(self._parent, np.int32))

    def extend(self, q: Probs) -> None:
        before = len(self._tokens)
        at = {node: i for i, node in enumerate(self.frontier)}
        for parent, token, score in self._grower.grow(self._level, self.frontier, q):
            self._parent.append(parent)
            self._tokens.append(token)
            self._score.append(score)
        if self._grower.sampled:
            new = range(before, len(self._tokens))
            self._q += [q[0]] * len(new)
            for node in self.frontier:
                own = [i for i in new if self._parent[i] == node]
                rows = self._grower.rows(q[at[node]], [self._tokens[i] for i in own])
                for i, row in zip(own, rows, strict=True):
                    self._q[i] = row
        self._level += 1
        self._left -= 1
        self.frontier = self._grower.open() if self._left and len(self._tokens) > before else []

    def done(self) -> Draft:
        order = self._grower.order()
        number = {-1: -1} | {node: i for i, node in enumerate(order)}
        return Draft(
            np.array([self._tokens[i] for i in order], np.int32),
            np.array([number[self._parent[i]] for i in order], np.int32),
            np.stack([self._q[i] for i in order]) if self._q else np.zeros((0, 0)),
            np.array([self._score[i] for i in order]),
        )  # fmt: skip
