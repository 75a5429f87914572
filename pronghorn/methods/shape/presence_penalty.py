"""Presence penalty, as the OpenAI API defines it: subtracted once from every token that the answer
already holds. The prompt does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(frozen=True)
class PresencePenalty:
    penalty: float = 0.5  # in logits; negative encourages

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not -2 <= self.penalty <= 2:
            raise MethodError(f"presence-penalty: penalty is from -2 to 2, not {self.penalty}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        logits[np.unique(path[n_prompt:])] -= self.penalty
        return logits
