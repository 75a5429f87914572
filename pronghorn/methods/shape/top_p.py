"""Nucleus sampling (Holtzman et al., 2019, arXiv 1904.09751, section 3.1).

The smallest set of likeliest tokens whose probabilities sum to `p` or more stays; ties go to the lower
id, and one token always stays.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits

BINS = 64  # for a difference of 1 between logits


@dataclass(frozen=True)
class TopP:
    p: float = 0.9  # probability that stays at least

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 < self.p <= 1:
            raise MethodError(f"top-p: p is above 0 and at most 1, not {self.p}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        if self.p == 1:
            return logits
        down = logits.max() - logits
        e = np.exp(-down)
        # Only where the mass reaches p does the order of tokens matter: they are sorted there.
        at = (np.minimum(down, 40) * BINS).astype(np.intp)
        mass = np.bincount(at, e)
        above = np.cumsum(mass) - mass  # mass of the likelier bins
        most = self.p * mass.sum()
        edge = int(np.flatnonzero(above < most)[-1])
        here = np.flatnonzero(at == edge)
        order = here[np.argsort(down[here], kind="stable")]
        before = above[edge] + np.cumsum(e[order]) - e[order]  # mass of the likelier tokens
        gone = at > edge
        gone[order[before >= most]] = True
        logits[gone] = -np.inf
        return logits
