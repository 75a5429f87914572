"""Frequency penalty, as the OpenAI API defines it: subtracted from a token once for each time that the
answer already holds it. The prompt does not count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from pronghorn.errors import MethodError
from pronghorn.types import Guarantee, Ints, Traits


@dataclass(frozen=True)
class FrequencyPenalty:
    penalty: float = 0.5  # in logits per occurrence; negative encourages

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 0

    def __post_init__(self) -> None:
        if not -2 <= self.penalty <= 2:
            raise MethodError(f"frequency-penalty: penalty is from -2 to 2, not {self.penalty}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        token, count = np.unique(path[n_prompt:], return_counts=True)
        logits[token] -= self.penalty * count
        return logits
