"""Temperature: logits divided by a number.

The same as `Request.temperature`, for a temperature that belongs to the set-up and not to the request;
both apply when both are given. 0 keeps the likeliest token alone (ties: the lowest id).
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
class Temperature:
    value: float = 1.0  # below 1 sharpens, above 1 flattens

    traits = Traits(Guarantee.EXACT)
    order: ClassVar[int] = 1

    def __post_init__(self) -> None:
        if not (self.value >= 0 and math.isfinite(self.value)):
            raise MethodError(f"temperature: value is 0 or above, not {self.value}")

    def shape(self, logits: NDArray[np.float64], path: Ints, n_prompt: int) -> NDArray[np.float64]:
        if self.value > 0:
            with np.errstate(over="ignore", invalid="ignore"):
                if not np.isfinite(logits.max() / self.value):
                    logits -= logits.max()  # what is common to all does not matter; 0 cannot overflow
                logits /= self.value
            return logits
        best = int(np.argmax(logits))
        top = logits[best]
        logits[:] = -np.inf
        logits[best] = top
        return logits
