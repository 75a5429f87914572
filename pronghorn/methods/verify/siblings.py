"""Recursive rejection of siblings (Jeon et al., 2024, arXiv 2402.14160; Sequoia, Chen et al., 2024,
arXiv 2402.12374; with independent draws SpecInfer, Miao et al., 2023, arXiv 2305.09781).

The children of a node are looked at in the order in which they were drawn: x stands with probability
min(1, p(x) / q(x)); a refused one leaves p = norm([p - q]+) and takes x out of q. When none stands the token
is drawn from the p that is left. The text has the target's distribution.

Independent draws from one q are right too: a token that is there twice is passed over, and what is left is
a draw without replacement. `replace` leaves q whole: for siblings that were drawn independently, each perhaps
from its own draft model's q, as in SpecInfer (which looks at them in random order, this in the draft's). It
is wrong for draws without replacement, which is what the drafters of this package make. A draft without q was
not drawn and is matched with samples (`match`), as every draft is at temperature 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.verify._sampled import drawn, one_by_one, walk
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Siblings:
    replace: bool = False  # siblings are independent draws, of one q or of several

    traits = Traits(Guarantee.DISTRIBUTION)

    def verify(self, p: Target, draft: Draft) -> Accept:
        if not drawn(p, draft):
            return p.walk(draft)
        return walk(p, draft, lambda row, own: one_by_one(p, draft, row, own, self.replace))
