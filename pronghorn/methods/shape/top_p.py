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
        order = np.argsort(-logits, kind="stable")
        e = np.exp(logits[order] - logits[order[0]])
        before = np.cumsum(e) - e  # mass of the likelier tokens
        logits[order[before >= self.p * e.sum()]] = -np.inf
        return logits
