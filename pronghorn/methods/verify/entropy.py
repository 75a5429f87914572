"""Entropy adaptive decoding (EAD, "Entropy Adaptive Decoding: Dynamic Model Switching for Efficient
Inference"): two models take turns by how uncertain they are, and nobody checks the small one's text.

The entropy (bits) of the model whose turn it is, averaged over its last `window` tokens, says who writes the
next: the target where it is above `threshold`, else the drafter; a turn lasts `hold` tokens at least. A token
that the constraint forbids is the target's to replace. threshold = -1 is plain decoding, a large one the
drafter's text alone.

The paper does not run the large model in the small one's turns. Here its rows are run along, so that its KV
is there when its turn comes: what is gained is that a whole draft stands. The drafter's entropy is that of
`draft.q`; greedy drafts have none, and -log2 of `draft.score`, which is less, stands in for it. Drafts with
neither are matched with samples (`match`). Of a tree the first child of each node is the drafter's word. How
long `window` and `hold` are in the paper is not known here; choose the threshold by the share of tokens that
the target is to write. On the toy of the tests (greedy, chains of 4, hold 3) thresholds of 1.6, 2.0 and 2.4
bits give 2.2, 2.5 and 3.1 tokens a step, and 0, 0.31 and 0.61 nats a token less likely than the target's own.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from pronghorn.errors import MethodError
from pronghorn.methods.verify._sampled import Probs, children
from pronghorn.slots import Target
from pronghorn.types import Accept, Draft, Guarantee, Traits


@dataclass
class _Turn:
    """Whose turn it is in a sequence."""

    seen: deque[float]
    large: bool = True
    tokens: int = field(default=1 << 30)  # of this turn; at first it may end at once


@dataclass(frozen=True)
class Entropy:
    threshold: float = 1.0  # bits above which the target writes
    window: int = 5  # tokens that are averaged over
    hold: int = 10  # tokens of a turn at least

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        if np.isnan(self.threshold):
            raise MethodError("entropy: threshold is a number of bits")
        for name, value in (("window", self.window), ("hold", self.hold)):
            if not 1 <= value <= 4096:
                raise MethodError(f"entropy: {name} is from 1 to 4096, not {value}")

    def verify(self, p: Target, draft: Draft) -> Accept:
        if not len(draft.q) and not len(draft.score):
            return p.walk(draft)
        memory = p.memory(self)
        if "turn" not in memory:
            memory["turn"] = _Turn(deque(maxlen=self.window))
        turn: _Turn = memory["turn"]
        below, node = children(draft), -1
        path: list[int] = []
        while own := below.get(node):
            target = p.soft(node + 1)
            self._next(turn, bits(target) if turn.large else unsure(draft, own[0]))
            if turn.large or target[draft.tokens[own[0]]] <= 0:
                token = p.draw(node + 1)
                match = [i for i in own if draft.tokens[i] == token]
                if not match:
                    return Accept(path, token)
                node = match[0]
            else:
                node = own[0]
            path.append(node)
        if path and not turn.large:  # what follows is not the target's to write
            return Accept(path[:-1], int(draft.tokens[path[-1]]))
        return Accept(path, p.draw(node + 1))

    def _next(self, turn: _Turn, entropy: float) -> None:
        """One token further, with the entropy of the model whose turn it is."""
        turn.seen.append(entropy)
        large = sum(turn.seen) / len(turn.seen) > self.threshold
        if turn.tokens >= self.hold and large != turn.large:
            turn.large, turn.tokens = large, 0
        turn.tokens += 1


def unsure(draft: Draft, node: int) -> float:
    """The drafter's entropy where it chose this node."""
    return bits(draft.q[node]) if len(draft.q) else float(-np.log2(draft.score[node]))


def bits(p: Probs) -> float:
    some = p[p > 0]
    return float(-(some * np.log2(some)).sum())
