"""Speculative sampling (Leviathan et al., 2023, arXiv 2211.17192; Chen et al., 2023, arXiv 2302.01318).

A token x drawn from the draft's q stands with probability min(1, p(x) / q(x)); the first that does not is
replaced by a draw from norm([p - q]+), and after a chain that stands whole the target adds its own. The text
has the target's distribution, and a node stands with probability sum min(p, q), more often than matching
samples lets it (sum p q).

Of a tree only the first child of each node is looked at. A draft without q was not drawn; it is matched with
samples (`match`), as every draft is at temperature 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.verify._sampled import drawn, one_by_one, walk
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Rejection:
    traits = Traits(Guarantee.DISTRIBUTION)

    def verify(self, p: Target, draft: Draft) -> Accept:
        if not drawn(p, draft):
            return p.walk(draft)
        return walk(p, draft, lambda row, own: one_by_one(p, draft, row, own[:1]))
