"""Big-little decoding (BiLD, Kim et al., 2023, arXiv 2302.07863): the small model writes, the large one is
asked where the small is unsure, and takes back what it finds too unlikely.

A drafted token stands while its drafter is at least `fallback` sure of it and the target's -log p of it is
at most `rollback`. The first that is too unlikely is replaced by the target's own token, and one that the
drafter is not sure of is left to the target. The target's own choice stands in any case, so rollback = 0 is
plain decoding, and the larger it is, the more is the drafter's text. What the constraint forbids never
stands.

p is the target's distribution after constraint and shapers, at temperature 1 where the request's is 0 (the
paper takes the raw logits). The paper is about greedy texts; at other temperatures the target's own token is
a draw. How sure a drafter is comes from `draft.score`, or is the largest probability of q; drafts with
neither are matched with samples (`match`). Of a tree the first child of each node is the small model's word.

On the toy of the tests (greedy, chains of 4, fallback 0.3) rollback 0, 2 and 5 give 2.2, 2.6 and 3.0 tokens a
step, and the text is 0, 0.07 and 0.25 nats a token less likely than the target's own choices.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.methods.verify._sampled import children
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Bild:
    fallback: float = 0.6  # a drafter less sure than this leaves the token to the target
    rollback: float = 5.0  # largest -log p of a token that stands; 0: only the target's own

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        if not 0 <= self.fallback <= 1:
            raise MethodError(f"bild: fallback is from 0 to 1, not {self.fallback:g}")
        if not self.rollback >= 0:
            raise MethodError(f"bild: rollback is 0 or more, not {self.rollback:g}")

    def verify(self, p: Target, draft: Draft) -> Accept:
        sure = certainty(draft)
        if not len(sure):
            return p.walk(draft)
        below, node = children(draft), -1
        path: list[int] = []
        while True:
            own = below.get(node, [])
            if own and sure[own[0]] >= self.fallback and self._bears(p, node + 1, draft.tokens[own[0]]):
                node = own[0]
            else:
                token = p.draw(node + 1)
                match = [i for i in own if draft.tokens[i] == token]
                if not match:
                    return Accept(path, token)
                node = match[0]
            path.append(node)

    def _bears(self, p: Target, row: int, token: int) -> bool:
        chance = float(p.soft(row)[token])
        return chance > 0 and -math.log(chance) <= self.rollback


def certainty(draft: Draft) -> NDArray[Any]:
    """How sure the drafter is at each node, empty where it does not say."""
    return draft.score if len(draft.score) else np.array([row.max() for row in draft.q])
