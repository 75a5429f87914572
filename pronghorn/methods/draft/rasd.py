"""RASD: a drafter's tree and what retrieval finds, as one tree (Quan et al., 2025, arXiv 2503.03434).

`drafter` makes a tree. What followed the end of the text where it stood before, in the text itself or in a
datastore, makes another, which is pruned: paths whose first token is not among the `first` likeliest first
tokens of the drafter's tree are dropped (nothing is, where that tree is empty), and of the rest the `nodes`
of greatest weight stay, a path's weight being the drafter's chance of its first token times the share of
continuations that begin with it. The two are fused by longest prefixes: a path runs along the nodes that are
there already and goes on with its own. Nodes are ordered by the chance of their paths.

Departures: the paper's drafter is a trained head (EAGLE-2); here it is any drafter that needs no training.
Where one says nothing of its chances, a first child is taken to be right with 1/2, the next with 1/8, 1/18
and so on. A drafter that samples its tree loses its distributions: a fused tree is no sample, so it can be
verified by matching only, whatever the verifier. Of the text and the datastore the one with the longer match
is followed, the text where they are alike. `length` bounds how deep retrieved paths go.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from numpy.typing import NDArray

from pronghorn.compose import parse
from pronghorn.errors import MethodError
from pronghorn.methods.draft._fuse import Fused, pruned
from pronghorn.methods.draft._recent import follow
from pronghorn.seq import Seq
from pronghorn.slots import Drafter, DraftRoom
from pronghorn.types import Accept, Draft, Guarantee, Ints, Traits

DOUBT = 2.0  # unseen continuations that a suffix of one token is taken to have; longer ones have fewer
SAMPLE = 256  # places of a datastore that are followed at most
RECENT = 32  # places of the text


@dataclass(frozen=True)
class Rasd:
    drafter: str = "token-recycling"  # the other drafter, with its options as in --use
    store: str = ""  # a datastore to look up in beside the text: a file of `pronghorn datastore build`
    first: int = 10  # likeliest first tokens of the drafter's tree that a retrieved path may begin with
    nodes: int = 16  # retrieved nodes at most
    length: int = 10  # levels of the retrieved tree at most
    max_span: int = 16  # longest suffix to look for

    def __post_init__(self) -> None:
        for name, low, high in (("first", 1, 64), ("nodes", 1, 1024), ("length", 1, 64), ("max_span", 2, 32)):
            if not low <= getattr(self, name) <= high:
                raise MethodError(f"rasd: {name} is from {low} to {high}, not {getattr(self, name)}")
        if self.drafter.partition(":")[0].strip() in ("rasd", "auto"):
            raise MethodError(f"rasd: drafter is one that makes its own drafts, not {self.drafter}")
        _ = self._inner

    @property
    def traits(self) -> Traits:
        own = self._inner.traits
        stores = {*own.stores, *([self.store] if self.store else [])}
        return Traits(Guarantee.EXACT, taps=own.taps, models=own.models, stores=tuple(sorted(stores)))

    @cached_property
    def _inner(self) -> Drafter:
        drafter: Drafter = parse(f"draft.{self.drafter}", files=False)[1]
        return drafter

    def propose(self, seqs: Sequence[Seq], k: Sequence[int], room: DraftRoom) -> list[Draft]:
        made = self._inner.propose(seqs, k, room)
        return [self._one(s, d, draft, room) for s, d, draft in zip(seqs, k, made, strict=True)]

    def _one(self, seq: Seq, depth: int, made: Draft, room: DraftRoom) -> Draft:
        made = made.clip(depth)
        tree = Fused(made)
        if depth > 0:
            span, rows = self._retrieve(seq, min(depth, self.length), room)
            if span:
                tree.join(pruned(rows, tree.first(self.first), self.nodes), DOUBT / span)
        return tree.draft()

    def _retrieve(self, seq: Seq, length: int, room: DraftRoom) -> tuple[int, Ints]:
        """The length of the longest match, and what followed it."""
        span, rows = follow(seq.memory(self), seq.tokens, self.max_span, RECENT, length)
        if self.store:
            store = room.stores[self.store]
            other, low, high = store.find(seq.tokens, self.max_span, max(2, span + 1))
            if other:
                return other, store.after(other, low, high, length, SAMPLE)
        return span, rows

    def observe(
        self, seqs: Sequence[Seq], drafts: Sequence[Draft], accepts: Sequence[Accept],
        taps: Sequence[dict[str, NDArray[Any]]],
    ) -> None:  # fmt: skip
        self._inner.observe(seqs, drafts, accepts, taps)
