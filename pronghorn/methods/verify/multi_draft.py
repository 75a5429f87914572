"""Greedy multi-draft verification (Hu et al., 2025, arXiv 2502.18779).

All children of a node but the last are the likeliest tokens H of q, not drawn; the last, Y, is drawn from
q', which is q without them. Y stands with probability min(1, p(Y) / q'(Y)), else a token is drawn from
norm([p - q']+): if a child holds it the walk goes on there, else it is emitted. A node has a child that
stands with probability p(H) + sum over others of min(p, q'), the most that any verifier of such drafts can
reach (`_optimal.py`). The text has the target's distribution.

Such drafts are grown by the kind `multi`; their q says for sure what was not drawn. Where it does not, the
siblings were drawn without replacement and are refused one by one (`siblings`). A draft without q is matched
with samples (`match`), as every draft is at temperature 0.
"""

from __future__ import annotations

from dataclasses import dataclass

from pronghorn.methods.verify._sampled import (
    CHILD,
    EMIT,
    drawn,
    one_by_one,
    pick,
    residual,
    row_of,
    walk,
)
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class MultiDraft:
    traits = Traits(Guarantee.DISTRIBUTION)

    def verify(self, p: Target, draft: Draft) -> Accept:
        if not drawn(p, draft):
            return p.walk(draft)

        def choose(row: int, own: list[int]) -> tuple[int, int]:
            held = {int(draft.tokens[i]): i for i in own[:-1]}
            if not held or any(draft.q[i][token] != 1.0 for token, i in held.items()):
                return one_by_one(p, draft, row, own)
            last, target = own[-1], p.probs(row)
            token, q = int(draft.tokens[last]), row_of(draft.q[last], len(target), list(held))
            if p.uniform(row, CHILD) * q[token] < target[token]:
                return last, token
            rest = residual(target, q)
            if not len(rest):
                return last, token
            other = pick(rest, p.uniform(row, EMIT))
            return held.get(other, -1), other

        return walk(p, draft, choose)
