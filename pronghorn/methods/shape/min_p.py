"""Min-p sampling (Nguyen et al., 2024, arXiv 2407.01082): tokens at least `p` times as likely as the
likeliest stay.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(frozen=True)
class MinP:
    p: float = 0.05  # of the likeliest token's probability

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 2

    def __post_init__(self) -> None:
        if not 0 <= self.p <= 1:
            raise MethodError(f"min-p: p is from 0 to 1, not {self.p}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        if self.p > 0:
            logits[logits < logits.max() + math.log(self.p)] = -np.inf
        return logits
