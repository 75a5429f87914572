"""Best of n: several answers to one prompt, the model's own favourite first.

Answers are ranked by the mean log-probability of their tokens, as sampled; ties to the earlier branch. At
temperature 0 all are alike, so this is for sampling. The winner is likelier text than a plain sample: the
distribution changes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pronghorn.errors import MethodError
from pronghorn.seq import Request, Seq
from pronghorn.types import Guarantee, Traits


@dataclass(frozen=True)
class BestOfN:
    n: int = 4  # answers to write

    traits = Traits(Guarantee.APPROXIMATE)

    def __post_init__(self) -> None:
        if not 1 <= self.n <= 1024:
            raise MethodError(f"best-of-n: n is from 1 to 1024, not {self.n}")

    def branches(self, request: Request) -> int:
        return max(self.n, request.n)

    def choose(self, seqs: Sequence[Seq]) -> list[int]:
        def mean(i: int) -> float:
            each = seqs[i].logprobs
            return sum(each) / len(each) if each else -math.inf

        return sorted(range(len(seqs)), key=lambda i: (-mean(i), i))
