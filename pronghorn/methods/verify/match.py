"""Sample and match (the verification of REST, He et al., 2023, arXiv 2311.08252, section 3.3).

At each node the target draws its own next token; when a child holds it the walk goes on there, else it
is the bonus. Every token was drawn from the target, so the output is right for any draft whatever, and
the chance to go on at a node is the target's probability of its children. Since a draw uses the random
number of its position, a seed gives the same text with every draft and with none.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Match:
    traits = Traits(Guarantee.EXACT)

    def verify(self, p: Target, draft: Draft) -> Accept:
        return p.walk(draft)
