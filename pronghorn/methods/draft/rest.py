"""REST: continuations looked up in a datastore (He et al., 2023, arXiv 2311.08252, section 3).

The longest suffix of the text, `max_span` tokens down to `min_span`, that stands anywhere in the datastore is
followed: of what comes after it there, a trie is made, and its most frequent nodes are the draft. The file is
made by `pronghorn datastore build` from texts like those that the model will write.

Departures: where nothing is found nothing is drafted, instead of one fixed token; since a suffix of what
occurs occurs too, the longest is found by halving and not span by span; a suffix that stands in more than
`sample` places is followed from so many of them, evenly spread; 16 nodes and not 64, since rows are not free
on a CPU. How sure a node is: its share of its parent's continuations, less for few of them and for a short
suffix.

A datastore is shared by all who use the engine: what it holds can be learned from how fast answers come, so
it is no place for what one of them may not know of another. A request cannot name one.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.methods.draft._single import Fixed, Single
from pronghorn.methods.draft._trie import trie
from pronghorn.seq import Seq
from pronghorn.slots import DraftRoom
from pronghorn.types import Draft, Guarantee, Traits

DOUBT = 2.0  # unseen continuations that a suffix of one token is taken to have; longer ones have fewer


@dataclass(frozen=True)
class Rest(Single, Fixed):
    store: str  # the datastore: a file that `pronghorn datastore build` wrote
    max_span: int = 16  # longest suffix to look for
    min_span: int = 2  # shortest
    length: int = 10  # levels of the tree at most
    nodes: int = 16  # nodes of the tree at most
    sample: int = 256  # places that are followed at most

    def __post_init__(self) -> None:
        ranges = (
            ("max_span", 1, 32), ("min_span", 1, self.max_span), ("length", 1, 32), ("nodes", 1, 1024),
            ("sample", 1, 1 << 16),
        )  # fmt: skip
        for name, low, high in ranges:
            if not low <= getattr(self, name) <= high:
                raise MethodError(f"rest: {name} is from {low} to {high}, not {getattr(self, name)}")

    @property
    def traits(self) -> Traits:
        return Traits(Guarantee.EXACT, stores=(self.store,))

    def _one(self, seq: Seq, depth: int, room: DraftRoom) -> Draft:
        store = room.stores[self.store]
        span, low, high = store.find(seq.tokens, self.max_span, self.min_span)
        if not span:
            return Draft.empty()
        found = trie(store.after(span, low, high, min(depth, self.length), self.sample), self.nodes)
        return Draft(found.token, found.parent, score=found.chance(DOUBT / span))
