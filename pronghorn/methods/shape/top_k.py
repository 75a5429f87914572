"""Top-k sampling (Fan et al., 2018, arXiv 1805.04833): the k likeliest tokens stay.

Exactly k: of equal logits at the edge the lower ids stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(frozen=True)
class TopK:
    k: int = 50  # tokens that stay

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if self.k < 1:
            raise MethodError(f"top-k: k is 1 or above, not {self.k}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        n = len(logits)
        if self.k >= n:
            return logits
        edge = np.partition(logits, n - self.k)[n - self.k]  # the k-th largest
        above = int((logits > edge).sum())
        ties = np.flatnonzero(logits == edge)
        logits[logits < edge] = -np.inf
        logits[ties[self.k - above :]] = -np.inf
        return logits
