"""Typical acceptance (Medusa, Cai et al., 2024, arXiv 2401.10774): what the target finds likely stands.

A drafted token x stands when p(x) > min(epsilon, delta exp(-H(p))), H the entropy of p in nats: where the
target is sure it must be likely, where it is not almost anything goes. Of the tree the longest path that
stands is kept, of equally long ones the likelier; after it the target draws as ever.

The output is not distributed as p: it follows the drafter more, and has less entropy. A smaller epsilon is
looser; epsilon = 1 with a large delta lets nothing stand. At temperature 0 it is greedy verification. On the
toy of the tests (8 tokens, a draft model that agrees with the target half the time) the law of three tokens
is at a total variation of 0.40 from the target's with drawn chains, 0.44 with drawn trees and 0.84 with trees
of the likeliest tokens, where the first path that stands is always the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.methods.verify._sampled import Probs, children
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass(frozen=True)
class Typical:
    epsilon: float = 0.09  # a token likelier than this stands; larger is stricter
    delta: float = 0.3  # and one likelier than this much of exp(-entropy)

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        if not 0 < self.epsilon <= 1:
            raise MethodError(f"typical: epsilon is above 0 and at most 1, not {self.epsilon:g}")
        if not self.delta > 0:
            raise MethodError(f"typical: delta is above 0, not {self.delta:g}")

    def verify(self, p: Target, draft: Draft) -> Accept:
        if p.temperature <= 0:
            return p.walk(draft)
        below = children(draft)
        best, path = (0, 0.0), [-1]
        paths = [((0, 0.0), path)]
        while paths:
            (length, log), path_here = paths.pop()
            if (length, log) > best:
                best, path = (length, log), path_here
            own = below.get(path_here[-1])
            if own:
                probs = p.probs(path_here[-1] + 1)
                least = min(self.epsilon, self.delta * math.exp(-entropy(probs)))
                for i in own:
                    x = float(probs[draft.tokens[i]])
                    if x > least:
                        paths.append(((length + 1, log + math.log(x)), [*path_here, i]))
        return Accept(path[1:], p.draw(path[-1] + 1))


def entropy(p: Probs) -> float:
    """In nats."""
    some = p[p > 0]
    return float(-(some * np.log(some)).sum())
